"""Encoded clips => numbered tars of a split, each noted in the journal once it is whole."""

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from audioldm2_pl.atomic import write_text, written_whole
from audioldm2_pl.shards.format import SHARD_FORMAT, split_name
from audioldm2_pl.shards.members import MEMBERS_FILE, Members, pack
from audioldm2_pl.shards.tar import whole_blocks

from .journal import Journal

LISTED = ("skipped", "changed")  # clips that were left out, and clips that are not as the corpus has them


class EncodedClip(NamedTuple):
    """A clip's members and its length."""

    flac: bytes
    json: bytes
    seconds: float
    pictures: Mapping[str, bytes]  # by suffix

    @property
    def members(self) -> dict[str, bytes]:
        """By suffix."""
        return {"flac": self.flac, "json": self.json, **self.pictures}

    @property
    def size(self) -> int:
        """Bytes in a tar: the contents, each behind a header and filled up to whole blocks."""
        return sum(tarfile.BLOCKSIZE * (1 + -(-len(member) // tarfile.BLOCKSIZE)) for member in self.members.values())


class TarWriter:
    """One tar that is written front to back; its sha256 is taken on the way. Its bytes depend on the clips alone."""

    def __init__(self, path: Path):
        self.path = path
        self.file = path.open("wb")
        self.digest = hashlib.sha256()
        self.clips: list[tuple[str | None, Members]] = []  # where their members lie
        self.archive = tarfile.open(fileobj=self, mode="w")  # type: ignore[call-overload]  # noqa: SIM115

    def write(self, block: bytes) -> int:
        self.digest.update(block)
        return self.file.write(block)

    def tell(self) -> int:
        return self.file.tell()

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Adds a clip by its members' suffixes."""
        places: Members = {}
        for suffix, content in members.items():
            member = tarfile.TarInfo(f"{key}.{suffix}")  # with time, owner and group at zero
            member.size = len(content)
            self.archive.addfile(member, io.BytesIO(content))
            name, suffix = split_name(member.name)
            places[suffix] = (self.tell() - whole_blocks(len(content)), len(content))
        self.clips.append((name, places))
        self.archive.members.clear()  # tarfile would keep a name for every member

    def close(self) -> tuple[int, str]:
        """Size in bytes and sha256 of the tar, now on the disk."""
        self.archive.close()
        self.file.flush()
        os.fsync(self.file.fileno())
        size = self.tell()
        self.file.close()
        return size, self.digest.hexdigest()


def write_members(folder: Path, blocks: Sequence[bytes | None]) -> list[dict[str, Any]]:
    """Writes members.bin; returns of each shard what its entry in index.json says of its block, nothing without one."""
    places, offset = [], 0
    with written_whole(folder / MEMBERS_FILE) as part, part.open("wb") as file:
        for block in blocks:
            places.append({} if block is None else {"members": [offset, len(block), zlib.crc32(block)]})
            offset += file.write(block or b"")
    return places


def append_members(path: Path, block: bytes, offset: int) -> list[int]:
    """Writes a shard's block to members.bin from `offset` on, which ends there; returns what index.json says of it."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.truncate(offset)
        file.seek(offset)
        file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return [offset, len(block), zlib.crc32(block)]


def write_index(folder: Path, index: Mapping[str, Any]) -> None:
    write_text(folder / "index.json", json.dumps(index, indent=1, sort_keys=True) + "\n")


class SplitWriter:
    """Cuts a stream of clips into shards of at most `max_bytes` (or one clip) and `max_clips` clips."""

    def __init__(self, journal: Journal, max_bytes: int, max_clips: int | None):
        self.journal = journal
        self.max_bytes = max_bytes
        self.max_clips = max_clips
        self.tar: TarWriter | None = None
        self.lengths: list[float] = []  # seconds of the clips in the open shard
        self.fingerprints: list[bytes] = []  # of the clips read for the shard that is open
        self.listed: dict[str, list[dict[str, str]]] = {name: [] for name in LISTED}  # and what became of some of them
        self.seconds = 0.0  # written by this process
        self.num_pictures = 0  # in the open shard

    def add(self, key: str, fingerprint: bytes, clip: EncodedClip | str) -> None:
        """Adds the next clip, or notes the reason why there is none."""
        if not isinstance(clip, str) and self.tar and self.tar.tell() + clip.size > self.max_bytes:
            self.finish_shard()
        self.fingerprints.append(fingerprint)
        if isinstance(clip, str):
            self.listed["skipped"].append({"key": key, "reason": clip})
            return
        if self.tar is None:
            self.tar = TarWriter(self.journal.folder / f"{len(self.journal.lines):06d}.tar")
        self.tar.add(key, clip.members)
        self.num_pictures += len(clip.pictures)
        self.lengths.append(clip.seconds)
        self.seconds += clip.seconds
        if b'"changed"' in clip.json:
            reasons = json.loads(clip.json).get("changed", ())
            self.listed["changed"] += [{"key": key, "reason": reason} for reason in reasons]
        if len(self.lengths) == self.max_clips:
            self.finish_shard()

    def finish_shard(self) -> None:
        if self.tar is None:
            return
        size, sha256 = self.tar.close()
        end = max((sum(line["shard"].get("members", [0])[:2]) for line in self.journal.lines), default=0)
        entry = {
            "name": self.tar.path.name,
            "bytes": size,
            "members": append_members(self.journal.folder / MEMBERS_FILE, pack(self.tar.clips), end),
            "num_clips": len(self.lengths),
            "seconds": round(sum(self.lengths), 3),
            "longest_seconds": round(max(self.lengths), 3),
            "sha256": sha256,
            **({"num_pictures": self.num_pictures} if self.num_pictures else {}),
        }
        self.journal.add(entry, size, self.fingerprints, self.listed)
        self.tar, self.lengths, self.fingerprints, self.listed = None, [], [], {name: [] for name in LISTED}
        self.num_pictures = 0

    def index(self, sample_rate: int) -> dict[str, Any]:
        """What `index.json` says, the last shard being finished."""
        lines = [*self.journal.lines, self.listed]
        shards = [line["shard"] for line in self.journal.lines]
        num_pictures = sum(shard.get("num_pictures", 0) for shard in shards)
        return {
            "format": SHARD_FORMAT,
            "sample_rate": sample_rate,
            "num_clips": sum(shard["num_clips"] for shard in shards),
            "seconds": round(sum(shard["seconds"] for shard in shards), 3),
            "longest_seconds": max((shard["longest_seconds"] for shard in shards), default=0.0),
            **({"num_pictures": num_pictures} if num_pictures else {}),
            "shards": shards,
            **{name: [clip for line in lines for clip in line[name]] for name in LISTED},
        }
