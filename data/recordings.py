"""The sound of a clip out of the files that may hold it: the right seconds of the first whole one."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import soxr

from audioldm2_pl.audio import SILENT_PEAK, choose_channel
from audioldm2_pl.errors import UserError
from audioldm2_pl.mp3 import open_sound

from .containers import CONTAINER_SUFFIXES, container_seconds, decode_segment

LONGER = 1.25  # times the clip: a file that was cut at key frames is no longer; one that is may be a recording
SHORTEST = 0.1  # seconds; a shorter file is a download that broke off
CUT_SECONDS = 0.1  # by which a file may be shorter than its header promises: encoders count their padding or do not
UNKNOWN_SIZE = 0x7FFF_F000  # and more: what writers to a pipe put into a WAV's header
RATES = (1_000, 1_000_000)  # Hz
OGG_TAIL = 1 << 17  # bytes at a file's end that hold its last page


# (T, channels); Hz; seconds at which it begins in its file; seconds that the file's header promises
Found = tuple[np.ndarray, int, float, float]


@dataclass
class Sound:
    waveform: np.ndarray  # (T,)
    start: float = 0.0  # seconds into its file
    changed: list[str] = field(default_factory=list)  # what had to be done to it


@dataclass
class Segment:
    """Which seconds of a file are wanted."""

    start: float = 0.0
    duration: float | None = None  # at most; None = to the end of the file
    shortest: float = SHORTEST  # a file that gives less is not the clip
    recording_start: float | None = None  # where the clip begins, should the file be the whole recording


def read_sound(paths: Sequence[Path], segment: Segment, sample_rate: int) -> Sound:
    """The segment out of the first file that holds it, at `sample_rate`; UserError of the first where none does."""
    faults: list[UserError] = []
    for path in paths:
        try:
            return _read(path, segment, sample_rate)
        except UserError as error:
            faults.append(error)
        except Exception as error:  # whatever a decoder raises on damaged bytes
            faults.append(UserError(f"{path}: cannot be read as audio ({type(error).__name__}: {error})"))
    raise faults[0]


def _read(path: Path, segment: Segment, sample_rate: int) -> Sound:
    if not path.is_file():
        raise UserError(f"{path}: no such audio file")
    if segment.duration is not None and segment.duration <= 0:
        raise UserError(f"{path}: the clip ends before it begins")
    is_container = path.suffix.lower() in CONTAINER_SUFFIXES
    channels, rate, start, promised = (_from_container if is_container else _from_file)(path, segment)
    wanted = promised - start if segment.duration is None else min(segment.duration, promised - start)
    if not RATES[0] <= rate <= RATES[1]:
        raise UserError(f"{path}: {rate} Hz is no rate of sound")
    seconds = len(channels) / rate
    if seconds < wanted - CUT_SECONDS:
        raise UserError(f"{path}: is cut off after {seconds:.2f} s; fetch it again")
    if seconds < segment.shortest:
        raise UserError(f"{path}: {seconds:.2f} s is too short for the clip")
    sound = Sound(choose_channel(channels), start)
    if np.abs(sound.waveform).max() <= SILENT_PEAK:
        raise UserError(f"{path}: is silent there")
    if np.abs(channels[:, 0]).max() <= SILENT_PEAK:
        sound.changed.append("its first channel is silent, the loudest was taken")
    if segment.duration is not None and segment.recording_start is not None and seconds < segment.duration / 2:
        sound.changed.append(f"{seconds:.2f} s where {segment.duration:g} s are meant")
    if rate != sample_rate:
        sound.waveform = soxr.resample(sound.waveform, rate, sample_rate)
    return sound


def _start(path: Path, segment: Segment, seconds: float) -> float:
    """Where in a file of so many seconds the segment begins. UserError where that cannot be told."""
    begins, duration = segment.recording_start, segment.duration
    if begins is None or duration is None or seconds <= duration + CUT_SECONDS:
        return segment.start
    may_be_clip, may_be_recording = seconds <= LONGER * duration, seconds >= begins + duration / 2
    if may_be_clip and may_be_recording and begins > CUT_SECONDS:
        raise UserError(
            f"{path}: {seconds:.2f} s may be the clip of {duration:g} s or a recording in which it begins at "
            f"{begins:g} s; cut it to {duration:g} s"
        )
    if not (may_be_clip or may_be_recording):
        raise UserError(f"{path}: {seconds:.2f} s, neither the clip of {duration:g} s nor the recording up to its end")
    return begins if may_be_recording else segment.start


def _from_container(path: Path, segment: Segment) -> Found:
    promised = container_seconds(path)
    start = _start(path, segment, promised)
    return *decode_segment(path, start, segment.duration), start, promised


def _from_file(path: Path, segment: Segment) -> Found:
    """Decodes only the segment: talks and concerts of hours are cut into thousands of clips."""
    try:
        with open_sound(path) as file:
            rate = file.samplerate
            promised = file.frames / rate * _cut_ratio(path, file.format)
            start = _start(path, segment, promised)
            file.seek(min(round(start * rate), file.frames))
            num_frames = -1 if segment.duration is None else round(segment.duration * rate)
            waveform = file.read(num_frames, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be read as audio ({error})") from None
    if not len(waveform):
        raise UserError(f"{path}: ends before {start} s")
    return waveform, rate, start, promised


def _cut_ratio(path: Path, kind: str) -> float:
    """How many times as long a file would be if it were whole; libsndfile counts what is there of WAV and Ogg."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if kind in ("WAV", "WAVEX"):
            declared = 8 + struct.unpack("<4xI", file.read(8))[0]
            return max(1.0, declared / size) if declared < UNKNOWN_SIZE else 1.0
        if kind == "OGG":
            file.seek(max(0, size - OGG_TAIL))
            _, page, rest = file.read().rpartition(b"OggS")
            is_last = len(rest) > 1 and rest[1] & 4  # a flag that the last page of a whole stream has
            return np.inf if page and not is_last else 1.0
    return 1.0
