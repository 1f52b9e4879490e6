"""Which members of which clips an uncompressed tar holds, and where they lie: key and suffix as webdataset splits them.

`tarfile` takes four times as long for the same, and every worker reads the headers of every shard.
"""

from __future__ import annotations

import os
import posixpath
import re
import tarfile
from typing import BinaryIO

from audioldm2_pl.errors import UserError

BLOCK = tarfile.BLOCKSIZE  # bytes that a tar counts in
REFUSED = ("pickle", "pkl", "pyd", "pt", "pth")  # members that run code when they are loaded
TWICE = (0, -1)  # in a member's place: the tar holds several of its name

Members = dict[str, tuple[int, int]]  # suffix -> (offset, size) in the tar


def split_name(name: str) -> tuple[str, str]:
    """A member's key and suffix, which begins at the first dot of the file's own name: "./v1.0/a.FLAC" => "v1.0/a",
    "flac". The key is empty for hidden files. No key leads out of a folder that it is written to."""
    folder, base = posixpath.split(posixpath.normpath(f"/{name.lstrip('/')}"))
    stem, _, suffix = base.partition(".")
    return posixpath.join(folder, stem).lstrip("/") if stem else "", suffix.lower()


def read_table(file: BinaryIO, path: str, known: tuple[str, ...]) -> dict[str, Members]:
    """Key -> its members of the `known` suffixes, and npy. What is no valid header is stepped over block by block.

    Raises UserError on a member that would have to be unpickled.
    """
    descriptor = file.fileno()
    end = os.fstat(descriptor).st_size
    clips: dict[str, Members] = {}
    offset, long_name = 0, None
    while offset + BLOCK <= end:
        header = read_header(os.pread(descriptor, BLOCK, offset))
        offset += BLOCK
        if header is None:
            long_name = None
            continue
        name, size, kind = header
        if kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
            long_name = name_in(kind, os.pread(descriptor, min(size, 1 << 16), offset))
        else:
            key, suffix = split_name(long_name or name)
            parts = suffix.split(".")
            if any(part in REFUSED for part in parts):
                raise UserError(
                    f"{path}: carries {long_name or name}, which could run code when read; leave this shard out"
                )
            if key and kind in tarfile.REGULAR_TYPES and (suffix in known or parts[-1] == "npy"):
                members = clips.setdefault(key, {})
                members[suffix] = TWICE if suffix in members else (offset, size)
            long_name = None
        offset += -(-size // BLOCK) * BLOCK
    return clips


def read_header(block: bytes) -> tuple[str, int, bytes] | None:
    """Name, size and kind of the member whose ustar header this is; None if checksum or size say that it is none."""
    try:
        if sum(block) - sum(block[148:156]) + 8 * ord(" ") != int(block[148:156].rstrip(b" \0"), 8):
            return None
        # a size that octal digits cannot hold is a number of 11 bytes behind a set bit
        size = int.from_bytes(block[125:136], "big") if block[124] & 0x80 else int(block[124:136].rstrip(b" \0"), 8)
    except ValueError:
        return None
    if size < 0:
        return None
    names = [block[:100]] if block[257:263] != b"ustar\0" else [block[345:500], block[:100]]
    name = b"/".join(part for part in (name.partition(b"\0")[0] for name in names) if part)
    return name.decode("utf-8", "replace"), size, block[156:157]


def name_in(kind: bytes, content: bytes) -> str | None:
    """The name that a header of its own gives to the next member, where that is longer than 100 bytes."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return content.rstrip(b"\0").decode("utf-8", "replace")
    found = re.search(rb"\d+ path=([^\n]*)\n", content)
    return found[1].decode("utf-8", "replace") if found else None
