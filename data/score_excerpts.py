"""An excerpt of a score, and how instruments play it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from audioldm2_pl.errors import UserError

from .score_notes import Score, at
from .score_rendering import INSTRUMENTS, MIN_REST_SECONDS, Note

TAIL_SECONDS = 0.4  # at a clip's end, in which no note begins: what sounds dies away
MIN_NOTES_PER_SECOND = 1.0  # of the leading part: no clip of rests
VELOCITIES = (72, 104)
ACCENT = 16  # added on the first beat of a bar
OCTAVES = range(-4, 5)


@dataclass(frozen=True)
class Excerpt:
    score: Score
    begin: float  # quarter notes
    end: float
    quarter_seconds: float
    parts: tuple[np.ndarray, ...]  # of notes (N, 3): onset from `begin`, duration, MIDI pitch; the leading part first


@dataclass(frozen=True)
class Playing:
    """An instrument and the parts of the excerpt that it plays."""

    name: str
    parts: tuple[int, ...]


def beat_quarters(metre: str | None) -> float:
    """Quarter notes in a beat: 1.5 in 6/8, 2 in 2/2, 1 where the metre is not known."""
    if metre is None:
        return 1.0
    numerator, denominator = map(int, metre.split("/"))
    is_compound = denominator >= 8 and numerator > 3 and numerator % 3 == 0
    return (3 if is_compound else 1) * 4 / denominator


def choose_excerpt(score: Score, tempo_bpm: float, seconds: float, rng: np.random.Generator) -> Excerpt:
    """From a bar drawn of those where the leading part, the first one, plays at once and often enough.

    Raises UserError where there is no such bar.
    """
    sounding = seconds - min(TAIL_SECONDS, seconds / 4)
    for begin in rng.permutation(score.bars).tolist():
        quarter_seconds = 60 / tempo_bpm / beat_quarters(at(score.metres, begin, begin + 1e-3))
        end = begin + sounding / quarter_seconds
        parts = tuple(_cut(part, begin, end) for part in score.parts)
        lead = parts[0]
        if len(lead) >= MIN_NOTES_PER_SECOND * sounding and lead[0, 0] * quarter_seconds < 0.5 and begin < end:
            kept = tuple(part for part in parts if len(part))
            return Excerpt(score, begin, end, quarter_seconds, kept)
    raise UserError(f"no excerpt of {seconds:g} s at {tempo_bpm:g} BPM in which {score.title or 'the score'} plays on")


def _cut(part: np.ndarray, begin: float, end: float) -> np.ndarray:
    chosen = part[(part[:, 0] >= begin - 1e-6) & (part[:, 0] < end - 1e-6)].copy()
    chosen[:, 0] = np.maximum(chosen[:, 0] - begin, 0)
    chosen[:, 1] = np.minimum(chosen[:, 1], end - begin - chosen[:, 0])
    return chosen


def notes_of(excerpt: Excerpt, playing: Sequence[Playing], semitones: int, rng: np.random.Generator) -> list[Note]:
    """The notes of each instrument on a channel of its own, so many semitones higher and in an octave that suits it; a
    note beyond its range goes into it by octaves."""
    velocity = int(rng.integers(VELOCITIES[0], VELOCITIES[1] + 1))
    bars = excerpt.score.bars - excerpt.begin
    notes: list[Note] = []
    for channel, player in enumerate(playing):
        rows = np.concatenate([excerpt.parts[part] for part in player.parts])
        for onset, duration, pitch in zip(rows[:, 0], rows[:, 1], _placed(rows[:, 2] + semitones, player, rng)):
            start, length = onset * excerpt.quarter_seconds, duration * excerpt.quarter_seconds
            is_first_beat = bool(np.abs(bars - onset).min() < 1e-3)
            end = start + max(length - MIN_REST_SECONDS, length / 2)
            notes.append(Note(channel, int(pitch), velocity + ACCENT * is_first_beat, float(start), float(end)))
    return notes


def _placed(pitches: np.ndarray, player: Playing, rng: np.random.Generator) -> np.ndarray:
    """MIDI pitches (N,) in a drawn octave of those in which most of them are in the instrument's range."""
    instrument = INSTRUMENTS[player.name]
    num_outside = [
        int(((pitches + 12 * k < instrument.low) | (pitches + 12 * k > instrument.high)).sum()) for k in OCTAVES
    ]
    best = [k for k, number in zip(OCTAVES, num_outside) if number == min(num_outside)]
    moved = pitches + 12 * int(rng.choice(best))
    moved = moved + 12 * np.ceil(np.maximum(instrument.low - moved, 0) / 12)
    return np.rint(moved - 12 * np.ceil(np.maximum(moved - instrument.high, 0) / 12)).astype(int)
