"""Notes => sound, through a SoundFont by tinysoundfont."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from scipy.signal import butter, sosfilt

from audioldm2_pl.errors import UserError

from .score_notes import import_library

RENDER_RATE = 44_100  # Hz, of SoundFonts' samples
DEFAULT_SOUNDFONT = "TimGM6mb.sf2"  # lies beside pretty_midi
RMS = 0.1  # of a clip, but for
PEAK = 0.9  # at most
LOWEST_HZ = 20  # what is below is no sound: samples of some SoundFonts have an offset
FADE_SECONDS = 0.02  # at the end of a clip
MIN_REST_SECONDS = 0.02  # between two notes of one pitch


@dataclass(frozen=True)
class Instrument:
    """A program of General MIDI, and what is comfortable to play on it."""

    program: int  # from 0
    low: int  # MIDI pitches
    high: int
    is_polyphonic: bool  # plays all parts by itself


INSTRUMENTS: dict[str, Instrument] = {
    "piano": Instrument(0, 33, 96, True),
    "harpsichord": Instrument(6, 36, 86, True),
    "music box": Instrument(10, 60, 96, True),
    "marimba": Instrument(12, 45, 84, True),
    "church organ": Instrument(19, 36, 84, True),
    "accordion": Instrument(21, 48, 84, True),
    "acoustic guitar": Instrument(24, 40, 79, True),
    "harp": Instrument(46, 36, 91, True),
    "string ensemble": Instrument(48, 36, 88, True),
    "violin": Instrument(40, 55, 96, False),
    "cello": Instrument(42, 36, 72, False),
    "trumpet": Instrument(56, 54, 82, False),
    "trombone": Instrument(57, 40, 70, False),
    "french horn": Instrument(60, 41, 74, False),
    "saxophone": Instrument(65, 49, 80, False),
    "oboe": Instrument(68, 58, 86, False),
    "clarinet": Instrument(71, 50, 89, False),
    "flute": Instrument(73, 60, 94, False),
    "recorder": Instrument(74, 60, 91, False),
}


@dataclass(frozen=True)
class Note:
    channel: int  # of the instruments, from 0
    pitch: int  # MIDI
    velocity: int
    start: float  # seconds
    end: float


@dataclass(frozen=True)
class SoundFont:
    path: str
    sha256: str
    licence: str  # as clips name it

    @property
    def name(self) -> str:
        return Path(self.path).name


def find_soundfont(path: Path | None) -> SoundFont:
    """The file, by default the one that comes with pretty_midi. UserError where it is missing, is no SoundFont, or
    lacks an instrument."""
    licence = ""
    if path is None:
        path = Path(str(import_library("pretty_midi").__file__)).with_name(DEFAULT_SOUNDFONT)
        licence = ", GPL-2.0"
    if not path.is_file():
        raise UserError(f"{path}: no such SoundFont; name one with --soundfont")
    found = SoundFont(str(path.resolve()), hashlib.sha256(path.read_bytes()).hexdigest(), f"{path.name}{licence}")
    synth, number = _open(found.path)
    for name, instrument in INSTRUMENTS.items():
        try:
            synth.program_select(0, number, 0, instrument.program)
        except Exception:  # tinysoundfont raises what pybind11 makes of its errors
            raise UserError(
                f"{path}: has no {name} (program {instrument.program}); take a General MIDI SoundFont"
            ) from None
    return found


@lru_cache(maxsize=1)
def _read(path: str) -> bytes:
    return Path(path).read_bytes()


def _open(path: str) -> tuple[Any, int]:
    """A synthesizer and the number of its SoundFont; a new one for each clip, so that no sound lasts into the next."""
    synth = import_library("tinysoundfont").Synth(samplerate=RENDER_RATE)
    try:
        return synth, synth.sfload(_read(path))
    except Exception:
        raise UserError(f"{path}: cannot be read as a SoundFont (.sf2, .sf3)") from None


def render(notes: Sequence[Note], programs: Sequence[int], seconds: float, soundfont: SoundFont) -> np.ndarray:
    """Notes, each from its very sample on, on channels of these programs => (T,) at RENDER_RATE, of any level."""
    synth, number = _open(soundfont.path)
    for channel, program in enumerate(programs):
        synth.program_select(channel, number, 0, program)
    events = []
    for note in notes:
        start, end = (round(time * RENDER_RATE) for time in (note.start, note.end))
        events += [(start, 1, note), (end, 0, note)]
    num_samples = round(seconds * RENDER_RATE)
    pieces, position = [], 0
    for sample, is_start, note in sorted(events, key=lambda event: event[:2]):
        if position < min(sample, num_samples):
            pieces.append(_generate(synth, min(sample, num_samples) - position))
            position = min(sample, num_samples)
        if is_start:
            synth.noteon(note.channel, note.pitch, note.velocity)
        else:
            synth.noteoff(note.channel, note.pitch)
    if position < num_samples:
        pieces.append(_generate(synth, num_samples - position))
    return np.concatenate(pieces)


def _generate(synth: Any, num_samples: int) -> np.ndarray:
    """The next samples, mono: (T,)"""
    stereo = np.frombuffer(bytes(synth.generate(num_samples)), dtype=np.float32).reshape(-1, 2)
    return stereo.mean(axis=1)


def levelled(waveform: np.ndarray, sample_rate: int, num_samples: int) -> np.ndarray:
    """A rendering (T,) => (num_samples,) at `sample_rate` Hz, as loud as all clips, faded out at its end."""
    waveform = soxr.resample(waveform, RENDER_RATE, sample_rate)[:num_samples]
    waveform = np.pad(waveform, (0, num_samples - len(waveform)))
    waveform = np.asarray(sosfilt(butter(2, LOWEST_HZ, "highpass", fs=sample_rate, output="sos"), waveform))
    rms, peak = np.sqrt(np.mean(waveform**2)), np.abs(waveform).max()
    if not peak > 0:
        raise UserError("the notes give no sound in this SoundFont")
    waveform = waveform * min(RMS / rms, PEAK / peak)
    num_fade = min(num_samples, round(FADE_SECONDS * sample_rate))
    waveform[num_samples - num_fade :] *= np.linspace(1, 0, num_fade)
    return waveform.astype(np.float32)
