"""Checks every byte of shards against their index.json: folders of shards, or folders of splits.

    python -m data.verify shards/esc10

For each shard: its sha256, seconds and pictures, where index.json gives them, and every clip of it as training reads
it, with all its pictures. Of
shards of features (`python -m data.encode`) also all features; their clips that were noted as bad stay so.
"""

import argparse
import hashlib
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from audioldm2_pl.atomic import update_from
from audioldm2_pl.errors import UserError, run_tool
from audioldm2_pl.shards.encoded import EncodedFolder
from audioldm2_pl.shards.format import BadClip, warn_unread_caption
from audioldm2_pl.shards.members import MEMBERS_FILE
from audioldm2_pl.shards.reader import ShardFolder

from .engines import count_cores, local
from .shards import summary


def verify(folder: str | Path, num_workers: int = 1) -> dict[str, Any]:
    """Reads every shard of a split against its index, which it returns; UserError names the first fault."""
    index, faults = check(Path(folder), num_workers)
    for fault in faults:
        raise UserError(fault)
    return index


def check(folder: Path, num_workers: int = 1) -> tuple[dict[str, Any], Iterator[str]]:
    """A split's index, and a line for each fault; UserError where there is no index."""
    split = open_split(folder)
    seconds = sum(shard.get("seconds", 0.0) for shard in split.index["shards"])
    unknown = {"num_clips": len(split), "seconds": seconds, "sample_rate": "unknown"}
    return unknown | split.index, _faults(split, num_workers)


def open_split(folder: Path) -> ShardFolder:
    """A split as training opens it, of features all that it holds."""
    split = ShardFolder(folder)
    return EncodedFolder(folder, split.index["features"]) if "features" in split.index else split


def _faults(split: ShardFolder, num_workers: int) -> Iterator[str]:
    index, folder = split.index, Path(split.path)
    shards = range(len(split.counts))
    yield from filter(None, local(partial(shard_fault, split), shards, min(num_workers, len(shards)) or 1))
    for name in ("num_clips", "seconds", "num_pictures"):
        total = sum(shard.get(name, 0) for shard in index["shards"])
        if abs(index.get(name, total) - total) > 0.002:
            yield f"{folder}/index.json: {name} {index.get(name)}, its shards have {total:g}; write the shards again"
    names = {"index.json", MEMBERS_FILE, *(shard["name"] for shard in index["shards"])}
    for path in sorted(folder.iterdir()):
        if path.name not in names and "writer" not in index:  # beside other writers' shards may lie anything
            yield f"{path} is not in index.json; remove it"


def shard_fault(split: ShardFolder, shard: int) -> str | None:
    """The first thing that is wrong with a shard, or None."""
    path, entry = Path(split.shard_path(shard)), split.index["shards"][shard]
    if split.remote:
        path = Path(split.open(shard).name)  # of the copy
    if not path.is_file():
        return f"{path} is missing; write the shards again"
    digest = hashlib.sha256()
    update_from(digest, path)
    if entry.get("sha256") not in (None, digest.hexdigest()):
        return f"{path} is not what index.json describes; write the shards again"
    if "members" in entry and split.stored_table(shard) is None:
        return f"{split.path}/{MEMBERS_FILE} is not what index.json describes; write the shards again"
    noted = {bad["clip"] for bad in entry.get("bad", ())}
    seconds, num_pictures = 0.0, 0
    try:
        if list(split.table(shard)) != split.find_clips(shard):
            return f"{split.path}/{MEMBERS_FILE} has other places than the headers of {path}; write the shards again"
        for number in range(split.counts[shard]):
            if number not in noted:
                clip = split.load_audible(shard, number, with_images=True)
                warn_unread_caption(split.path, clip)
                seconds += len(clip.get("waveform", ())) / clip.get("sample_rate", 1)
                num_pictures += len(clip.get("images", ()))
    except BadClip as bad:
        return f"{path}: {bad}; write the shards again"
    except UserError as error:
        return str(error)
    if "features" not in split.index and abs(seconds - entry.get("seconds", seconds)) > 0.001:
        return f"{path} holds {seconds:.3f} s, index.json says {entry['seconds']}"
    if entry.get("num_pictures", num_pictures) != num_pictures:
        return f"{path} holds {num_pictures} pictures, index.json says {entry['num_pictures']}"
    return None


def splits_below(folder: Path) -> list[Path]:
    """The folder itself, if it is a split, and those of its folders that are; the folder where there is none."""
    splits = [folder] if (folder / "index.json").is_file() else []
    return splits + sorted(path.parent for path in folder.glob("*/index.json")) or [folder]


def folders_parser(description: str | None) -> argparse.ArgumentParser:
    """A command line of folders of shards, or of splits."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="SHARDS")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = folders_parser(__doc__)
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    arguments = parser.parse_args(argv)

    def check_all() -> None:
        num_faults = 0
        for folder in arguments.folders:
            for split in splits_below(folder):
                index, faults = check(split, arguments.workers or count_cores("local"))
                found = [print(f"error: {fault}", file=sys.stderr) for fault in faults]
                num_faults += len(found)
                if not found:
                    print(summary(split, index))
        if num_faults:
            raise UserError(f"{num_faults} faults in all")

    return run_tool(check_all)


if __name__ == "__main__":
    sys.exit(main())
