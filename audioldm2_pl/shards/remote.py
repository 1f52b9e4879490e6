"""Shards on a server: http(s)://, by fsspec s3:// and what else it knows, and where allowed a shell command's output.

A shard is fetched whole in one request, once a machine, to a bounded folder on its disk that all processes share, and
the next shard of the order is fetched while those before are read. Clips are drawn in random order by every worker of
every rank: asking the server for single clips would cost a request a clip, where one request a shard runs at the
line's full speed. Every machine reads from all shards, for the order of clips does not depend on how many there are.

HTTP is the standard library's: fsspec's HTTP file throws away what it has received but not handed on when a connection
breaks, and its event loop does not survive a fork into workers that are already reading. Proxies come from the usual
variables; credentials, regions and endpoints of stores from the storage library's own (AWS_*, FSSPEC_*).
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError

from audioldm2_pl.atomic import locked
from audioldm2_pl.errors import UserError

TRIES = 6  # connections in a row that bring no byte before a server is given up
PAUSE_SECONDS = 0.5  # before the second of them, doubled for each further one
STALL_SECONDS = 60.0  # a connection that brings nothing for so long is broken
PIECE = 1 << 20  # bytes taken at a time
STORE_PIECE = 8 << 20  # bytes asked of a store in one request
CACHE_GIB = 64.0
ABANDONED_SECONDS = 3600.0  # after which a half-fetched shard belongs to a process that was killed


def is_remote(path: str | Path) -> bool:
    return "://" in str(path) or str(path).startswith("pipe:")


def default_cache() -> Path:
    return Path(tempfile.gettempdir()) / f"audioldm2-shards-{os.getuid()}"


class RemoteFolder:
    """The files of a folder on a server. What `cache` holds stays below `limit_gib`, the shards that are being
    fetched or read at the moment not counted; the least recently opened ones go first."""

    def __init__(self, url: str, cache: str | Path | None = None, limit_gib: float = CACHE_GIB):
        self.url = url.rstrip("/")
        self.cache = Path(cache).expanduser() if cache else default_cache()
        self.limit = limit_gib * 2**30
        if not self.url.startswith("pipe:"):
            return
        if os.environ.get("AUDIOLDM2_ALLOW_PIPE") != "1":
            raise UserError(f"{url}: would run a shell command; give --allow-pipe, or set AUDIOLDM2_ALLOW_PIPE=1")
        if "{name}" not in url:
            raise UserError(f"{url}: the command has to hold {{name}}, which becomes the shard's file name")

    def stream(self, name: str) -> Iterator[bytes]:
        if self.url.startswith("pipe:"):
            return stream_command(self.url.removeprefix("pipe:").replace("{name}", shlex.quote(name)))
        return stream(f"{self.url}/{name}")

    def read(self, name: str) -> bytes:
        return b"".join(self.stream(name))

    def open(self, name: str, digest: str) -> BinaryIO:
        """A shard's copy on the disk, fetched first if there is none. `digest` distinguishes its versions."""
        label = hashlib.sha256(f"{self.url}/{name} {digest}".encode()).hexdigest()
        path = self.cache / f"{label}.tar"
        try:
            self.cache.mkdir(parents=True, exist_ok=True, mode=0o700)
            with locked(self.cache / f"{label[:2]}.lock"):
                if not path.exists():
                    part = path.with_suffix(".part")
                    with part.open("wb") as file:
                        for piece in self.stream(name):
                            file.write(piece)
                    os.replace(part, path)
                    make_room(self.cache, self.limit, path)
                os.utime(path)
                return open(path, "rb", buffering=0)
        except OSError as error:
            raise UserError(
                f"{self.cache}: cannot cache {name} ({error}); set data.cache to a folder with more room"
            ) from None

    def prefetch(self, name: str, digest: str) -> None:
        """Fetches a shard in a thread; what goes wrong shows when the shard is opened."""

        def fetch() -> None:
            with suppress(UserError):
                self.open(name, digest).close()

        threading.Thread(target=fetch, daemon=True).start()


