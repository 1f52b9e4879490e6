"""One split's shards as clips, by number: where each clip's members lie, and what they decode to.

A clip that cannot be had in full raises BadClip with a key and a reason.
"""

from __future__ import annotations

import io
import json
import os
import warnings
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from audioldm2_pl.audio import is_silent
from audioldm2_pl.errors import UserError, reason_of
from audioldm2_pl.seeds import seed_of
from audioldm2_pl.shards.crop import LONG_BYTES, PIECE_BYTES, SEEKABLE_SUFFIXES, Crop, MemberFile
from audioldm2_pl.shards.format import (
    SHARD_FORMAT,
    SOUNDS,
    TEXTS,
    BadClip,
    captions_of,
    check_index,
    decode,
    decode_sound,
    is_text,
    picture_suffixes,
    read_members,
    split_name,
)
from audioldm2_pl.shards.members import MEMBERS_FILE, TWICE, Members, MemberTable, pack, read_block
from audioldm2_pl.shards.remote import RemoteFolder, is_remote
from audioldm2_pl.shards.tar import BLOCK, Span, SparseSpan, read_header, unpack_sparse

CLIPS_CACHED = 1_000_000  # whose members' offsets are remembered, about 50 MB
OPEN_SHARDS = 16  # of a folder at a time; `ShardFolder.num_open` says otherwise
NAME_ROOM = 90  # characters of a name that a header is sure to hold


