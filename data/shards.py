"""The shard format: clips go in, tar files that `audioldm2_pl.shards.datamodule` reads come out.

A split is a folder of `NNNNNN.tar` and an `index.json`. A clip has two members, `<key>.flac` (16-bit
mono) and `<key>.json` (caption, labels, source, licence, where in the source), and `<key>.0.png` or
`<key>.0.jpg` for each of its pictures. The same clips give the same bytes.
"""

import io
import json
import re
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from tqdm import tqdm

from audioldm2_pl.errors import UserError
from audioldm2_pl.media import PICTURES, read_picture
from audioldm2_pl.shards.reader import SHARD_FORMAT, captions_of

from .engines import ENGINES, count_cores
from .journal import Journal, fingerprint
from .recordings import SHORTEST, Segment, Sound, read_sound
from .writer import EncodedClip, SplitWriter, write_index

SHARD_GIB = 1.0  # some 7,000 clips of 10 s
CLIPS_PER_TASK = 4  # that a worker gets at a time: passing clips on costs little, and a long one holds up few
SHUFFLE_CLIPS = 65_536  # that the command line holds back for a train split, some 100 MB
SHUFFLE_BYTES = 1 << 30  # of waveforms at most
MAX_LISTED = 10  # clips left out, and clips changed, that the terminal shows; index.json holds them all
LOUD_PEAK = 2.0  # a peak that no lossy codec's overshoot reaches: the file's level is another than it seems
LOST_TEXT = re.compile("[\x00\ufffd\ud800-\udfff]")  # what a wrong encoding leaves in a text


@dataclass
class Clip:
    """One clip: where its sound is, and what is known about it."""

    key: str  # no dot, no slash, no blank (see `key_of`); numbered where it comes again in the split
    text: str | None = None  # the caption
    captions: list[str] | None = None  # several captions of the same sound, instead of `text`
    path: str | Path | None = None  # an audio file (and `others`, tried in turn where it is damaged), or
    waveform: np.ndarray | None = None  # (T,) in [-1, 1], at the sample rate of the shards, or
    make: Callable[[], "Clip"] | None = None  # picklable; called in a worker for the clip with all its other fields
    transcript: str | None = None  # of speech
    labels: list[str] | None = None  # class names
    source: str | None = None  # the corpus
    licence: str | None = None
    start: float = 0.0  # seconds into the file
    duration: float | None = None  # seconds at most; None = to the end of the file
    others: Sequence[str | Path] = ()
    pictures: Sequence[str | Path] = ()  # PNG or JPEG files of what is heard
    shortest: float = SHORTEST  # seconds; a file that gives less is left out
    recording_start: float | None = None  # seconds; where the clip begins in a file that is the whole recording
    extra: dict[str, Any] = field(default_factory=dict)  # further fields of the JSON member
    changed: list[str] = field(default_factory=list)  # what is not as the corpus has it


def key_of(*parts: object) -> str:
    """A legal key: the parts joined by `__`, with `-` for all but ASCII letters, digits, `_`."""
    return "__".join(re.sub(r"[^A-Za-z0-9_-]+", "-", str(part)) for part in parts)


@dataclass
class ShardOptions:
    """How a split is written."""

    sample_rate: int = 16_000  # Hz
    shard_gib: float = SHARD_GIB  # a shard is full at so many GiB
    clips_per_shard: int | None = None  # or at so many clips
    num_workers: int | None = None  # processes that read and encode; None: one per core
    engine: str = "local"  # of these processes, a name of ENGINES
    shuffle: int = 0  # clips that are held back and drawn from at random, so that they are spread over the shards

    def __post_init__(self) -> None:
        counts = (self.sample_rate, self.clips_per_shard, self.num_workers)
        if any(count is not None and count < 1 for count in counts) or not self.shard_gib > 0:
            raise UserError("the sample rate, size of a shard, clips a shard and workers are above 0")
        if self.shuffle < 0:
            raise UserError("the clips that are shuffled are 0 or more")

    def journal_header(self) -> dict[str, Any]:
        """What the bytes of the shards depend on: another encoder or resampler may give others."""
        names = ("sample_rate", "shard_gib", "clips_per_shard", "shuffle")
        libraries = [soundfile.__version__, soundfile.__libsndfile_version__, soxr.__version__, np.__version__]
        return {"format": SHARD_FORMAT, "libraries": libraries} | {name: getattr(self, name) for name in names}


