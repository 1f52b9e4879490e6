"""Members of clips => numbered tars of a split, each noted in the journal once it is whole."""

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

from .journal import Journal

LISTED = ("skipped", "changed")  # clips that were left out, and clips that are not as the corpus has them
Members = tuple[bytes, bytes, float]  # a clip's FLAC, its JSON, and its seconds


class ShardFile:
    """One tar that is written front to back; its sha256 is taken on the way."""

    def __init__(self, path: Path):
        self.path = path
        self.file = path.open("wb")
        self.digest = hashlib.sha256()
        self.archive = tarfile.open(fileobj=self, mode="w")  # type: ignore[call-overload]  # noqa: SIM115
        self.seconds: list[float] = []

    def write(self, block: bytes) -> int:
        self.digest.update(block)
        return self.file.write(block)

    def tell(self) -> int:
        return self.file.tell()

    def add(self, key: str, members: Members) -> None:
        *contents, seconds = members
        for suffix, content in zip(("flac", "json"), contents):
            # TarInfo leaves time, owner and group at zero: the bytes depend on the clips alone.
            member = tarfile.TarInfo(f"{key}.{suffix}")
            member.size = len(content)
            self.archive.addfile(member, io.BytesIO(content))
        self.archive.members.clear()  # tarfile would keep a name for every member
        self.seconds.append(seconds)

    def close(self) -> dict[str, Any]:
        """The shard's entry for the index."""
        self.archive.close()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return {
            "name": self.path.name,
            "num_clips": len(self.seconds),
            "seconds": round(sum(self.seconds), 3),
            "longest_seconds": round(max(self.seconds), 3),
            "sha256": self.digest.hexdigest(),
        }


class SplitWriter:
    """Cuts a stream of clips into shards of at most `max_bytes` (or one clip) and `max_clips` clips."""

    def __init__(self, journal: Journal, max_bytes: int, max_clips: int | None):
        self.journal = journal
        self.max_bytes = max_bytes
        self.max_clips = max_clips
        self.shard: ShardFile | None = None
        self.fingerprints: list[bytes] = []  # of the clips read for the shard that is open
        self.listed: dict[str, list[dict[str, str]]] = {name: [] for name in LISTED}  # and what became of some of them
        self.seconds = 0.0  # written by this process

    def add(self, key: str, fingerprint: bytes, members: Members | str) -> None:
        """Takes the next clip, or the reason why there is none."""
        if not isinstance(members, str) and self.shard and self.shard.tell() + _size(members) > self.max_bytes:
            self.finish_shard()
        self.fingerprints.append(fingerprint)
        if isinstance(members, str):
            self.listed["skipped"].append({"key": key, "reason": members})
            return
        if self.shard is None:
            self.shard = ShardFile(self.journal.folder / f"{len(self.journal.lines):06d}.tar")
        self.shard.add(key, members)
        self.seconds += members[-1]
        if b'"changed"' in members[1]:
            reasons = json.loads(members[1]).get("changed", ())
            self.listed["changed"] += [{"key": key, "reason": reason} for reason in reasons]
        if len(self.shard.seconds) == self.max_clips:
            self.finish_shard()

    def finish_shard(self) -> None:
        if self.shard is not None:
            entry = self.shard.close()
            self.journal.add(entry, self.shard.path.stat().st_size, self.fingerprints, self.listed)
            self.shard, self.fingerprints, self.listed = None, [], {name: [] for name in LISTED}

    def index(self, sample_rate: int) -> dict[str, Any]:
        """What `index.json` says, the last shard being finished."""
        lines = [*self.journal.lines, self.listed]
        shards = [line["shard"] for line in self.journal.lines]
        return {
            "format": 1,
            "sample_rate": sample_rate,
            "num_clips": sum(shard["num_clips"] for shard in shards),
            "seconds": round(sum(shard["seconds"] for shard in shards), 3),
            "longest_seconds": max((shard["longest_seconds"] for shard in shards), default=0.0),
            "shards": shards,
            **{name: [clip for line in lines for clip in line[name]] for name in LISTED},
        }


def _size(members: Members) -> int:
    """Bytes that a clip takes in a tar: its contents, each behind a header and filled up to whole blocks."""
    return sum(tarfile.BLOCKSIZE * (1 + -(-len(content) // tarfile.BLOCKSIZE)) for content in members[:2])
