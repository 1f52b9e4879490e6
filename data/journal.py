"""What a broken-off build has finished, so that the same command goes on from there.

While a split is written, `.<name>.partial` holds its shards in a folder and a `journal.jsonl`: the settings in the
first line, then a line for each finished shard with its entry for the index, how many clips were read for it, their
fingerprint, and those that were left out or changed.
"""

import fcntl
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from audioldm2_pl.errors import UserError


class Journal:
    """The finished shards of one build. Used as a context, in which no other process can write the same split.

    At its end the working folder stays where shards are finished and not yet in place, and goes otherwise.
    """

    def __init__(self, output: Path, settings: dict[str, Any]):
        self.output = output
        self.partial = output.with_name(f".{output.name}.partial")
        self.folder = self.partial / output.name  # of the shards
        self.settings = json.loads(json.dumps(settings))
        self.lines: list[dict[str, Any]] = []  # of the finished shards
        self.ends: list[int] = []  # bytes into the file at which the settings and each of these lines end

    def __enter__(self) -> "Journal":
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = (self.partial / "journal.jsonl").open("a+b")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.file.close()
            raise UserError(f"{self.output} is being written by another process; wait for it or end it") from None
        header, *lines = self._read() or [{}]
        if header.get("settings") == self.settings:
            self.lines = list(self._whole(lines))
            self._keep(len(self.lines))
        else:
            if lines:
                print(f"{self.output}: the broken-off run had other settings; written anew")
            self.file.truncate(0)
            self.ends.clear()
            self._append({"settings": self.settings})
            self._keep(0)
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        if not self.lines or not self.folder.exists():
            shutil.rmtree(self.partial, ignore_errors=True)

    def _read(self) -> list[dict[str, Any]]:
        """The lines up to one that was cut off; `ends` gets where each ends in the file."""
        self.ends.clear()
        self.file.seek(0)
        lines = []
        for line in self.file:
            if not line.endswith(b"\n"):
                break
            lines.append(json.loads(line))
            self.ends.append(self.file.tell())
        return lines

    def _whole(self, lines: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for line in lines:
            path = self.folder / line["shard"]["name"]
            if not path.is_file() or path.stat().st_size != line["num_bytes"]:
                return
            yield line

    def _keep(self, num_shards: int) -> None:
        """Forgets the shards after the first `num_shards`, and removes their files and half-written ones."""
        self.lines, self.ends = self.lines[:num_shards], self.ends[: num_shards + 1]
        self.file.truncate(self.ends[-1])
        names = {line["shard"]["name"] for line in self.lines}
        for path in self.folder.iterdir():
            if path.name not in names:
                path.unlink()

    def _append(self, line: dict[str, Any]) -> None:
        self.file.write(json.dumps(line, sort_keys=True).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        self.ends.append(self.file.tell())

    def add(self, shard: dict[str, Any], num_bytes: int, fingerprints: Sequence[bytes], listed: dict[str, Any]) -> None:
        """A shard that is whole on the disk; `listed` has its clips that were left out or changed."""
        line = {
            "shard": shard,
            "num_bytes": num_bytes,
            "num_read": len(fingerprints),
            "clips": hashlib.sha256(b"".join(fingerprints)).hexdigest(),
            **listed,
        }
        self._append(line)
        self.lines.append(line)

    def remaining(self, clips: Iterable[Any]) -> Iterator[Any]:
        """The clips after those of the finished shards; shards whose clips have changed since are finished no more."""
        left = iter(clips)
        for number, line in enumerate(self.lines):
            read = list(islice(left, line["num_read"]))
            if hashlib.sha256(b"".join(map(fingerprint, read))).hexdigest() != line["clips"]:
                print(f"{self.output}: clips have changed since the broken-off run; written anew from shard {number}")
                self._keep(number)
                left = chain(read, left)
                break
        if self.lines:
            num_clips = sum(line["shard"]["num_clips"] for line in self.lines)
            print(f"{self.output}: goes on after {len(self.lines)} finished shards ({num_clips} clips)")
        return left

    def put_in_place(self) -> None:
        """The shards take the place of those that were there; killed in between, the same command goes on."""
        old = self.output.with_name(f".{self.output.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if self.output.exists():
            self.output.rename(old)
        self.folder.rename(self.output)
        shutil.rmtree(old, ignore_errors=True)


def fingerprint(clip: Any) -> bytes:
    """32 bytes that change with whatever is known about a clip, and with the size and time of its files."""
    paths = [path for path in (clip.path, *clip.others) if path is not None and os.path.exists(path)]
    states = [(status.st_size, status.st_mtime_ns) for status in map(os.stat, paths)]
    return hashlib.sha256(pickle.dumps((clip, states))).digest()
