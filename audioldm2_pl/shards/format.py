"""The shard format, read from anybody's files: the index, the members of a tar, and what a member holds.

A split is a folder of uncompressed tars and an index.json:

    {"format": 1, "sample_rate": 16000, "num_clips": N, "seconds": S, "longest_seconds": l,
     "shards": [{"name": "000000.tar", "num_clips": n, "seconds": s, "sha256": "...", "bytes": b, "members": [...]}]}

`members.bin` beside it tells where each clip lies (see `members`); without it, or where a tar has another size than
"bytes", the headers of the tar are read.

A clip is two members, `<key>.flac` (16-bit mono) and `<key>.json` with "text" or "captions" (a list), and, where
known, "transcript", "labels", "source", "licence", "start", "duration". Of other writers' shards wav, mp3, ogg and
opus, txt for the caption, cls for a label, lists under "text" and folders in names are read, too: keys and suffixes are
webdataset's. Pictures of what is heard, `<key>.png` and `<key>.jpg` or several, `<key>.0.png`, are decoded where they
are asked for.

The index that `python -m data.index` writes for other writers' shards may also hold

    "location"       the folder or URL of the tars, where they do not lie beside index.json
    "caption_key"    the field of a clip's JSON that is its caption, such as "prompt"
    "last_dot"       true: a member's suffix begins at the last dot of its name, and others become "-" in the key
    "without_text"   true: a clip may be a sound alone

Nothing is trusted. A tar's damaged headers are stepped over, other members are not looked at, nothing is unpickled.
Damage within a FLAC shows in the checksums of its frames; a changed letter inside a caption shows only in the shard's
sha256, which `python -m data.verify` compares.
"""

from __future__ import annotations

import io
import json
import posixpath
import re
import tarfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from audioldm2_pl.audio import choose_channel
from audioldm2_pl.errors import UserError
from audioldm2_pl.media import PICTURES, decode_picture
from audioldm2_pl.mp3 import open_sound
from audioldm2_pl.shards.crop import Crop, read_part
from audioldm2_pl.shards.members import TWICE, Members
from audioldm2_pl.shards.tar import read_entries

SHARD_FORMAT = 1  # of index.json
SOUNDS = {  # suffix -> libsndfile's names of what it may hold; of several members the first here is read
    "flac": ("FLAC",),
    "wav": ("WAV", "WAVEX"),
    "mp3": ("MP3",),
    "ogg": ("OGG",),
    "opus": ("OGG",),
}
TEXTS = ("json", "txt", "cls")  # one of them belongs to a clip
MEMBERS = (*SOUNDS, *TEXTS)  # and <name>.npy
# set by the reader, never by a clip's JSON
OWN_FIELDS = ("waveform", "sample_rate", "features", "key", "id", "images", "image", "image_id")
TEXT_FIELDS = ("text", "captions", "transcript")  # no array of these names is read
CAPTION_LIKE = re.compile("caption|text|descri|prompt|sentence", re.IGNORECASE)
MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz
MAX_SAMPLES = 2**29  # of a clip's channels together: 3 h at 48 kHz, 2 GiB
MAX_CLIPS = 10_000_000  # of a shard
REFUSED = ("pickle", "pkl", "pyd", "pt", "pth")  # members that run code when they are loaded


class BadClip(Exception):
    """A clip that cannot be used. `reason` is a phrase to count by, details in brackets behind it."""

    def __init__(self, key: str | None, reason: str):
        super().__init__(f"clip {key or 'without a name'} cannot be read: {reason}")
        self.key = key
        self.reason = reason


def check_index(index: dict[str, Any]) -> None:
    """ValueError, or what a foreign type raises, where an index cannot be one."""
    for shard in index["shards"]:
        if not re.fullmatch(r"\w[\w.-]*", shard["name"]):
            raise ValueError(f"shard {shard['name']!r} is no file of this folder")
        if type(shard["num_clips"]) is not int or not 0 <= shard["num_clips"] <= MAX_CLIPS:
            raise ValueError(f"{shard['name']} of {shard['num_clips']} clips, which is no number up to {MAX_CLIPS:,}")
    location, caption_key = index.get("location"), index.get("caption_key", "text")
    if location is not None and not re.match(r"/|\w+://", location):
        raise ValueError(f"location {location!r} is neither an absolute path nor a URL")
    if type(caption_key) is not str:
        raise ValueError(f"caption_key {caption_key!r} is no name")
    if (rate := index.get("sample_rate")) is not None and not MIN_RATE <= rate <= MAX_RATE:
        raise ValueError(f"sample_rate {rate} is not from {MIN_RATE} to {MAX_RATE} Hz")
    for entry in (index, *index["shards"]):
        for name in ("seconds", "longest_seconds", "num_pictures"):
            if not entry.get(name, 0) >= 0:
                raise ValueError(f"{name} {entry[name]}")
    for shard in index["shards"]:
        place = shard.get("members", [0, 0, 0])
        numbers = [*place, shard.get("bytes", 0)]
        if len(place) != 3 or any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
            raise ValueError(f"{shard['name']}: members {place}, bytes {numbers[-1]!r}")
    if type(index.get("num_clips", 0)) is not int:
        raise ValueError(f"num_clips {index['num_clips']!r} is no number")
    for name in ("skipped", "changed"):
        listed = index.get(name, [])
        if type(listed) is not list or not all({"key", "reason"} <= dict(clip).keys() for clip in listed):
            raise ValueError(f"{name} is no list of clips with a reason each")


