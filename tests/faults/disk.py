"""Disks that are full, failing, read-only or out of bounds: one plain line and code 2, and once the disk is well again
the same command ends with the result of the unbroken run."""

import builtins
import errno
import io
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from bench import STAGES, Bench, Body, check_same, content, synthesis, write_prompts
from children import Fault, check_plain
from kills import FILE_CALLS

ERRORS = (errno.ENOSPC, errno.EACCES, errno.EIO, errno.EROFS)
REFUSED = "the disk refuses"  # what a case prints where its fault has come
MAX_CALL = 24  # the first call that is refused is drawn below it


def break_disk(below: Path, error: int, first: int, lasts: bool) -> None:
    """From the call `first` on, or at that one alone, whatever changes files below a folder is refused."""
    seen = -1

    def is_hit(path: Any) -> bool:
        nonlocal seen
        if not isinstance(path, (str, os.PathLike)) or str(below) not in str(path):
            return False
        seen += 1
        return seen >= first if lasts else seen == first

    def wrapped(call: Callable[..., Any], writes: Callable[..., bool]) -> Callable[..., Any]:
        def run(path: Any, *arguments: Any, **options: Any) -> Any:
            if writes(*arguments, **options) and is_hit(path):
                print(REFUSED, flush=True)
                raise OSError(error, os.strerror(error), str(path))
            return call(path, *arguments, **options)

        return run

    def opens_to_write(mode: Any = "r", *_: Any, **options: Any) -> bool:
        return any(letter in str(mode) for letter in "wax+")

    builtins.open = io.open = wrapped(builtins.open, opens_to_write)
    for name in FILE_CALLS:
        if name not in ("fsync", "unlink"):  # a full disk still lets go
            setattr(os, name, wrapped(getattr(os, name), lambda *_, **__: True))


def limit_files(num_bytes: int) -> None:
    """No file of this process may be larger: what writes by itself, below Python, is refused, too."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


def command(bench: Bench, number: int) -> tuple[str, Body, Path, Callable[[], None]]:
    """Name, the command, the folder that it writes to, and the check of what it has written."""
    name = ("data", "training", "generation")[number % 3]
    folder = bench.fresh() / "hit"
    straight = bench.folder / f"whole_{name}"
    if name == "data":
        body, whole = synthesis(folder, 8, 4), synthesis(straight, 8, 4)
    elif name == "training":
        stage = STAGES[number // 3 % len(STAGES)]
        wanted = content(bench.after(stage) / "smoke/model")
        shutil.copytree(bench.before(stage), folder)
        body = bench.training(folder, stage)
        return name, body, folder, lambda: check_same(content(folder / "smoke/model"), wanted, f"weights of {stage}")
    else:
        prompts = write_prompts(bench.folder / "disk_prompts.txt", 2)
        body, whole = bench.generation(folder, prompts), bench.generation(straight, prompts)
    if not straight.is_dir():
        bench.must(whole)
    return name, body, folder, lambda: check_same(content(folder), content(straight), name)


def disk(bench: Bench, rng: Random, number: int) -> int:
    name, body, folder, check = command(bench, number)
    before = content(folder) if folder.is_dir() else {}
    first, lasts, error = rng.randrange(MAX_CALL), rng.random() < 0.5, rng.choice(ERRORS)
    limited = rng.random() < 0.25
    size = rng.randrange(200, 60_000)

    def broken() -> int | None:
        if limited:
            limit_files(size)
        else:
            break_disk(folder, error, first, lasts)
        return body()

    outcome = bench.run(broken)
    what = f"{name}, {f'{size} bytes a file' if limited else os.strerror(error)}"
    try:
        check_plain(outcome)
        if outcome.code == 0:
            check()
        elif lost := [key for key in before if key.endswith((".tar", ".safetensors")) and not (folder / key).exists()]:
            raise Fault(f"lost: {', '.join(lost)}")
        check_plain(bench.run(body), (0,))
        check()
    except Fault as fault:
        raise Fault(f"{what}: {fault}") from None
    return int(outcome.code == 2 or REFUSED in outcome.said)  # else the command has fewer calls, or smaller files
