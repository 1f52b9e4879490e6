"""Which shards of an interrupted build are finished, so that the same command resumes it.

While a split is written, `.<name>.partial` holds its shards in a folder and a `journal.jsonl`: the settings in the
first line, then a line for each finished shard with its entry for the index, how many clips were read for it, their
fingerprint, and those that were left out or changed.
"""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import Any

from audioldm2_pl.atomic import locked, write_text
from audioldm2_pl.errors import UserError
from audioldm2_pl.shards.members import MEMBERS_FILE


class Journal:
    """The finished shards of one build. Used as a context, in which no other process can write the same split.

    At its end the working folder stays where shards are finished but not yet published, and goes otherwise.
    """

    def __init__(self, output: Path, settings: dict[str, Any]):
        self.output = output
        self.partial = output.with_name(f".{output.name}.partial")
        self.folder = self.partial / output.name  # of the shards
        self.settings = json.loads(json.dumps(settings))
        self.lines: list[dict[str, Any]] = []  # of the finished shards
        self.lock = ExitStack()

    def __enter__(self) -> "Journal":
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.enter_context(locked(self.partial / "lock", wait=False))
        except BlockingIOError:
            raise UserError(f"{self.output} is being written by another process; wait for it or end it") from None
        header, *lines = self._read() or [{}]
        if header.get("settings") == self.settings:
            self._save(takewhile(self._is_whole, lines))
        else:
            if lines:
                print(f"{self.output}: the interrupted run had other settings; written anew")
            self._save([])
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.close()
        if not self.lines or not self.folder.exists():
            shutil.rmtree(self.partial, ignore_errors=True)

    @property
    def path(self) -> Path:
        return self.partial / "journal.jsonl"

    def _read(self) -> list[dict[str, Any]]:
        """The lines up to one that was cut off."""
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []
        return [json.loads(line) for line in takewhile(lambda line: line.endswith(b"\n"), lines)]

    def _is_whole(self, line: dict[str, Any]) -> bool:
        path = self.folder / line["shard"]["name"]
        return path.is_file() and path.stat().st_size == line["num_bytes"]

    def _save(self, lines: Iterable[dict[str, Any]]) -> None:
        """These are the finished shards; other files, half-written shards among them, are removed."""
        self.lines = list(lines)
        rows = [{"settings": self.settings}, *self.lines]
        write_text(self.path, "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
        names = {MEMBERS_FILE, *(line["shard"]["name"] for line in self.lines)}
        for path in self.folder.iterdir():
            if path.name not in names:
                path.unlink()

    def add(self, shard: dict[str, Any], num_bytes: int, fingerprints: Sequence[bytes], listed: dict[str, Any]) -> None:
        """A shard that is whole on the disk; `listed` has its clips that were left out or changed."""
        line = {
            "shard": shard,
            "num_bytes": num_bytes,
            "num_read": len(fingerprints),
            "clips": hashlib.sha256(b"".join(fingerprints)).hexdigest(),
            **listed,
        }
        with self.path.open("a") as file:
            file.write(json.dumps(line, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.lines.append(line)

    def remaining(self, clips: Iterable[Any]) -> Iterator[Any]:
        """The clips after those of the finished shards; a shard whose clips have changed since counts as unfinished."""
        left = iter(clips)
        for number, line in enumerate(self.lines):
            read = list(islice(left, line["num_read"]))
            if hashlib.sha256(b"".join(map(fingerprint, read))).hexdigest() != line["clips"]:
                print(f"{self.output}: clips have changed since the interrupted run; written anew from shard {number}")
                self._save(self.lines[:number])
                left = chain(read, left)
                break
        if self.lines:
            num_clips = sum(line["shard"]["num_clips"] for line in self.lines)
            print(f"{self.output}: resumes after {len(self.lines)} finished shards ({num_clips} clips)")
        return left

    def publish(self) -> None:
        """The shards replace those that were there; killed in between, the same command resumes."""
        old = self.output.with_name(f".{self.output.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if self.output.exists():
            self.output.rename(old)
        self.folder.rename(self.output)
        shutil.rmtree(old, ignore_errors=True)


def fingerprint(clip: Any) -> bytes:
    """32 bytes that change with whatever is known about a clip, and with the size and time of its files."""
    paths = [path for path in (clip.path, *clip.others, *clip.pictures) if path is not None and os.path.exists(path)]
    states = [(status.st_size, status.st_mtime_ns) for status in map(os.stat, paths)]
    return hashlib.sha256(pickle.dumps((clip, states))).digest()
