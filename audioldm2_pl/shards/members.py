"""Where the members of a shard's clips lie, as `members.bin` beside index.json keeps it, so that no header is read.

The file has a block for each shard, whose place index.json gives: {"bytes": size of the tar, "members": [offset, size,
crc32]}. A block is a line of JSON, {"clips": n, "kinds": [[suffix, ...], ...], "wide": w}, and arrays of little-endian
numbers: of each clip its kind (uint16), of each member in turn its offset, of each its size, of each clip the end of
its key, and the keys in UTF-8. Offsets count blocks of 512 bytes (uint32), sizes bytes (uint32); where they do not fit,
`wide`, both count bytes (uint64). That is 22 bytes and the key for a clip of two members. A member with holes has "*"
before its suffix; a clip that the tar has lost has no members.

A block that is damaged, or of another tar, is not used: the headers are read instead.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from audioldm2_pl.shards.tar import BLOCK, Span, SparseSpan

MEMBERS_FILE = "members.bin"
MAX_KINDS = 1 << 16  # sets of suffixes in one shard
TWICE = (0, -1)  # for a member whose name comes several times in the tar

Members = dict[str, Span]  # suffix -> where it lies in the tar


class MemberTable(Sequence):
    """A shard's clips by number, (key, members) each; the key is None for one that the tar has lost.

    Raises ValueError where the block is none.
    """

    def __init__(self, block: bytes | memoryview):
        view = memoryview(block)
        line = bytes(view[: min(len(view), 1 << 20)]).partition(b"\n")[0]
        header = json.loads(line)
        self.kinds = [[str(suffix) for suffix in kind] for kind in header["kinds"]]
        self.wide = bool(header["wide"])
        num_clips, at = int(header["clips"]), len(line) + 1
        lengths = np.array([len(kind) for kind in self.kinds] or [0])

        def array(count: int, kind: str) -> np.ndarray:
            nonlocal at
            values = np.frombuffer(view, kind, count, at)
            at += values.nbytes
            return values

        self.kind = array(num_clips, "<u2")
        if num_clips and int(self.kind.max()) >= len(self.kinds):
            raise ValueError("a clip of no kind")
        self.first = np.concatenate([[0], np.cumsum(lengths[self.kind])]).astype(np.int64)  # (clips + 1,)
        number = "<u8" if self.wide else "<u4"
        self.offsets, self.sizes = (array(int(self.first[-1]), number) for _ in range(2))
        self.ends = array(num_clips, "<u4")
        self.names = view[at:]
        if num_clips and (np.any(self.ends[1:] < self.ends[:-1]) or int(self.ends[-1]) != len(self.names)):
            raise ValueError("keys of other lengths")

    def __len__(self) -> int:
        return len(self.kind)

    def __getitem__(self, clip: Any) -> Any:
        if isinstance(clip, slice):
            return [self[i] for i in range(*clip.indices(len(self)))]
        if not -len(self) <= clip < len(self):
            raise IndexError(f"clip {clip} of {len(self)}")
        clip %= len(self)
        suffixes = self.kinds[self.kind[clip]]
        if not suffixes:
            return None, {}
        key = bytes(self.names[int(self.ends[clip - 1]) if clip else 0 : int(self.ends[clip])]).decode("utf-8")
        first = int(self.first[clip])
        return key, dict(self.member(suffix, first + i) for i, suffix in enumerate(suffixes))

    def member(self, suffix: str, number: int) -> tuple[str, Span]:
        offset, size = int(self.offsets[number]) * (1 if self.wide else BLOCK), int(self.sizes[number])
        if size == np.iinfo(self.sizes.dtype).max:
            return suffix, TWICE
        return (suffix[1:], SparseSpan(offset, size)) if suffix.startswith("*") else (suffix, (offset, size))


def pack(clips: Iterable[tuple[str | None, Members]]) -> bytes:
    """A shard's clips as a block, which `MemberTable` reads. ValueError for too many sets of suffixes."""
    kinds: dict[tuple[str, ...], int] = {}
    kind, spans, names, ends = [], [], [], []
    for key, members in clips:
        suffixes = tuple("*" * isinstance(span, SparseSpan) + suffix for suffix, span in members.items())
        kind.append(kinds.setdefault(suffixes, len(kinds)))
        spans += members.values()
        names.append((key or "").encode())
        ends.append(len(names[-1]))
    if len(kinds) > MAX_KINDS:
        raise ValueError(f"{len(kinds)} sets of suffixes")
    places = np.array(spans, dtype=np.int64).reshape(-1, 2)  # (members, 2)
    room = np.iinfo(np.uint32).max
    wide = bool(np.any(places[:, 0] % BLOCK) or np.any(places[:, 0] // BLOCK > room) or np.any(places[:, 1] >= room))
    number, unit = ("<u8", 1) if wide else ("<u4", BLOCK)
    sizes = np.where(places[:, 1] < 0, np.iinfo(number).max, places[:, 1].astype(np.uint64)).astype(number)
    header = {"clips": len(kind), "kinds": list(kinds), "wide": wide}
    arrays = (np.array(kind, "<u2"), (places[:, 0] // unit).astype(number), sizes, np.cumsum(ends).astype("<u4"))
    return b"".join([json.dumps(header).encode() + b"\n", *(array.tobytes() for array in arrays), *names])


def read_block(content: np.ndarray, place: Sequence[int]) -> MemberTable | None:
    """The block at (offset, size, crc32) of a folder's file (bytes,); None where it is damaged."""
    offset, size, digest = place
    block = content[offset : offset + size].data
    if len(block) != size or zlib.crc32(block) != digest:
        return None
    try:
        return MemberTable(block)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