def write_shards(clips: Iterable[Clip], output: str | Path, total: int | None = None, **fields: Any) -> dict[str, Any]:
    """Writes one split and returns what its `index.json` says; `fields` are those of `ShardOptions`.

    `total` is the number of clips where it is known, for the progress bar. A script that wants more than one process
    here needs `if __name__ == "__main__"`.

    The folder appears when it is complete, and replaces shards that were there. After an interruption the same call
    resumes with the shard that was not finished. Clips that cannot be read are left out and listed under "skipped";
    those of which something had to be changed say so in their JSON, and are listed under "changed". Raises UserError
    where `output` holds something other than shards, and where no clip could be read.
    """
    options = ShardOptions(**fields)
    output = Path(output).resolve()
    check_replaceable(output)
    num_cores = options.num_workers or count_cores(options.engine)
    encode = partial(_encode_batch, sample_rate=options.sample_rate)
    started = time.monotonic()
    with Journal(output, options.journal_header()) as journal:
        split = SplitWriter(journal, round(options.shard_gib * 2**30), options.clips_per_shard)
        _fill(
            split,
            shuffled(_checked(clips), options.shuffle),
            lambda batches: ENGINES[options.engine](encode, batches, num_cores),
            total,
        )
        index = split.index(options.sample_rate)
        if not index["num_clips"]:
            reason = index["skipped"][0]["reason"] if index["skipped"] else "the corpus has no clips"
            raise UserError(f"{output}: no clip could be written: {reason}")
        write_index(journal.folder, index)
        journal.publish()
    elapsed = time.monotonic() - started
    print(
        f"{output}: wrote {split.seconds / 3600:.3f} h of audio in {elapsed:.0f} s, "
        f"{split.seconds / elapsed / num_cores:.0f} h a core-hour"
    )
    return index


def check_replaceable(output: Path) -> None:
    """Raises UserError if `output` holds anything but shards, which writing would throw away."""
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file; name a folder to write shards to")
    if not output.is_dir():
        return
    names = sorted(path.name for path in output.iterdir())
    pattern = r"index\.json|members\.bin|\d{6}\.tar" if "index.json" in names else "(?!)"
    for name in names:
        if not re.fullmatch(pattern, name):
            raise UserError(f"{output} holds {name}, not only our shards; name another folder")


def _fill(
    split: SplitWriter,
    clips: Iterable[Clip],
    run: Callable[[Iterable[list[Clip]]], Generator[list[EncodedClip | str], None, None]],
    total: int | None,
) -> None:
    """Writes all clips that the journal's finished shards do not hold yet; `run` encodes batch after batch."""
    remaining = split.journal.remaining(clips)
    pending: deque[tuple[str, bytes]] = deque()  # key and fingerprint of the clips that are being encoded

    def batches() -> Iterator[list[Clip]]:
        while batch := list(islice(remaining, CLIPS_PER_TASK)):
            pending.extend((clip.key, fingerprint(clip)) for clip in batch)
            yield batch

    num_read = sum(line["num_read"] for line in split.journal.lines)
    progress = tqdm(desc=split.journal.output.name, total=total, initial=num_read, unit="clip", disable=None)
    with progress, closing(run(batches())) as results:
        for encoded in chain.from_iterable(results):
            split.add(*pending.popleft(), encoded)
            progress.update()
    split.finish_shard()


def _checked(clips: Iterable[Clip]) -> Iterator[Clip]:
    """The clips, each with a key of its own: those that come again are numbered from 2."""
    numbers: dict[str, int] = {}  # the last of each key
    for clip in clips:
        if not re.fullmatch(r"[^./\\\s]+", clip.key):
            raise UserError(f"clip key {clip.key!r} holds a dot, slash or blank; make keys with key_of()")
        key, number = clip.key, numbers.get(clip.key, 0) + 1
        while number > 1 and (key := f"{clip.key}__{number}") in numbers:
            number += 1
        numbers |= {clip.key: number, key: numbers.get(key, 1)}
        yield (
            clip
            if number == 1
            else replace(clip, key=key, changed=[*clip.changed, f"numbered: {clip.key} is another clip's key"])
        )


def shuffled(clips: Iterable[Clip], num_held: int) -> Iterator[Clip]:
    """Every clip once: each time one at random of those held, `num_held` or so many as hold SHUFFLE_BYTES of sound.

    The order follows from the number of clips alone; with as many held as there are it is any.
    """
    rng = np.random.default_rng(0)
    held: list[Clip] = []
    num_bytes = 0
    for clip in clips:
        held.append(clip)
        num_bytes += 0 if clip.waveform is None else clip.waveform.nbytes
        if len(held) > num_held or num_bytes > SHUFFLE_BYTES:
            chosen = int(rng.integers(len(held)))
            held[chosen], held[-1] = held[-1], held[chosen]
            num_bytes -= 0 if held[-1].waveform is None else held[-1].waveform.nbytes
            yield held.pop()
    for chosen in rng.permutation(len(held)).tolist():
        yield held[chosen]


