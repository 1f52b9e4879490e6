"""Indexes shards that another program wrote, so that training reads and resumes them as they are.

    python -m data.index 'shards/train-{000000..000099}.tar'
    python -m data.index 'https://server/train-{000..099}.tar' --output shards/train --caption-key prompt

TARS are files, folders of them, or patterns with {000..099}, {a,b} and *; local, http(s):// or s3://. Clips have a
sound (flac, wav, mp3, ogg, opus) and a text: json, txt or cls; or a sound alone. `index.json`, and `members.bin` with
the places of all clips, are written beside the shards; for shards on a server, or where nothing can be written, to the
folder OUTPUT, which then stands in `data.train`. `audioldm2_pl/shards/format.py` lists the fields.

Every shard is read once: the number and lengths of its clips are counted, and what cannot be read is told. Clips that
are damaged inside stay in the index, and training passes over them.
"""

import argparse
import hashlib
import io
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from audioldm2_pl.atomic import read_json_object
from audioldm2_pl.errors import UserError, reason_of, run_tool
from audioldm2_pl.mp3 import open_sound
from audioldm2_pl.shards.format import (
    CAPTION_LIKE,
    SHARD_FORMAT,
    SOUNDS,
    TEXTS,
    BadClip,
    check_index,
    decode_json,
    picture_suffixes,
    read_members,
)
from audioldm2_pl.shards.members import TWICE, Members, MemberTable, pack
from audioldm2_pl.shards.reader import ShardFolder
from audioldm2_pl.shards.remote import is_remote

from .annotations import COLUMNS, texts_of
from .engines import count_cores, local
from .shard_patterns import find_tars
from .writer import write_index, write_members

WRITER = "data.index"  # stands in the indexes that may be replaced
BLOCK = 1 << 20  # bytes read at a time


class ForeignShards(ShardFolder):
    """Shards without an index."""

    def __init__(self, location: str, names: Sequence[str], last_dot: bool = False):
        self.made = {"shards": [{"name": name, "num_clips": 0} for name in names], "last_dot": last_dot}
        super().__init__(location)

    def read_index(self) -> dict[str, Any]:
        try:
            check_index(self.made)
        except ValueError as error:
            raise UserError(f"{self.path}: {error}; rename it, with letters, digits, '_', '-' and '.' alone") from None
        return self.made

    def members(self, shard: int, last_dot: bool) -> dict[str, Members]:
        return read_members(self.open(shard), self.shard_path(shard), last_dot)

    def kept(self, contents: "ShardContents", entry: dict[str, Any]) -> bytes:
        """The block of a shard's clips that training reads."""
        return pack(self.counted(MemberTable(contents.block), entry["num_clips"], entry["name"]))


@dataclass
class ShardContents:
    """What one shard holds."""

    sha256: str = ""
    num_bytes: int = 0
    block: bytes = b""  # of members.bin, with all that may be clips
    keys: list[str] = field(default_factory=list)  # of the clips with a sound
    seconds: dict[str, float] = field(default_factory=dict)  # by key, of those that can be read
    rates: set[int] = field(default_factory=set)  # Hz
    num_pictures: dict[str, int] = field(default_factory=dict)  # by key
    texts: Counter[str] = field(default_factory=Counter)  # suffix => clips that have it
    fields: Counter[str] = field(default_factory=Counter)  # of the JSON => clips in which it is text
    without_text: list[str] = field(default_factory=list)  # keys
    bad: list[str] = field(default_factory=list)  # what cannot be read
    fault: str | None = None  # why the shard is left out


def read_shard(split: ForeignShards, shard: int) -> ShardContents:
    """Looks through one shard. UserError where it is not there."""
    contents = ShardContents()
    descriptor, offset, digest = split.open(shard).fileno(), 0, hashlib.sha256()
    while block := os.pread(descriptor, BLOCK, offset):
        offset += len(block)
        digest.update(block)
    contents.sha256, contents.num_bytes = digest.hexdigest(), offset
    try:
        clips = split.members(shard, split.made["last_dot"])
    except UserError as error:  # it carries pickles
        contents.fault = str(error)
        return contents
    contents.block = pack(clips.items())
    for key, members in clips.items():
        read_clip(split, shard, key, members, contents)
    if not contents.seconds:
        contents.fault = f"{split.shard_path(shard)}: {no_clips(split, shard, contents, bool(clips))}"
    return contents


def no_clips(split: ForeignShards, shard: int, contents: ShardContents, is_tar: bool) -> str:
    """Why there is no clip in a shard."""
    if contents.bad:
        return f"none of its clips can be read; the first: {contents.bad[0]}"
    if os.pread(split.open(shard).fileno(), 2, 0) == b"\x1f\x8b":
        return "is compressed; unpack it with gunzip"
    return "holds no sounds (flac, wav, mp3, ogg, opus)" if is_tar else "no tar, or none with sounds in it"