def split_name(name: str, last_dot: bool = False) -> tuple[str, str]:
    """A member's key and suffix, which begins at the first dot of the file's own name: "./v1.0/a.FLAC" => "v1.0/a",
    "flac"; or at its last: "a.b.flac" => "a-b", "flac". The key is empty for hidden files. No key leads out of a folder
    that it is written to."""
    folder, base = posixpath.split(posixpath.normpath(f"/{name.lstrip('/')}"))
    stem, _, suffix = base.rpartition(".") if last_dot else base.partition(".")
    stem = "" if base.startswith(".") else stem.replace(".", "-")
    return posixpath.join(folder, stem).lstrip("/") if stem else "", suffix.lower()


def read_members(file: BinaryIO, path: str, last_dot: bool = False) -> dict[str, Members]:
    """Key -> its members with the suffixes of MEMBERS, npy, and PICTURES, of an open tar that errors call `path`.

    Raises UserError on a member that would have to be unpickled.
    """
    clips: dict[str, Members] = {}
    for name, kind, span in read_entries(file.fileno()):
        key, suffix = split_name(name, last_dot)
        parts = suffix.split(".")
        if any(part in REFUSED for part in parts):
            raise UserError(f"{path}: carries {name}, which could run code when read; leave this shard out")
        if key and kind in tarfile.REGULAR_TYPES and (suffix in MEMBERS or parts[-1] in ("npy", *PICTURES)):
            members = clips.setdefault(key, {})
            members[suffix] = TWICE if suffix in members else span
    return clips


def picture_suffixes(members: Iterable[str]) -> list[str]:
    """Those of a clip's suffixes that are pictures, such as "jpg" and "0.png"."""
    return [suffix for suffix in sorted(members) if suffix.rpartition(".")[2] in PICTURES]


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


def warn_unread_caption(folder: str | Path, fields: dict[str, Any]) -> None:
    """Warns where a clip has no caption, but one under a name that is not read; Python shows it once for a folder."""
    names = [name for name in fields if name not in TEXT_FIELDS and CAPTION_LIKE.search(name)]
    if names and "captions" not in fields and "text" not in fields:
        warnings.warn(
            f"{folder}: clips have no caption, but {names[0]!r} in their JSON, which is not read; call it 'text'",
            stacklevel=1,
        )


def decode(suffix: str, content: bytes) -> dict[str, Any]:
    """The fields that a member holds that is no sound. Whatever a decoder raises means that the bytes are damaged."""
    if suffix == "json":
        return decode_json(content)
    if suffix == "txt":
        return {"txt": content.decode("utf-8").strip()}
    if suffix == "cls":
        return {"cls": content.decode("utf-8").strip()}
    if picture_suffixes([suffix]):
        return {"image": decode_picture(content, PICTURES[suffix.rpartition(".")[2]])}
    name, array = suffix.rpartition(".")[0] or "npy", decode_array(content)
    return {} if name in (*OWN_FIELDS, *TEXT_FIELDS) else {name: array}


def decode_array(content: bytes) -> np.ndarray:
    """An .npy file => its array (...). ValueError where it is not finite, or would have to be unpickled."""
    array = np.load(io.BytesIO(content), allow_pickle=False)
    if not np.isfinite(array).all():
        raise ValueError("holds no finite numbers")
    return array


def decode_sound(
    suffix: str, source: bytes | BinaryIO, longest_seconds: float, crop: Crop | None = None
) -> dict[str, Any]:
    """{"waveform": float32 (T,), the whole or a crop, "sample_rate": Hz}"""
    with open_sound(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
        if file.format not in SOUNDS[suffix]:
            raise ValueError(f"holds {file.format}")
        if not MIN_RATE <= file.samplerate <= MAX_RATE:
            raise ValueError(f"a rate of {file.samplerate} Hz")
        if file.frames * file.channels > MAX_SAMPLES:
            raise ValueError(f"{file.frames} samples")
        if file.frames > (longest_seconds + 0.001) * file.samplerate:  # the index rounds to milliseconds
            raise ValueError(f"{file.frames / file.samplerate:.2f} s, longer than index.json says")
        waveform = crop.read(file) if crop else choose_channel(read_part(file, 0, file.frames))
        return {"waveform": waveform, "sample_rate": file.samplerate}


def decode_json(content: bytes) -> dict[str, Any]:
    fields = json.loads(content)
    if not isinstance(fields, dict):
        raise ValueError("no fields of a clip")
    return {
        name: value
        for name, value in fields.items()
        if name not in OWN_FIELDS and (value is not None or name not in TEXT_FIELDS)
    }