class ShardFolder:
    """One split's shards: its index, and each clip by number. A URL's shards are read from copies (`RemoteFolder`)."""

    made_by = "python -m data.<corpus>"

    def __init__(self, path: str | Path, remote: RemoteFolder | None = None):
        if remote is None and is_remote(path):
            remote = RemoteFolder(str(path))
        self.remote = self.index_remote = remote
        self.path = str(path).rstrip("/") if remote else Path(path)
        self.index = self.read_index()
        self.location = self.index.get("location", self.path)  # of the tars
        if "location" in self.index:
            if self.remote and not is_remote(self.location):
                raise UserError(f"{self.path}/index.json: names {self.location}, a folder of another machine")
            self.remote = RemoteFolder(self.location) if is_remote(self.location) else None
        self.counts = [shard["num_clips"] for shard in self.index["shards"]]
        self.selected = self.counts  # so many of each shard's clips, its first, are trained on: see `order.select`
        self.sample_rate: int | None = self.index.get("sample_rate")
        self.longest_seconds: float = self.index.get("longest_seconds", float("inf"))
        self.advice = "check the shards there" if remote else f"check the folder with python -m data.verify {self.path}"
        self.tables: OrderedDict[int, MemberTable] = OrderedDict()
        self.opened: OrderedDict[int, BinaryIO] = OrderedDict()  # the shards last read from
        self.num_open = OPEN_SHARDS
        self.places: np.ndarray | None = None  # members.bin (bytes,), which processes share; empty where there is none

    def read_index(self) -> dict[str, Any]:
        path = f"{self.path}/index.json"
        if self.remote:
            content = self.remote.read("index.json")
        elif Path(path).is_file():
            content = Path(path).read_bytes()
        else:
            raise UserError(f"{self.path}: no shards here (index.json is missing); write them with {self.made_by}")
        try:
            index = json.loads(content)
            if index.get("format", SHARD_FORMAT) == SHARD_FORMAT:
                check_index(index)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = f" ({error})" if type(error) is ValueError else ""
            raise UserError(f"{path}: not the index of a folder of shards{reason}; write the shards again") from None
        if index.get("format") != SHARD_FORMAT:
            raise UserError(f"{path}: format {index.get('format')!r}, this version reads {SHARD_FORMAT}; write it anew")
        return index

    def __len__(self) -> int:
        return sum(self.selected)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "opened": OrderedDict(), "places": None}  # another process opens its own

    def shard_path(self, shard: int) -> str:
        return f"{str(self.location).rstrip('/')}/{self.index['shards'][shard]['name']}"

    def open(self, shard: int) -> BinaryIO:
        """The shard's bytes, to be read with `os.pread`, which moves no pointer that forked processes share."""
        if shard not in self.opened:
            entry = self.index["shards"][shard]
            try:
                if self.remote:
                    file = self.remote.open(entry["name"], entry.get("sha256", ""))
                elif os.path.exists(self.shard_path(shard)) and not os.path.isfile(self.shard_path(shard)):
                    raise OSError("no regular file")  # to open a pipe would wait for its writer
                else:
                    file = open(self.shard_path(shard), "rb", buffering=0)  # noqa: SIM115
            except OSError as error:
                raise UserError(f"{self.shard_path(shard)}: cannot be read ({error}); {self.advice}") from None
            self.opened[shard] = file
            while len(self.opened) > self.num_open:
                self.opened.popitem(last=False)
        self.opened.move_to_end(shard)
        return self.opened[shard]

    def prefetch(self, shard: int) -> None:
        """Starts to fetch a remote shard that will soon be wanted; a local one needs nothing."""
        if self.remote:
            entry = self.index["shards"][shard]
            self.remote.prefetch(entry["name"], entry.get("sha256", ""))

    def table(self, shard: int) -> MemberTable:
        """As many clips as index.json counts, those that damage has hidden at the end with key None.

        Raises UserError where the tar is missing, or its headers are read and it holds more clips than that, or
        carries pickles.
        """
        if shard not in self.tables:
            table = self.stored_table(shard)
            self.tables[shard] = MemberTable(pack(self.find_clips(shard))) if table is None else table
            while sum(map(len, self.tables.values())) > CLIPS_CACHED and len(self.tables) > 1:
                self.tables.popitem(last=False)
        self.tables.move_to_end(shard)
        return self.tables[shard]

    def stored_table(self, shard: int) -> MemberTable | None:
        """A shard's table out of members.bin; None where that has none, or that of another tar."""
        entry = self.index["shards"][shard]
        if "members" not in entry:
            return None
        if self.places is None:
            self.places = self.open_places()
        table = read_block(self.places, entry["members"])
        if table is None or len(table) != self.counts[shard]:
            return None
        return table if self.is_of(table, shard) else None

    def open_places(self) -> np.ndarray:
        """members.bin (bytes,), which stays on the disk."""
        path = f"{self.path}/{MEMBERS_FILE}"
        try:
            if self.index_remote:
                version = seed_of([shard.get("members") for shard in self.index["shards"]])
                with self.index_remote.open(MEMBERS_FILE, str(version)) as file:
                    return np.memmap(file, np.uint8, "r")
            return np.memmap(path, np.uint8, "r")
        except (OSError, ValueError, UserError) as error:
            warnings.warn(f"{path}: cannot be read ({error}); the headers of the tars are read instead", stacklevel=1)
            return np.zeros(0, np.uint8)

    def is_of(self, table: MemberTable, shard: int) -> bool:
        """Whether a table is of this tar: by its size and the headers of the first and last clip."""
        descriptor = self.open(shard).fileno()
        if os.fstat(descriptor).st_size != self.index["shards"][shard].get("bytes"):
            return False
        for key, members in (table[0], table[-1]) if len(table) else ():
            suffix, span = next(iter(members.items()), ("", TWICE))
            if key is None or span == TWICE or isinstance(span, SparseSpan) or len(key) > NAME_ROOM:
                continue
            header = read_header(os.pread(descriptor, BLOCK, max(0, span[0] - BLOCK)))
            if header is None or split_name(header[0], bool(self.index.get("last_dot"))) != (key, suffix):
                return False
        return True

    def find_clips(self, shard: int) -> list[tuple[str | None, Members]]:
        """A shard's clips by its headers."""
        path = self.shard_path(shard)
        file = self.open(shard)
        try:
            clips = list(read_members(file, path, bool(self.index.get("last_dot"))).items())
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error}); {self.advice}") from None
        return self.counted(clips, self.counts[shard], path)

    def counted(self, clips: Iterable[tuple[str | None, Members]], count: int, path: str) -> list[Any]:
        """As many (key, members) as index.json counts, of those that a tar holds. UserError where it holds more."""
        clips = list(clips)
        whole = sum(self.missing(members) is None for _, members in clips)
        if whole > count:
            raise UserError(f"{path}: {whole} clips where index.json says {count}; {self.advice}")
        if len(clips) > count:  # a name that damage has changed stands beside the clip's other member
            clips = [clip for clip in clips if self.missing(clip[1]) is None]
        return [*clips, *[(None, {})] * (count - len(clips))]

    def load(
        self, shard: int, clip: int, with_sound: bool = True, with_images: bool = False, crop: Crop | None = None
    ) -> dict[str, Any]:
        """One clip: {"key", "waveform" (T,) at its own rate, "sample_rate", and the JSON's fields}, or BadClip.

        The caption is the index's "caption_key" of the JSON, else its "text" or "captions", else the txt member, else
        the cls member where it is a name; an npy member x.npy becomes the field x. Without its sound
        a clip is not decoded; of a crop no more than that has to be. With images, and where it has some, there are
        "images", uint8 (H, W, 3) each, and "image_id", a number that clips of the same pictures share.
        """
        key, members = self.locate(shard, clip)
        sounds = [suffix for suffix in SOUNDS if suffix in members]
        pictures = picture_suffixes(members)
        contents = [self.content(shard, key, members[suffix]) for suffix in pictures if with_images]
        fields: dict[str, Any] = {}
        if contents:
            images = [self.fields(key, suffix, content)["image"] for suffix, content in zip(pictures, contents)]
            fields = {"images": images, "image_id": seed_of(*sorted(map(zlib.crc32, contents)))}
        for suffix in sorted(members.keys() - pictures):
            if suffix not in SOUNDS:
                fields |= self.fields(key, suffix, self.content(shard, key, members[suffix]))
            elif suffix == sounds[0] and with_sound:
                fields |= self.sound(shard, key, suffix, members[suffix], crop)
        self.choose_caption(members, fields)
        self.check(key, fields)
        return {**fields, "key": key}

    def sound(self, shard: int, key: str, suffix: str, span: Span, crop: Crop | None) -> dict[str, Any]:
        """The waveform that a member holds, or a crop of it, and its rate, or BadClip."""
        is_long = crop is not None and suffix in SEEKABLE_SUFFIXES and span[1] > LONG_BYTES
        source: bytes | BinaryIO
        if is_long and not isinstance(span, SparseSpan) and self.is_there(shard, span):
            source = io.BufferedReader(MemberFile(self.open(shard), span), PIECE_BYTES)
        else:
            source = self.content(shard, key, span)
        try:
            return decode_sound(suffix, source, self.longest_seconds, crop)
        except Exception as error:  # whatever a decoder raises on damaged bytes
            raise BadClip(key, f"damaged {suffix} ({reason_of(error)})") from None

    def choose_caption(self, members: Members, fields: dict[str, Any]) -> None:
        """Puts a clip's caption under "text", where it is not there yet and no "captions" are."""
        caption = fields.get(self.index.get("caption_key", "text"))
        if "caption_key" in self.index and caption is not None:
            fields.pop("captions", None)
            fields["text"] = caption
        if "text" in fields or "captions" in fields:
            return
        if "txt" in members:
            fields["text"] = fields["txt"]
        elif "cls" in members and is_text(fields["cls"]):
            fields.setdefault("labels", [fields["cls"]])
            if not fields["cls"].isdecimal():
                fields["text"] = fields["cls"].replace("_", " ")

    def missing(self, members: Members) -> str | None:
        """What keeps members from being a clip, or None."""
        if TWICE in members.values():
            return "a member that comes twice"
        if not any(suffix in members for suffix in SOUNDS):
            return "no sound member"
        has_text = any(suffix in members for suffix in TEXTS)
        return None if has_text or self.index.get("without_text") else "no json member"

    def locate(self, shard: int, clip: int) -> tuple[str, Members]:
        """A clip's key and where its members lie, or BadClip."""
        key, members = self.table(shard)[clip]
        if key is None:
            raise BadClip(None, "lost in a damaged or cut off tar")
        if reason := self.missing(members):
            raise BadClip(key, reason)
        return key, members

    def is_there(self, shard: int, span: Span) -> bool:
        """Whether the tar is long enough, so that no room is made for bytes that are not there."""
        return sum(span) <= os.fstat(self.open(shard).fileno()).st_size

    def content(self, shard: int, key: str, span: Span) -> bytes:
        """A member's bytes, or BadClip."""
        offset, size = span
        content = os.pread(self.open(shard).fileno(), size, offset) if self.is_there(shard, span) else b""
        if len(content) < size:
            raise BadClip(key, "cut off")
        try:
            return unpack_sparse(content) if isinstance(span, SparseSpan) else content
        except ValueError as error:
            raise BadClip(key, f"damaged sparse member ({error})") from None

    def fields(self, key: str, suffix: str, content: bytes) -> dict[str, Any]:
        """What a member's bytes hold, or BadClip."""
        try:
            return self.decode(suffix, content)
        except Exception as error:  # whatever a decoder raises on damaged bytes
            raise BadClip(key, f"damaged {suffix} ({reason_of(error)})") from None

    def decode(self, suffix: str, content: bytes) -> dict[str, Any]:
        return decode(suffix, content)

    def check(self, key: str, fields: dict[str, Any]) -> None:
        """BadClip where a decoded clip is none."""
        try:
            captions_of(fields)
        except ValueError as error:
            raise BadClip(key, str(error)) from None
        if not is_text(fields.get("transcript", "")):
            raise BadClip(key, "transcript that is no text")
        if "waveform" not in fields:
            return
        waveform, rate = fields["waveform"], fields["sample_rate"]
        if self.sample_rate is not None and rate != self.sample_rate:
            raise BadClip(key, f"wrong rate ({rate} Hz where index.json says {self.sample_rate})")
        if len(waveform) == 0:
            raise BadClip(key, "no samples")
        # the product makes no copy; where it overflows the samples are looked at one by one
        if not np.isfinite(np.dot(waveform, waveform)) and not np.isfinite(waveform).all():
            raise BadClip(key, "NaN or infinite samples")

    def load_audible(
        self, shard: int, clip: int, with_sound: bool = True, with_images: bool = False, crop: Crop | None = None
    ) -> dict[str, Any]:
        """`load` for those who train: BadClip, too, where a clip's sound is silence, and not its crop alone."""
        fields = self.load(shard, clip, with_sound, with_images, crop)
        if "waveform" in fields and is_silent(fields["waveform"]):
            whole = fields if crop is None else self.load(shard, clip)
            if is_silent(whole["waveform"]):
                raise BadClip(fields["key"], "silent")
        return fields

    def clips_without_sound(self) -> Iterator[dict[str, Any]]:
        """The fields of every clip that is none of the bad ones; nothing is decoded."""
        for shard, count in enumerate(self.counts):
            for clip in range(count):
                with suppress(BadClip):
                    yield self.load(shard, clip, with_sound=False)

    def read(self, shard: int, clip: int) -> dict[str, Any]:
        """`load` for those who need every clip: a bad one is a UserError."""
        try:
            return self.load(shard, clip)
        except BadClip as bad:
            raise UserError(f"{self.shard_path(shard)}: {bad}; {self.advice}") from None