def read_clip(split: ForeignShards, shard: int, key: str, members: Members, contents: ShardContents) -> None:
    """Adds a clip's members to what its shard holds."""
    suffix = next((suffix for suffix in SOUNDS if suffix in members), None)
    if suffix is None:
        return
    if TWICE in members.values():
        contents.bad.append(f"{key}: a member comes twice")
        return
    contents.keys.append(key)
    texts = [name for name in TEXTS if name in members]
    contents.texts.update(texts)
    if not texts:
        contents.without_text.append(key)
    contents.num_pictures[key] = len(picture_suffixes(members))
    try:
        seconds, rate = sound_length(suffix, split.content(shard, key, members[suffix]))
        if "json" in members:
            fields = decode_json(split.content(shard, key, members["json"]))
            contents.fields.update(name for name, value in fields.items() if texts_of(value))
    except BadClip as bad:
        contents.bad.append(f"{key}: {bad.reason}")
    except Exception as error:  # whatever a decoder raises on damaged bytes
        contents.bad.append(f"{key}: damaged ({reason_of(error)})")
    else:
        contents.seconds[key] = seconds
        contents.rates.add(rate)


def sound_length(suffix: str, content: bytes) -> tuple[float, int]:
    """Seconds and rate in Hz of a sound by its header. What libsndfile raises means that the bytes are damaged."""
    with open_sound(io.BytesIO(content)) as file:
        if file.format not in SOUNDS[suffix]:
            raise ValueError(f"{suffix} that holds {file.format}")
        return file.frames / file.samplerate, file.samplerate


def choose_dot(split: ForeignShards) -> bool:
    """Whether suffixes begin at the last dot of names, by the first shard that has sounds."""
    for shard in range(len(split.counts)):
        try:
            counts = [sum(not SOUNDS.keys().isdisjoint(members) for members in split.members(shard, rule).values())
                      for rule in (False, True)]  # fmt: skip
        except UserError:
            continue
        if any(counts):
            return counts[1] > counts[0]
    return False


def choose_caption(found: Sequence[ShardContents], caption_key: str | None) -> tuple[str | None, str]:
    """The index's `caption_key`, None for none, and what to say of captions. UserError where no JSON has the field."""
    fields = sum((contents.fields for contents in found), Counter())
    texts = sum((contents.texts for contents in found), Counter())
    if caption_key is not None:
        if caption_key not in fields:
            raise UserError(f"no clip's JSON has a text {caption_key!r}; it has {', '.join(sorted(fields)) or 'none'}")
        return caption_key, f"captions: {caption_key!r} of the JSON"
    like = [name for name in fields if CAPTION_LIKE.search(name)]
    order = [name for name in COLUMNS["captions"] if name in like]
    like.sort(key=lambda name: (order.index(name) if name in order else len(order), -fields[name], name))
    if fields["text"] or fields["captions"]:
        key, chosen = None, "text" if fields["text"] else "captions"
    elif texts["txt"]:
        return None, "captions: txt"
    elif like:
        key = chosen = like[0]
    elif texts["cls"]:
        return None, "captions: cls, where it is a name"
    else:
        return None, "transcripts: 'transcript' of the JSON" if fields["transcript"] else "no captions"
    others = [name for name in like if name != chosen]
    advice = f" (--caption-key takes another: {', '.join(others)})" if others else ""
    return key, f"captions: {chosen!r} of the JSON{advice}"


def index_shards(location: str, names: Sequence[str], caption_key: str | None, num_workers: int) -> dict[str, Any]:
    """The index of shards in one folder or at one URL, with their "blocks" of members.bin; prints what was found, and
    on stderr what cannot be used."""
    split = ForeignShards(location, names)
    split.made["last_dot"] = choose_dot(split)
    shards = local(partial(read_shard, split), range(len(names)), min(num_workers, len(names)))
    results = dict(zip(names, tqdm(shards, total=len(names), unit="shard", disable=None)))
    found = {name: contents for name, contents in results.items() if contents.fault is None}
    if not found:
        raise UserError(next(contents.fault for contents in results.values() if contents.fault))
    key, said = choose_caption(list(found.values()), caption_key)
    # sounds alone where no clip has more; where some have, the others have lost something
    without_text = all(len(contents.without_text) == len(contents.keys) for contents in found.values())
    for line in [contents.fault for contents in results.values() if contents.fault] + faults_of(found, without_text):
        print(f"warning: {' '.join(str(line).split())}", file=sys.stderr)
    entries = [entry_of(name, contents, without_text) for name, contents in found.items()]
    split.made["without_text"] = without_text
    rates = set.union(*(contents.rates for contents in found.values()))
    index = {
        "format": SHARD_FORMAT,
        "writer": WRITER,
        "num_clips": sum(entry["num_clips"] for entry in entries),
        "seconds": round(sum(entry["seconds"] for entry in entries), 3),
        "longest_seconds": max(entry["longest_seconds"] for entry in entries),
        "shards": entries,
        "blocks": [split.kept(contents, entry) for contents, entry in zip(found.values(), entries)],
        **({"sample_rate": rates.pop()} if len(rates) == 1 else {}),
        **({"caption_key": key} if key else {}),
        **{
            name: True
            for name, value in (("last_dot", split.made["last_dot"]), ("without_text", without_text))
            if value
        },
    }
    rate = f"{index['sample_rate']} Hz" if "sample_rate" in index else "several rates"
    dots = "; names end at their last dot" if split.made["last_dot"] else ""
    hours = f"{index['seconds'] / 3600:.3f} h"
    print(f"{location}: {index['num_clips']:,} clips, {hours}, {len(entries)} shards, {rate}; {said}{dots}")
    return index


