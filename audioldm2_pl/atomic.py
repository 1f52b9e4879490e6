"""Files that several processes write and read: whole or not at all, one writer at a time, known by their bytes."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from audioldm2_pl.errors import UserError, reason_of


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; at the end the file replaces `path`, after an error nothing changes.

    Raises UserError where it cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except Exception as error:
        if not is_write_error(error):
            raise
        raise UserError(
            f"{path}: cannot be written ({write_reason(error)}); put that right, then run the same command"
        ) from None
    finally:
        with suppress(OSError):
            part.unlink()


def is_write_error(error: Exception) -> bool:
    """Whether the disk is the cause: torch and safetensors have their own messages for it."""
    return isinstance(error, OSError) or any(
        name in str(error) for name in ("inline_container", "iostream error", "os error")
    )


def write_reason(error: Exception) -> str:
    """A phrase that says why a file could not be written; torch has lost the system's own."""
    lost = any(name in str(error) for name in ("inline_container", "iostream"))
    return "the disk is full or failing" if lost else reason_of(error)


def write_text(path: Path, text: str) -> None:
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8")


def replace_folder(path: Path, new: Path) -> None:
    """The folder `new` takes the place of `path`; a kill in between leaves one of the two for `restore_folders`."""
    old = path.with_name(f".{path.name}.old")
    if path.is_dir():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Removes a folder whole; a kill in between leaves a hidden rest for `restore_folders`."""
    rest = path.with_name(f".{path.name}.part")
    shutil.rmtree(rest, ignore_errors=True)
    path.rename(rest)
    shutil.rmtree(rest, ignore_errors=True)


def restore_folders(parent: Path) -> None:
    """Undoes what killed processes have begun in `parent`: .NAME.part is half-written, .NAME.old was to be replaced."""
    for old in parent.glob(".*.old"):
        path = parent / old.name.removeprefix(".").removesuffix(".old")
        shutil.rmtree(old) if path.is_dir() else old.rename(path)
    for new in parent.glob(".*.part"):
        shutil.rmtree(new) if new.is_dir() else new.unlink()


def link_file(source: str | Path, target: str | Path) -> None:
    """A copy of a file that is never edited; it takes no room where the file system has hard links."""
    source = os.path.realpath(source)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def link_tree(source: Path, target: Path) -> None:
    """`link_file` of a whole folder."""
    shutil.copytree(source, target, copy_function=link_file)


def read_json_object(path: Path) -> dict[str, Any]:
    """A file that `write_text` wrote. Raises UserError where it is no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path}: damaged, holds no JSON object; delete it")
    return content


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Holds a lock among the processes and threads of this machine; BlockingIOError where it is held elsewhere."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def update_from_folder(digest: Any, folder: Path, root: Path) -> None:
    """Feeds names, from `root` on, sizes and bytes of a folder's files to a digest of hashlib."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(root)} {path.stat().st_size}\n".encode())
            update_from(digest, path)


def update_from(digest: Any, path: Path) -> None:
    """Feeds a file's bytes to a digest of hashlib."""
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
