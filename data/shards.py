"""The shard format: clips go in, tar files that `audioldm2_pl.datamodule` reads come out.

A split is a folder of `NNNNNN.tar` and an `index.json`. A clip is two members, `<key>.flac` (16-bit
mono) and `<key>.json` (caption, labels, source, licence, where in the source). The same clips give
the same bytes.

Check folders of shards, or folders of splits:

    python -m data.shards shards/esc10
"""

import argparse
import hashlib
import io
import json
import re
import shutil
import sys
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from tqdm import tqdm

from audioldm2_pl.audio import load_waveform
from audioldm2_pl.errors import UserError

from .containers import CONTAINER_SUFFIXES, decode_segment

CLIPS_PER_SHARD = 1000  # 10 s clips make shards of about 200 MB
NUM_WORKERS = 4  # threads that decode, resample and encode
MAX_LISTED = 10  # clips left out that the terminal shows; index.json holds them all


@dataclass
class Clip:
    """One clip: where its sound is, and what is known about it."""

    key: str  # unique in its split; no dot, no slash, no blank (see `key_of`)
    text: str | None = None  # the caption
    captions: list[str] | None = None  # several captions of the same sound, instead of `text`
    path: str | Path | None = None  # an audio file, or
    waveform: np.ndarray | None = None  # (T,) in [-1, 1], at the sample rate of the shards
    transcript: str | None = None  # what is said
    labels: list[str] | None = None  # class names
    source: str | None = None  # the corpus
    licence: str | None = None
    start: float = 0.0  # seconds into the file
    duration: float | None = None  # seconds; None = to the end of the file
    extra: dict[str, Any] = field(default_factory=dict)  # further fields of the JSON member


def key_of(*parts: object) -> str:
    """A legal key: the parts joined by `__`, with `-` for all but ASCII letters, digits, `_`."""
    return "__".join(re.sub(r"[^A-Za-z0-9_-]+", "-", str(part)) for part in parts)


