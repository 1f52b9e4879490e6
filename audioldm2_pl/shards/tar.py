"""Where the members of a tar lie: what Python's `tarfile` would find, in a quarter of its time.

Headers of ustar, GNU and pax are read here, with names of any length and sizes in octal digits, base 256 or a pax
record. Members with holes (`tar --sparse`) are left to `tarfile`. What is no valid header is stepped over block by
block, and no number in a header makes anything large.
"""

import io
import os
import re
import tarfile
from collections.abc import Iterator
from typing import Any, NamedTuple

BLOCK = tarfile.BLOCKSIZE  # bytes that a tar counts in
MAX_LEADING = 1 << 16  # bytes of the headers before a member, its map of holes included
MAX_SPARSE = 1 << 30  # bytes of a member with holes when it is unpacked
PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
LEADING = (*PAX, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)  # headers before a member's own
RECORD = re.compile(rb"(\d{1,7}) ([^=\n]+)=")  # how one of a pax header begins: its length, its name
LONG_NUMBER = re.compile(rb"\d{40}")  # over which `tarfile` may take hours (CVE-2024-6232)

Span = tuple[int, int]  # (offset, size) of a member's bytes


class SparseSpan(NamedTuple):
    """Where a member with holes lies, its headers included."""

    offset: int
    size: int


def read_entries(descriptor: int) -> Iterator[tuple[str, bytes, Span]]:
    """(name, kind, where it lies) of each member of an open tar."""
    end = os.fstat(descriptor).st_size
    offset, start = 0, 0  # of the header that is read, of the first of its member's
    leading: dict[str, str] = {}
    while offset + BLOCK <= end:
        header = read_header(os.pread(descriptor, BLOCK, offset))
        start = start if leading else offset
        offset += BLOCK
        if header is None:
            leading = {}
            continue
        name, size, kind = header
        if kind in LEADING:
            leading |= leading_fields(kind, os.pread(descriptor, min(size, MAX_LEADING), offset))
            offset += whole_blocks(size)
        elif kind == tarfile.GNUTYPE_SPARSE or "sparse" in leading:
            if (sparse := open_entry(os.pread(descriptor, MAX_LEADING, start))) is not None:
                yield sparse[0].name, kind, SparseSpan(start, sparse[1].offset)
                offset = start + sparse[1].offset
            leading = {}
        else:
            size = int(leading.get("size", size))
            yield leading.get("path", name), kind, (offset, size)
            if kind in tarfile.REGULAR_TYPES or kind not in tarfile.SUPPORTED_TYPES:  # folders and links have no bytes
                offset += whole_blocks(size)
            leading = {}


def whole_blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def read_header(block: bytes) -> tuple[str, int, bytes] | None:
    """Name, size and kind of the member whose ustar header this is; None if checksum or size say that it is none."""
    try:
        if sum(block) - sum(block[148:156]) + 8 * ord(" ") != int(block[148:156].rstrip(b" \0"), 8):
            return None
        # a size that octal digits cannot hold is a number of 11 bytes behind a set bit
        is_base_256 = block[124] == 0x80
        size = int.from_bytes(block[125:136], "big") if is_base_256 else int(block[124:136].rstrip(b" \0") or b"0", 8)
    except ValueError:
        return None
    if size < 0:
        return None
    names = [block[:100]] if block[257:263] != b"ustar\0" else [block[345:500], block[:100]]
    name = b"/".join(part for part in (name.partition(b"\0")[0] for name in names) if part)
    return name.decode("utf-8", "replace"), size, block[156:157]


def leading_fields(kind: bytes, content: bytes) -> dict[str, str]:
    """The "path" and "size" that a header of its own gives to the next member, and "sparse" where that has holes."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": content.partition(b"\0")[0].decode("utf-8", "replace")}
    fields: dict[str, str] = {}
    position = 0
    while kind in PAX and (record := RECORD.match(content, position)) is not None and int(record[1]):
        name, value = record[2], content[record.end() : position + int(record[1]) - 1]
        if name == b"path":
            fields["path"] = value.decode("utf-8", "replace")
        elif name == b"size":
            fields["size"] = value.decode() if re.fullmatch(rb"\d{1,19}", value) else "0"
        elif name.startswith(b"GNU.sparse."):
            fields["sparse"] = ""
        position += int(record[1])
    return fields


def open_entry(content: bytes) -> tuple[tarfile.TarInfo, tarfile.TarFile] | None:
    """The first member of a tar's bytes, and its tar, whose `offset` is the member's end; None where there is none."""
    if LONG_NUMBER.search(content[:MAX_LEADING]):
        return None
    try:
        tar = tarfile.TarFile(fileobj=io.BytesIO(content), encoding="utf-8", errors="replace")
        member = tar.next()
    except Exception:  # whatever `tarfile` raises on damaged headers
        return None
    return None if member is None or tar.offset < BLOCK else (member, tar)


def unpack_sparse(content: bytes) -> bytes:
    """A member with holes, its headers included => its bytes. ValueError where the map of its holes is none."""
    member: Any = (open_entry(content) or [None])[0]
    if member is None or not 0 <= member.size <= MAX_SPARSE:
        raise ValueError("no member, or an endless one")
    whole, end, position = bytearray(member.size), 0, member.offset_data
    for begin, size in [(0, member.size)] if member.sparse is None else member.sparse:
        if size == 0:
            continue
        if not end <= begin < begin + size <= member.size or position + size > len(content):
            raise ValueError("a damaged map of holes")
        whole[begin : begin + size] = content[position : position + size]
        end, position = begin + size, position + size
    return bytes(whole)
