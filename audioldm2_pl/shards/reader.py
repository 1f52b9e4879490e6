"""One split's shards as clips: where each clip's members lie, and what they decode to.

Nothing is trusted. A tar's damaged headers are stepped over, members other than SOUNDS, json, txt and npy are not
looked at, nothing is unpickled, and a clip that cannot be had in full raises BadClip with a key and a reason.
Damage within a FLAC shows in the checksums of its frames; a changed letter inside a caption shows only in the shard's
sha256, which `python -m data.verify` compares.
"""

from __future__ import annotations

import io
import json
import os
import re
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile

from audioldm2_pl.audio import choose_channel, is_silent
from audioldm2_pl.errors import UserError, reason_of
from audioldm2_pl.shards.remote import RemoteFolder, is_remote
from audioldm2_pl.shards.tar_index import TWICE, Members, read_table

SHARD_FORMAT = 1  # of index.json
SOUNDS = {  # suffix -> libsndfile's names of what it may hold; of several members the first here is read
    "flac": ("FLAC",),
    "wav": ("WAV", "WAVEX"),
    "mp3": ("MP3",),
    "ogg": ("OGG",),
    "opus": ("OGG",),
}
MEMBERS = (*SOUNDS, "json", "txt")  # and <name>.npy
OWN_FIELDS = ("waveform", "sample_rate", "features", "key", "id")  # what the reader says of a clip, not its JSON
TEXT_FIELDS = ("text", "captions", "transcript")  # no array of these names is read
CAPTION_LIKE = re.compile("caption|text|descri|prompt|sentence", re.IGNORECASE)
MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz
MAX_SAMPLES = 2**29  # of a clip's channels together: 3 h at 48 kHz, 2 GiB
MAX_CLIPS = 10_000_000  # of a shard
TABLES_KEPT = 200_000  # clips whose places in the tars are remembered, about 60 MB

Table = list[tuple[str | None, Members]]  # a shard's clips; key None stands for one that the tar has lost


class BadClip(Exception):
    """A clip that cannot be used. `reason` is a phrase to count by, details in brackets behind it."""

    def __init__(self, key: str | None, reason: str):
        super().__init__(f"clip {key or 'without a name'} cannot be read: {reason}")
        self.key = key
        self.reason = reason