def _encode_batch(clips: list[Clip], sample_rate: int) -> list[EncodedClip | str]:
    """In a worker: each clip encoded, or the reason why it cannot be."""
    encoded: list[EncodedClip | str] = []
    for clip in clips:
        try:
            encoded.append(encode_clip(clip, sample_rate))
        except UserError as error:
            encoded.append(str(error))
    return encoded


def encode_clip(clip: Clip, sample_rate: int) -> EncodedClip:
    """The members and the seconds of one clip; UserError where it cannot be trained on."""
    key, changed = clip.key, clip.changed
    clip = clip.make() if clip.make is not None else clip
    sound = load_sound(clip, sample_rate)
    peak = float(np.abs(sound.waveform).max())
    if peak > LOUD_PEAK:
        sound.changed.append(f"scaled to full scale from a peak of {peak:g}")
    samples = np.clip(np.rint(sound.waveform * (32768.0 / max(1.0, peak))), -32768, 32767).astype(np.int16)
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
        "start": sound.start,
        "duration": round(seconds, 6),
        "changed": [*changed, *sound.changed] or None,
    }
    fields = clip.extra | {name: value for name, value in known.items() if value is not None}
    check_text(key, fields)
    pictures = [picture_member(Path(path)) for path in clip.pictures]
    members = {f"{i}.{suffix}": content for i, (suffix, content) in enumerate(pictures)}
    return EncodedClip(flac.getvalue(), json.dumps(fields, sort_keys=True).encode(), seconds, members)


def picture_member(path: Path) -> tuple[str, bytes]:
    """Suffix and bytes of a picture, as it is; UserError where it cannot be read, or is neither PNG nor JPEG."""
    if (suffix := path.suffix.lower().lstrip(".")) not in PICTURES:
        raise UserError(f"{path}: shards hold pictures as {', '.join(PICTURES)}")
    read_picture(path)
    return suffix, path.read_bytes()


def check_text(key: str, fields: dict[str, Any]) -> None:
    """Takes blank captions out of several; UserError where training would refuse the clip's text, or learn characters
    that a wrong encoding has lost."""
    try:
        if not isinstance(fields.get("text", ""), str):
            raise ValueError("caption that is no text")
        captions, transcript = captions_of(fields), fields.get("transcript")
        if transcript is not None and not (isinstance(transcript, str) and transcript.strip()):
            raise ValueError("empty transcript")
        if any(LOST_TEXT.search(text) for text in (*captions, transcript or "")):
            raise ValueError("text with characters that a wrong encoding has lost")
        json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise UserError(f"clip {key}: {error}") from None
    if len(fields.get("captions", ())) > len(captions):
        note = f"{len(fields['captions']) - len(captions)} blank captions left out"
        fields |= {"captions": captions, "changed": [*fields.get("changed", ()), note]}


def load_sound(clip: Clip, sample_rate: int) -> Sound:
    """The clip's sound at `sample_rate` Hz; UserError where there is none to be had."""
    if clip.waveform is not None:
        sound = Sound(np.asarray(clip.waveform, dtype=np.float32), clip.start)
    elif clip.path is None:
        raise UserError(f"clip {clip.key} has neither a path nor a waveform")
    else:
        segment = Segment(clip.start, clip.duration, clip.shortest, clip.recording_start)
        sound = read_sound([Path(path) for path in (clip.path, *clip.others)], segment, sample_rate)
    if not len(sound.waveform) or not np.isfinite(sound.waveform).all():
        raise UserError(f"clip {clip.key} holds no finite samples")
    return sound


def summary(folder: Path, index: dict[str, Any]) -> str:
    """What a split holds, and which clips it had to leave out."""
    line = (
        f"{folder}: {index['num_clips']} clips, {index['seconds'] / 3600:.3f} h, "
        f"{len(index['shards'])} shards, {index['sample_rate']} Hz"
    )
    if index.get("num_pictures"):
        line += f", {index['num_pictures']} pictures"
    lines = [line]
    for name, verb in (("skipped", "left out"), ("changed", "changed")):
        listed = index.get(name, [])
        lines += [f"  {verb} {clip['key']}: {clip['reason']}" for clip in listed[:MAX_LISTED]]
        if len(listed) > MAX_LISTED:
            lines.append(f"  {verb} {len(listed)} clips in all; index.json lists them")
    return "\n".join(lines)
