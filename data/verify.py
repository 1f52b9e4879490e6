"""Checks every byte of shards against their index.json: folders of shards, or folders of splits.

    python -m data.verify shards/esc10

For each shard: its sha256, its clips' number, seconds and sample rate, that every FLAC decodes to finite samples,
every JSON is an object, every further array loads without pickles, and that nothing else is in it. Shards of features
(`python -m data.encode`) hold no FLAC.
"""

import argparse
import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from audioldm2_pl.errors import UserError, run_tool

from .engines import count_cores, local
from .shards import summary

ENTRY = ("name", "num_clips", "seconds", "sha256")  # what is read of a shard's entry in index.json


def verify(folder: str | Path, num_workers: int = 1) -> dict[str, Any]:
    """Reads every shard of a split against its index, which it returns; UserError names the first fault."""
    index, faults = check(Path(folder), num_workers)
    for fault in faults:
        raise UserError(fault)
    return index


def check(folder: Path, num_workers: int = 1) -> tuple[dict[str, Any], Iterator[str]]:
    """A split's index, and a line for each fault; UserError where there is no index."""
    try:
        index = json.loads((folder / "index.json").read_text())
        shards = [{name: shard[name] for name in ENTRY} for shard in index["shards"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder} holds no readable index.json; write the shards again") from None
    return index, _faults(folder, index, shards, num_workers)


def _faults(folder: Path, index: dict[str, Any], shards: list[dict[str, Any]], num_workers: int) -> Iterator[str]:
    needed = {"json"} if "features" in index else {"flac", "json"}
    look = partial(shard_fault, folder, sample_rate=index.get("sample_rate"), needed=needed)
    yield from filter(None, local(look, shards, min(num_workers, len(shards)) or 1))
    for name in ("num_clips", "seconds"):
        total = sum(shard[name] for shard in shards)
        if abs(index.get(name, 0) - total) > 0.002:
            yield f"{folder}/index.json: {name} {index.get(name)}, its shards have {total:g}; write the shards again"
    for path in sorted(folder.iterdir()):
        if path.name not in {"index.json", *(shard["name"] for shard in shards)}:
            yield f"{path} is not in index.json; remove it"


def shard_fault(folder: Path, shard: dict[str, Any], sample_rate: int | None, needed: set[str]) -> str | None:
    """The first thing that is wrong with a shard whose clips have the members `needed`, or None."""
    path = folder / shard["name"]
    if not path.is_file():
        return f"{path} is missing; write the shards again"
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != shard["sha256"]:
        return f"{path} is not what index.json describes; write the shards again"
    clips: dict[str, set[str]] = {}  # key => suffixes
    seconds, name = 0.0, ""
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name = member.name
                key, _, suffix = name.partition(".")
                file = archive.extractfile(member) if member.isreg() else None
                if file is None or not key or suffix in clips.setdefault(key, set()):
                    raise ValueError("is no file, or comes twice")
                clips[key].add(suffix)
                seconds += _check_member(suffix, file.read(), sample_rate)
    except (tarfile.TarError, EOFError) as error:
        return f"{path}: no whole tar ({error}); write the shards again"
    except (ValueError, soundfile.LibsndfileError) as error:
        return f"{path}: member {name}: {error}; write the shards again"
    incomplete = [key for key, suffixes in clips.items() if not needed <= suffixes]
    if incomplete:
        return f"{path}: clip {incomplete[0]} lacks its {' or its '.join(sorted(needed))}; write the shards again"
    if len(clips) != shard["num_clips"]:
        return f"{path} holds {len(clips)} clips, index.json says {shard['num_clips']}"
    if "flac" in needed and abs(seconds - shard["seconds"]) > 0.001:
        return f"{path} holds {seconds:.3f} s, index.json says {shard['seconds']}"
    return None


def _check_member(suffix: str, content: bytes, sample_rate: int | None) -> float:
    """The seconds of sound in a member; ValueError where it is damaged or has no place in a shard."""
    if suffix == "flac":
        waveform, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
        if not len(waveform) or not np.isfinite(waveform).all():
            raise ValueError("holds no finite samples")
        if rate != sample_rate:
            raise ValueError(f"{rate} Hz where index.json says {sample_rate}")
        return len(waveform) / rate
    if suffix == "json":
        if not isinstance(json.loads(content), dict):
            raise ValueError("is no JSON object")
    elif suffix.endswith(".npy"):
        if not np.isfinite(np.load(io.BytesIO(content), allow_pickle=False)).all():
            raise ValueError("holds no finite numbers")
    else:
        raise ValueError("has no place in a shard")
    return 0.0


def splits_below(folder: Path) -> list[Path]:
    """The folder itself, if it is a split, and those of its folders that are."""
    splits = [folder] if (folder / "index.json").is_file() else []
    return splits + sorted(path.parent for path in folder.glob("*/index.json"))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="SHARDS")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    arguments = parser.parse_args(argv)

    def check_all() -> None:
        num_faults = 0
        for folder in arguments.folders:
            for split in splits_below(folder) or [folder]:
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