class ShardFolder:
    """One split's shards: its index, and each clip by number. A URL's shards are read from copies (`RemoteFolder`)."""

    made_by = "python -m data.<corpus>"

    def __init__(self, path: str | Path, remote: RemoteFolder | None = None):
        if remote is None and is_remote(path):
            remote = RemoteFolder(str(path))
        self.remote = remote
        self.path = str(path).rstrip("/") if remote else Path(path)
        self.index = self.read_index()
        self.counts = [shard["num_clips"] for shard in self.index["shards"]]
        self.dealt = self.counts  # so many of each shard's clips, its first, are trained on: see `clip_order.deal`
        self.sample_rate: int | None = self.index.get("sample_rate")
        self.longest_seconds: float = self.index.get("longest_seconds", float("inf"))
        self.advice = "check the shards there" if remote else f"check the folder with python -m data.verify {self.path}"
        self.tables: OrderedDict[int, Table] = OrderedDict()
        self.opened: tuple[int, BinaryIO] | None = None  # the shard last read from

    def read_index(self) -> dict[str, Any]:
        place = f"{self.path}/index.json"
        if self.remote:
            content = self.remote.read("index.json")
        elif Path(place).is_file():
            content = Path(place).read_bytes()
        else:
            raise UserError(f"{self.path}: no shards here (index.json is missing); write them with {self.made_by}")
        try:
            index = json.loads(content)
            if index.get("format", SHARD_FORMAT) == SHARD_FORMAT:
                check_index(index)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            said = f" ({error})" if type(error) is ValueError else ""
            raise UserError(f"{place}: not the index of a folder of shards{said}; write the shards again") from None
        if index.get("format") != SHARD_FORMAT:
            raise UserError(
                f"{place}: format {index.get('format')!r}, this version reads {SHARD_FORMAT}; write it anew"
            )
        return index

    def __len__(self) -> int:
        return sum(self.dealt)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "opened": None}  # another process opens its own

    def shard_path(self, shard: int) -> str:
        return f"{self.path}/{self.index['shards'][shard]['name']}"

    def open(self, shard: int) -> BinaryIO:
        """The shard's bytes, to be read with `os.pread`, which moves no pointer that forked processes share."""
        if self.opened is None or self.opened[0] != shard:
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
            self.opened = (shard, file)
        return self.opened[1]

    def prefetch(self, shard: int) -> None:
        """Starts to fetch a remote shard that will soon be wanted; a local one needs nothing."""
        if self.remote:
            entry = self.index["shards"][shard]
            self.remote.prefetch(entry["name"], entry.get("sha256", ""))

    def table(self, shard: int) -> Table:
        """As many clips as index.json counts, those that damage has hidden at the end with key None.

        Raises UserError where the tar is missing, holds more clips than that, or carries pickles.
        """
        if shard not in self.tables:
            path, count = self.shard_path(shard), self.counts[shard]
            file = self.open(shard)
            try:
                clips: Table = list(read_table(file, path, MEMBERS).items())  # type: ignore[arg-type]
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({error}); {self.advice}") from None
            whole = sum(self.lack(members) is None for _, members in clips)
            if whole > count:
                raise UserError(f"{path}: {whole} clips where index.json says {count}; {self.advice}")
            if len(clips) > count:  # a name that damage has changed stands beside the clip's other member
                clips = [clip for clip in clips if self.lack(clip[1]) is None]
            self.tables[shard] = clips + [(None, {})] * (count - len(clips))
            while sum(map(len, self.tables.values())) > TABLES_KEPT and len(self.tables) > 1:
                self.tables.popitem(last=False)
        return self.tables[shard]

    def clips(self, shard: int) -> list[tuple[str, Members]]:
        """A shard's clips: key, and where its members lie. Raises UserError unless all of them are whole."""
        size = os.fstat(self.open(shard).fileno()).st_size
        clips = [
            (key, members)
            for key, members in self.table(shard)
            if key is not None and self.lack(members) is None and all(sum(place) <= size for place in members.values())
        ]
        if len(clips) != self.counts[shard]:
            raise UserError(
                f"{self.shard_path(shard)}: {len(clips)} clips where index.json says {self.counts[shard]}; "
                f"{self.advice}"
            )
        return clips

    def load(self, shard: int, clip: int, silent: bool = False) -> dict[str, Any]:
        """One clip: {"key", "waveform" (T,) at its own rate, "sample_rate", and the JSON's fields}, or BadClip.

        A txt member is the caption where the JSON has none; an npy member x.npy becomes the field x. With `silent`
        the clip comes without its sound.
        """
        key, members = self.place(shard, clip)
        sounds = [suffix for suffix in SOUNDS if suffix in members]
        fields: dict[str, Any] = {}
        for suffix in sorted(members):
            if suffix not in SOUNDS or (suffix == sounds[0] and not silent):
                fields |= self.fields(key, suffix, self.content(shard, key, members[suffix]))
        if "txt" in members and "text" not in fields and "captions" not in fields:
            fields["text"] = fields["txt"]
        self.check(key, fields)
        return {**fields, "key": key}

    def lack(self, members: Members) -> str | None:
        """What a clip lacks to be one, or None."""
        return missing(members)

    def place(self, shard: int, clip: int) -> tuple[str, Members]:
        """A clip's key and where its members lie, or BadClip."""
        key, members = self.table(shard)[clip]
        if key is None:
            raise BadClip(None, "lost in a damaged or cut off tar")
        lack = self.lack(members)
        if lack is not None:
            raise BadClip(key, lack)
        return key, members

    def content(self, shard: int, key: str, place: tuple[int, int]) -> bytes:
        """A member's bytes, or BadClip."""
        offset, size = place
        content = os.pread(self.open(shard).fileno(), size, offset)
        if len(content) < size:
            raise BadClip(key, "cut off")
        return content

    def fields(self, key: str, suffix: str, content: bytes) -> dict[str, Any]:
        """What a member's bytes hold, or BadClip."""
        try:
            return self.decode(suffix, content)
        except Exception as error:  # whatever a decoder raises on damaged bytes
            raise BadClip(key, f"damaged {suffix} ({reason_of(error)})") from None

    def decode(self, suffix: str, content: bytes) -> dict[str, Any]:
        return decode(suffix, content, self.longest_seconds)

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

    def load_audible(self, shard: int, clip: int, silent: bool = False) -> dict[str, Any]:
        """`load` for those who train: BadClip, too, where a clip's sound is silence."""
        fields = self.load(shard, clip, silent)
        if "waveform" in fields and is_silent(fields["waveform"]):
            raise BadClip(fields["key"], "silent")
        return fields

    def read(self, shard: int, clip: int) -> dict[str, Any]:
        """`load` for those who need every clip: a bad one is a UserError."""
        try:
            return self.load(shard, clip)
        except BadClip as bad:
            raise UserError(f"{self.shard_path(shard)}: {bad}; {self.advice}") from None