def entry_of(name: str, contents: ShardContents, without_text: bool) -> dict[str, Any]:
    """A shard's entry in the index."""
    left_out = set() if without_text else set(contents.without_text)
    kept = [key for key in contents.keys if key not in left_out]
    seconds = [contents.seconds[key] for key in kept if key in contents.seconds]
    num_pictures = sum(contents.num_pictures[key] for key in kept)
    return {
        "name": name,
        "num_clips": len(kept),
        "seconds": round(sum(seconds), 3),
        "longest_seconds": round(max(seconds, default=0.0), 3),
        "sha256": contents.sha256,
        "bytes": contents.num_bytes,
        **({"num_pictures": num_pictures} if num_pictures else {}),
    }


def faults_of(found: dict[str, ShardContents], without_text: bool) -> list[str]:
    """A line for each kind of fault that shards of the index have."""
    seen: dict[str, str] = {}
    twice = [(key, seen[key], name) for name, contents in found.items() for key in contents.keys
             if seen.setdefault(key, name) != name]  # fmt: skip
    lines = [f"{name}: {len(contents.bad)} clips cannot be read; the first: {contents.bad[0]}"
             for name, contents in found.items() if contents.bad]  # fmt: skip
    if twice:
        key, first, second = twice[0]
        lines.append(f"{len(twice)} keys come in several shards; the first: {key}, in {first} and {second}")
    bare = [(name, key) for name, contents in found.items() for key in contents.without_text]
    if bare and not without_text:
        lines.append(f"{len(bare)} clips have no json, txt or cls, left out; the first: {bare[0][1]} of {bare[0][0]}")
    return lines


def check_place(folder: Path) -> None:
    """UserError where no index can be written, or one stands that another program wrote."""
    path = folder / "index.json"
    if path.exists() and read_json_object(path).get("writer") != WRITER:
        raise UserError(f"{path}: is not of python -m data.index; remove it, or name another folder with --output")
    if folder.is_file() or (folder.is_dir() and not os.access(folder, os.W_OK)):
        raise UserError(f"{folder}: cannot be written to; name another folder with --output")


def write_indexes(arguments: argparse.Namespace) -> None:
    """An index.json for each folder of shards."""
    num_workers = count_cores("local") if arguments.num_workers is None else arguments.num_workers
    if num_workers < 1:
        raise UserError("--workers is 1 or more")
    found = find_tars(arguments.tars)
    if arguments.output is not None and len(found) > 1:
        raise UserError(f"shards of {len(found)} folders ({', '.join(found)}); index each with an --output of its own")
    places = {location: arguments.output or Path(location) for location in found}
    for location, folder in places.items():
        if is_remote(str(folder)) or (arguments.output is None and is_remote(location)):
            raise UserError(f"{location}: nothing can be written there; name a folder of this machine with --output")
        check_place(folder)
    for location, folder in places.items():
        index = index_shards(location, found[location], arguments.caption_key, num_workers)
        if is_remote(location) or folder.resolve() != Path(location).resolve():
            index["location"] = location
        folder.mkdir(parents=True, exist_ok=True)
        for entry, place in zip(index["shards"], write_members(folder, index.pop("blocks"))):
            entry |= place
        write_index(folder, index)
        print(f"wrote {folder}/index.json; train with data.train=[{folder}]")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tars", nargs="+", metavar="TARS", help="files, folders, URLs, patterns")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="for index.json (default: beside the shards)")
    parser.add_argument("--caption-key", metavar="NAME", help="the field of the JSON that is the caption")
    parser.add_argument(
        "--workers", dest="num_workers", type=int, metavar="N", help="processes (default: one per core)"
    )
    arguments = parser.parse_args(argv)
    return run_tool(lambda: write_indexes(arguments))


if __name__ == "__main__":
    sys.exit(main())