def make_room(cache: Path, limit: float, keep: Path) -> None:
    """Removes the least recently opened shards until the others fit the limit; open ones stay readable to their
    readers. Also removes what killed processes have left half-fetched."""
    shards: list[tuple[float, int, Path]] = []
    for path in cache.iterdir():
        with suppress(FileNotFoundError):
            status = path.stat()
            if path.suffix == ".tar" and path != keep:
                shards.append((status.st_mtime, status.st_size, path))
            elif path.suffix == ".part" and status.st_mtime < time.time() - ABANDONED_SECONDS:
                path.unlink()
    total = keep.stat().st_size + sum(size for _, size, _ in shards)
    for _, size, path in sorted(shards):
        if total <= limit:
            break
        path.unlink(missing_ok=True)
        total -= size


def stream(url: str) -> Iterator[bytes]:
    """The bytes of a remote file in order; a broken connection is opened anew at the byte where it broke.

    Raises UserError where the file is missing or forbidden, changes meanwhile, or the server stays away.
    """
    position, failures, version = 0, 0, None
    while True:
        try:
            with open_at(url, position) as source:
                if version is not None and source.version != version:
                    raise UserError(f"{url}: changed while it was read; start again")
                version = source.version
                while position < source.size:
                    piece = source.read(min(PIECE, source.size - position))
                    if not piece:
                        raise EOFError(f"ended at byte {position} of {source.size}")
                    position, failures = position + len(piece), 0
                    yield piece
                return
        except UserError:
            raise
        except Exception as error:  # of whatever library carries the bytes
            if isinstance(error, ImportError):
                package = "s3fs" if url.startswith("s3://") else "the package that fsspec names"
                raise UserError(f"{url}: needs a further package: pip install {package} ({summary(error)})") from None
            if isinstance(error, ValueError):  # a kind of URL that cannot be opened at all
                raise UserError(f"{url}: cannot be read ({summary(error)})") from None
            failures += 1
            if failures == TRIES or is_final(error):
                raise UserError(f"{url}: cannot be read at byte {position} ({summary(error)})") from None
            time.sleep(PAUSE_SECONDS * 2 ** (failures - 1))


@dataclass
class Source:
    """An open connection to a file."""

    read: Callable[[int], bytes]  # at most so many bytes; none when the connection has ended
    size: int  # bytes of the whole file
    tag: str | None  # another one is another version of the file

    @property
    def version(self) -> tuple[int, str | None]:
        return self.size, self.tag


@contextmanager
def open_at(url: str, start: int) -> Iterator[Source]:
    """A connection whose next byte is number `start`."""
    if url.startswith(("http://", "https://")):
        headers = {"User-Agent": "audioldm2"} | ({"Range": f"bytes={start}-"} if start else {})
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=STALL_SECONDS) as answer:
            if answer.status == 206:
                size = int(answer.headers["Content-Range"].rpartition("/")[2])
            else:  # the whole file: from its beginning, or by a server that knows no ranges
                if answer.headers["Content-Length"] is None:
                    raise ValueError("the server does not give its length")
                size = int(answer.headers["Content-Length"])
                skip(answer.read1, start)
            # read1 hands on what has come, read would wait for more and lose it all in a break
            yield Source(answer.read1, size, answer.headers["ETag"])
        return
    import fsspec

    system, path = fsspec.core.url_to_fs(url)
    with system.open(path, "rb", block_size=STORE_PIECE, cache_type="readahead") as file:
        file.seek(start)
        yield Source(file.read, file.size, getattr(file, "details", {}).get("ETag"))  # type: ignore[union-attr]


def skip(read: Callable[[int], bytes], count: int) -> None:
    while count:
        piece = read(min(PIECE, count))
        if not piece:
            raise EOFError(f"ended {count} bytes before where it broke")
        count -= len(piece)


def is_final(error: Exception) -> bool:
    """Whether trying again cannot help."""
    if isinstance(error, HTTPError):
        return 400 <= error.code < 500 and error.code not in (408, 429)
    return isinstance(error, FileNotFoundError | PermissionError)


def summary(error: Exception) -> str:
    missing = isinstance(error, FileNotFoundError) or getattr(error, "code", None) == 404
    return "no such file" if missing else " ".join(str(error).split()) or repr(error)


def stream_command(command: str) -> Iterator[bytes]:
    """What a shell command writes to its standard output."""
    with subprocess.Popen(command, shell=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while piece := process.stdout.read(PIECE):
            yield piece
    if process.returncode:
        raise UserError(f"pipe:{command}: exit code {process.returncode}")