def check_index(index: dict[str, Any]) -> None:
    """ValueError, or what a foreign type raises, where an index cannot be one."""
    for shard in index["shards"]:
        if not re.fullmatch(r"\w[\w.-]*", shard["name"]):
            raise ValueError(f"shard {shard['name']!r} is no file of this folder")
        if type(shard["num_clips"]) is not int or not 0 <= shard["num_clips"] <= MAX_CLIPS:
            raise ValueError(f"{shard['name']} of {shard['num_clips']} clips, which is no number up to {MAX_CLIPS:,}")
    if (rate := index.get("sample_rate")) is not None and not MIN_RATE <= rate <= MAX_RATE:
        raise ValueError(f"sample_rate {rate} is not from {MIN_RATE} to {MAX_RATE} Hz")
    for entry in (index, *index["shards"]):
        for name in ("seconds", "longest_seconds"):
            if not entry.get(name, 0) >= 0:
                raise ValueError(f"{name} {entry[name]}")


def missing(members: Members) -> str | None:
    """What a clip lacks to be one, or None."""
    if TWICE in members.values():
        return "a member that comes twice"
    if not any(suffix in members for suffix in SOUNDS):
        return "no sound member"
    return None if "json" in members or "txt" in members else "no json member"


def captions_of(fields: dict[str, Any]) -> list[str]:
    """The captions that are not blank, "text" or a list; [""] without either field. ValueError where none is left."""
    if "captions" not in fields and "text" not in fields:
        return [""]
    captions = fields.get("captions") or fields.get("text", "")
    captions = captions if isinstance(captions, list) else [captions]
    if not all(map(is_text, captions)):
        raise ValueError("caption that is no text")
    captions = [caption for caption in captions if any(c.isprintable() and not c.isspace() for c in caption)]
    if not captions:
        raise ValueError("empty caption")
    return captions


def is_text(value: Any) -> bool:
    """Whether this is a string that can be written: JSON's may hold halves of characters."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def tell_unread_caption(folder: str | Path, fields: dict[str, Any]) -> None:
    """Warns where a clip has no caption, but one under a name that is not read; Python shows it once for a folder."""
    names = [name for name in fields if name not in TEXT_FIELDS and CAPTION_LIKE.search(name)]
    if names and "captions" not in fields and "text" not in fields:
        warnings.warn(
            f"{folder}: clips have no caption, but {names[0]!r} in their JSON, which is not read; call it 'text'",
            stacklevel=1,
        )


def decode(suffix: str, content: bytes, longest_seconds: float) -> dict[str, Any]:
    """The fields that a member holds. Whatever a decoder raises means that the bytes are damaged."""
    if suffix in SOUNDS:
        return decode_sound(suffix, content, longest_seconds)
    if suffix == "json":
        return decode_json(content)
    if suffix == "txt":
        return {"txt": content.decode("utf-8").strip()}
    name, array = suffix.rpartition(".")[0] or "npy", decode_array(content)
    return {} if name in (*OWN_FIELDS, *TEXT_FIELDS) else {name: array}


def decode_array(content: bytes) -> np.ndarray:
    array = np.load(io.BytesIO(content), allow_pickle=False)
    if not np.isfinite(array).all():
        raise ValueError("holds no finite numbers")
    return array


def decode_sound(suffix: str, content: bytes, longest_seconds: float) -> dict[str, Any]:
    with soundfile.SoundFile(io.BytesIO(content)) as file:
        if file.format not in SOUNDS[suffix]:
            raise ValueError(f"holds {file.format}")
        if not MIN_RATE <= file.samplerate <= MAX_RATE:
            raise ValueError(f"a rate of {file.samplerate} Hz")
        if file.frames * file.channels > MAX_SAMPLES:
            raise ValueError(f"{file.frames} samples")
        if file.frames > (longest_seconds + 0.001) * file.samplerate:  # the index rounds to milliseconds
            raise ValueError(f"{file.frames / file.samplerate:.2f} s, longer than index.json says")
        waveform = file.read(dtype="float32", always_2d=True)
        if len(waveform) != file.frames:
            raise ValueError(f"{len(waveform)} of {file.frames} samples")
        return {"waveform": choose_channel(waveform), "sample_rate": file.samplerate}


def decode_json(content: bytes) -> dict[str, Any]:
    fields = json.loads(content)
    if not isinstance(fields, dict):
        raise ValueError("no fields of a clip")
    return {
        name: value
        for name, value in fields.items()
        if name not in OWN_FIELDS and (value is not None or name not in TEXT_FIELDS)
    }