def write_shards(
    clips: Iterable[Clip],
    output: str | Path,
    sample_rate: int = 16_000,
    clips_per_shard: int = CLIPS_PER_SHARD,
    num_workers: int = NUM_WORKERS,
) -> dict[str, Any]:
    """Writes one split and returns what its `index.json` says.

    The folder appears when it is complete, and takes the place of shards that were there. Clips
    that cannot be read are left out and listed under "skipped". Raises UserError where `output`
    holds something other than shards, where a key comes twice, and where no clip could be read.
    """
    if min(sample_rate, clips_per_shard, num_workers) < 1:
        raise UserError("the sample rate, clips a shard and workers are at least 1")
    output = Path(output).resolve()
    check_replaceable(output)
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        index = _fill(partial, clips, output, sample_rate, clips_per_shard, num_workers)
        _write_json(partial / "index.json", index)
        _put_in_place(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return index


def check_replaceable(output: Path) -> None:
    """Raises UserError if `output` holds anything but shards, which writing would throw away."""
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file; name a folder to write shards to")
    if not output.is_dir():
        return
    names = sorted(path.name for path in output.iterdir())
    pattern = r"index\.json|\d{6}\.tar" if "index.json" in names else "(?!)"
    for name in names:
        if not re.fullmatch(pattern, name):
            raise UserError(f"{output} holds {name}, not only our shards; name another folder")


def _fill(
    folder: Path,
    clips: Iterable[Clip],
    output: Path,
    sample_rate: int,
    clips_per_shard: int,
    num_workers: int,
) -> dict[str, Any]:
    shards: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    members: list[tuple[str, bytes, bytes, float]] = []
    keys: set[str] = set()
    progress = tqdm(clips, desc=output.name, unit="clip", disable=None)
    for clip, encoded in _in_order(progress, sample_rate, num_workers):
        _check_key(clip.key, keys)
        try:
            members.append((clip.key, *encoded.result()))
        except UserError as error:
            skipped.append({"key": clip.key, "reason": str(error)})
        if len(members) == clips_per_shard:
            shards.append(_write_shard(folder, len(shards), members))
            members = []
    if members:
        shards.append(_write_shard(folder, len(shards), members))
    if not shards:
        reason = skipped[0]["reason"] if skipped else "the corpus has no clips"
        raise UserError(f"{output}: no clip could be written: {reason}")
    return {
        "format": 1,
        "sample_rate": sample_rate,
        "num_clips": sum(shard["num_clips"] for shard in shards),
        "seconds": round(sum(shard["seconds"] for shard in shards), 3),
        "longest_seconds": max(shard["longest_seconds"] for shard in shards),
        "shards": shards,
        "skipped": skipped,
    }


def _check_key(key: str, keys: set[str]) -> None:
    if not re.fullmatch(r"[^./\\\s]+", key):
        raise UserError(f"clip key {key!r} holds a dot, slash or blank; make keys with key_of()")
    if key in keys:
        raise UserError(f"clip key {key!r} comes twice; every clip of a split needs its own")
    keys.add(key)


def _in_order(
    clips: Iterable[Clip], sample_rate: int, num_workers: int
) -> Iterator[tuple[Clip, Future[tuple[bytes, bytes, float]]]]:
    """Encodes in threads, a few clips ahead, and gives the results in the order of the clips."""
    pending: deque[tuple[Clip, Future[tuple[bytes, bytes, float]]]] = deque()
    with ThreadPoolExecutor(num_workers) as pool:
        for clip in clips:
            pending.append((clip, pool.submit(encode_clip, clip, sample_rate)))
            if len(pending) > 4 * num_workers:
                yield pending.popleft()
        yield from pending


def encode_clip(clip: Clip, sample_rate: int) -> tuple[bytes, bytes, float]:
    """The FLAC member, the JSON member and the seconds of one clip."""
    waveform = read_clip(clip, sample_rate)  # (T,)
    samples = np.clip(np.rint(waveform * 32768.0), -32768, 32767).astype(np.int16)
    flac = io.BytesIO()
    soundfile.write(flac, samples, sample_rate, format="FLAC", subtype="PCM_16")
    seconds = len(samples) / sample_rate
    known = {
        "text": clip.text,
        "captions": clip.captions,
        "transcript": clip.transcript,
        "labels": clip.labels,
        "source": clip.source,
        "licence": clip.licence,
        "start": clip.start,
        "duration": round(seconds, 6),
    }
    fields = clip.extra | {name: value for name, value in known.items() if value is not None}
    return flac.getvalue(), json.dumps(fields, sort_keys=True).encode(), seconds


def read_clip(clip: Clip, sample_rate: int) -> np.ndarray:
    """The clip's waveform (T,) at `sample_rate`; UserError where there is none to be had."""
    if clip.waveform is not None:
        waveform = np.asarray(clip.waveform, dtype=np.float32)
    elif clip.path is None:
        raise UserError(f"clip {clip.key} has neither a path nor a waveform")
    elif Path(clip.path).suffix.lower() in CONTAINER_SUFFIXES:
        waveform, file_rate = decode_segment(Path(clip.path), clip.start, clip.duration)
        waveform = waveform if file_rate == sample_rate else soxr.resample(waveform, file_rate, sample_rate)
    elif clip.start == 0 and clip.duration is None:
        waveform = load_waveform(clip.path, sample_rate)
    else:
        waveform = _read_segment(Path(clip.path), clip.start, clip.duration, sample_rate)
    if not len(waveform) or not np.isfinite(waveform).all():
        raise UserError(f"clip {clip.key} holds no finite samples")
    return waveform


def _read_segment(path: Path, start: float, duration: float | None, sample_rate: int) -> np.ndarray:
    """Decodes only the segment: talks and concerts of hours are cut into thousands of clips."""
    if not path.is_file():
        raise UserError(f"{path}: no such audio file")
    try:
        with soundfile.SoundFile(path) as file:
            file.seek(min(round(start * file.samplerate), file.frames))
            num_frames = -1 if duration is None else round(duration * file.samplerate)
            waveform = file.read(num_frames, dtype="float32", always_2d=True)[:, 0]
            file_rate = file.samplerate
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be read as audio ({error})") from None
    if not len(waveform):
        raise UserError(f"{path}: ends before {start} s")
    return waveform if file_rate == sample_rate else soxr.resample(waveform, file_rate, sample_rate)


def _write_shard(folder: Path, number: int, members: list[tuple[str, bytes, bytes, float]]) -> dict[str, Any]:
    path = folder / f"{number:06d}.tar"
    with tarfile.open(path, "w") as archive:
        for key, flac, fields, _ in members:
            for suffix, content in (("flac", flac), ("json", fields)):
                # TarInfo leaves time, owner and group at zero: the bytes depend on the clips alone.
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    seconds = round(sum(member[-1] for member in members), 3)
    return {
        "name": path.name,
        "num_clips": len(members),
        "seconds": seconds,
        "longest_seconds": round(max(member[-1] for member in members), 3),
        "sha256": _sha256(path),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def _put_in_place(partial: Path, output: Path) -> None:
    old = output.with_name(f".{output.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    partial.rename(output)
    shutil.rmtree(old, ignore_errors=True)


def verify(folder: str | Path) -> dict[str, Any]:
    """Reads every shard of a split against its index, which it returns.

    Raises UserError naming the first shard that is missing, changed or of a wrong clip count.
    """
    folder = Path(folder)
    try:
        index = json.loads((folder / "index.json").read_text())
        shards = index["shards"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder} holds no readable index.json; write the shards again") from None
    for shard in shards:
        path = folder / shard["name"]
        if not path.is_file():
            raise UserError(f"{path} is missing; write the shards again")
        if _sha256(path) != shard["sha256"]:
            raise UserError(f"{path} is not what index.json describes; write the shards again")
        with tarfile.open(path) as archive:
            num_clips = sum(name.endswith(".flac") for name in archive.getnames())
        if num_clips != shard["num_clips"]:
            raise UserError(f"{path} holds {num_clips} clips, index.json says {shard['num_clips']}")
    unknown = {path.name for path in folder.glob("*.tar")} - {shard["name"] for shard in shards}
    if unknown:
        raise UserError(f"{folder / min(unknown)} is not in index.json; remove it")
    return index


def summary(folder: Path, index: dict[str, Any]) -> str:
    """What a split holds, and which clips it had to leave out."""
    skipped = index.get("skipped", [])
    line = (
        f"{folder}: {index['num_clips']} clips, {index['seconds'] / 3600:.3f} h, "
        f"{len(index['shards'])} shards, {index['sample_rate']} Hz"
    )
    listed = [f"  left out {clip['key']}: {clip['reason']}" for clip in skipped[:MAX_LISTED]]
    lines = [line, *listed]
    if len(skipped) > MAX_LISTED:
        lines.append(f"  left out {len(skipped)} clips in all; index.json lists them")
    return "\n".join(lines)


def run_tool(body: Callable[[], None]) -> int:
    """Runs a command line's body: a UserError becomes one line on stderr and exit code 2."""
    try:
        body()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def add_shard_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sample-rate", type=int, default=16_000, metavar="HZ")
    parser.add_argument("--clips-per-shard", type=int, default=CLIPS_PER_SHARD, metavar="N")
    parser.add_argument("--workers", type=int, default=NUM_WORKERS, metavar="N", help="threads")


def write_split(clips: Iterable[Clip], output: Path, arguments: argparse.Namespace) -> None:
    """Writes and reports one split, with the options of `add_shard_options`."""
    index = write_shards(clips, output, arguments.sample_rate, arguments.clips_per_shard, arguments.workers)
    print(summary(output, index))


def run_corpus(
    clips: Callable[..., Iterable[Clip]],
    splits: Sequence[str],
    description: str | None,
    argv: Sequence[str] | None = None,
    add_options: Callable[[argparse.ArgumentParser], None] | None = None,
) -> int:
    """The command line of a corpus file: SOURCE OUTPUT → OUTPUT/<split>; returns the exit code.

    `clips(source: Path, split: str, **options)` yields the clips of one split; `add_options` adds
    the corpus's own options to the parser. A split without clips is not written.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="the corpus as downloaded")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder for the splits")
    parser.add_argument("--splits", nargs="+", choices=splits, default=list(splits))
    add_shard_options(parser)
    common = {action.dest for action in parser._actions}
    if add_options is not None:
        add_options(parser)
    arguments = parser.parse_args(argv)
    options = {name: value for name, value in vars(arguments).items() if name not in common}

    def write_splits() -> None:
        if not arguments.source.is_dir():
            raise UserError(f"{arguments.source}: no such folder")
        num_written = 0
        for split in arguments.splits:
            output = arguments.output / split
            found = iter(clips(arguments.source, split, **options))
            first = next(found, None)
            if first is not None:
                write_split(chain([first], found), output, arguments)
                num_written += 1
            elif output.exists():
                raise UserError(f"{output} is of an earlier run, now without clips; remove it")
        if not num_written:
            raise UserError(f"{arguments.source}: no clips of {', '.join(arguments.splits)} found")

    return run_tool(write_splits)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check shards against their index.json.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    arguments = parser.parse_args(argv)

    def check() -> None:
        for folder in arguments.folders:
            splits = [folder] if (folder / "index.json").is_file() else []
            splits += sorted(path.parent for path in folder.glob("*/index.json"))
            for split in splits or [folder]:
                print(summary(split, verify(split)))

    return run_tool(check)


if __name__ == "__main__":
    sys.exit(main())
