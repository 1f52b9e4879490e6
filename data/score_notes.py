"""Scores as notes: MusicXML, ABC and Humdrum read by music21, MIDI by pretty_midi."""

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from audioldm2_pl.errors import UserError

MIDI_SUFFIXES = (".mid", ".midi")
MIN_CORRELATION = 0.5  # of an excerpt in its key
SUFFIXES = (*MIDI_SUFFIXES, ".xml", ".musicxml", ".mxl", ".abc", ".krn")
TONICS = {
    "major": ("C", "D-flat", "D", "E-flat", "E", "F", "F-sharp", "G", "A-flat", "A", "B-flat", "B"),
    "minor": ("C", "C-sharp", "D", "E-flat", "E", "F", "F-sharp", "G", "G-sharp", "A", "B-flat", "B"),
}


@dataclass(frozen=True)
class Score:
    """One piece. Times are in quarter notes from its start."""

    title: str
    parts: tuple[np.ndarray, ...]  # of notes (N, 3): onset, duration, MIDI pitch as it sounds; sorted by onset
    bars: np.ndarray  # (B,) where bars begin
    metres: tuple[tuple[float, str], ...]  # from when on: "3/4"
    # from when on: the keys that the signature may stand for, two where it tells no mode, none of church modes
    keys: tuple[tuple[float, tuple[str, ...]], ...]


def import_library(name: str) -> ModuleType:
    """A module of the extra `scores`, without what it prints; UserError where it is missing."""
    import importlib

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"{name} cannot be imported ({error}); pip install 'audioldm2-pl[scores]'") from None


def read_scores(path: Path, merge: bool = False) -> list[Score] | str:
    """The pieces of a file, or why there are none. A tunebook has several; `merge`: they are parts of one piece."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            scores = [_read_midi(path)] if path.suffix.lower() in MIDI_SUFFIXES else list(_read_score(path, merge))
    except UserError:
        raise
    except Exception as error:  # the parsers' errors have no common class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"cannot be read as a score ({reason})"
    return [score for score in scores if score.parts] or "holds no notes"


def key_name(tonic: int, mode: str) -> str:
    """Of a pitch class, 0 for C: "E-flat major"."""
    return f"{TONICS[mode][tonic % 12]} {mode}"


def transposed(key: str, semitones: int) -> str:
    """The name of a key so many semitones higher."""
    tonic, mode = key.split()
    return key_name(TONICS[mode].index(tonic) + semitones, mode)


@lru_cache
def _profiles() -> dict[str, np.ndarray]:
    """Krumhansl and Kessler's profile of each of the 24 keys: key -> (12,), of mean 0 and length 1."""
    library = import_library("music21.analysis.discrete").KrumhanslKessler()
    found = {}
    for mode in TONICS:
        weights = np.array(library.getWeights(mode))
        weights = (weights - weights.mean()) / np.linalg.norm(weights - weights.mean())
        found |= {key_name(tonic, mode): np.roll(weights, tonic) for tonic in range(12)}
    return found


def sounding_key(notes: np.ndarray, candidates: Sequence[str]) -> str | None:
    """Which of the keys that a signature may stand for the notes (N, 3) are in: the one whose profile correlates best
    with how long each pitch class sounds. None where that is less than MIN_CORRELATION, or less than with the key of
    the same signature and the other mode."""
    durations = np.bincount(notes[:, 2].astype(int) % 12, notes[:, 1], minlength=12)
    spread = np.linalg.norm(durations - durations.mean())
    fits = {key: float(profile @ durations) / spread if spread else 0.0 for key, profile in _profiles().items()}
    best = max(candidates, key=fits.__getitem__, default=None)
    clear = best is not None and fits[best] >= max(MIN_CORRELATION, fits[relative(best)])
    return best if clear else None


def relative(key: str) -> str:
    """The key of the same signature and the other mode: "C major" => "A minor"."""
    tonic, mode = key.split()
    number = TONICS[mode].index(tonic)
    return key_name(number + 9, "minor") if mode == "major" else key_name(number + 3, "major")


def at(changes: Sequence[tuple[float, Any]], begin: float, end: float) -> Any:
    """What holds from `begin` to `end`; None where that changes in between, or is not known."""
    found = None
    for onset, value in changes:
        if onset <= begin + 1e-6:
            found = value
        elif onset < end and value != found:
            return None
    return found


def _read_score(path: Path, merge: bool) -> Iterator[Score]:
    music21 = import_library("music21")
    # music21 would keep a pickle of the file, and read it the next time.
    parsed = music21.converter.parse(path, forceSource=True, storePickle=False)
    if not isinstance(parsed, music21.stream.Opus):
        yield _score_of(parsed, music21)
        return
    scores = [_score_of(score, music21) for score in parsed.scores]
    if merge:
        longest = max(scores, key=lambda score: len(score.bars))
        parts = tuple(part for score in scores for part in score.parts)
        yield Score(longest.title, parts, longest.bars, longest.metres, longest.keys)
    else:
        yield from scores


def _score_of(stream: Any, music21: ModuleType) -> Score:
    stream = stream.toSoundingPitch()
    streams = list(stream.parts) or [stream]
    first = streams[0].flatten()
    metres = [(float(sign.offset), sign.ratioString) for sign in first.getElementsByClass("TimeSignature")]
    keys = [(float(sign.offset), _candidates(sign)) for sign in first.getElementsByClass("KeySignature")]
    bars = [float(measure.offset) for measure in streams[0].getElementsByClass("Measure")]
    title = stream.metadata.title if stream.metadata is not None else None
    found = [part for part in (_notes_of(part, music21) for part in streams) if len(part)]
    return Score(title or "", tuple(found), _bars(bars, found), tuple(metres), tuple(keys))


def _notes_of(part: Any, music21: ModuleType) -> np.ndarray:
    """The notes of a part (N, 3): tied ones are one; no grace notes, no chord symbols, no drums."""
    rows = [
        (float(element.offset), float(element.duration.quarterLength), pitch.midi)
        for element in part.stripTies().flatten().notes
        if not isinstance(element, music21.harmony.Harmony) and element.duration.quarterLength > 0
        for pitch in element.pitches
    ]
    return np.array(sorted(set(rows)), dtype=np.float64).reshape(-1, 3)


def _candidates(signature: Any) -> tuple[str, ...]:
    if (mode := getattr(signature, "mode", None)) in TONICS:
        return (key_name(signature.tonic.pitchClass, mode),)
    if mode is not None:
        return ()
    fifths = signature.sharps
    return key_name(7 * fifths, "major"), key_name(7 * fifths + 9, "minor")


def _read_midi(path: Path) -> Score:
    midi = import_library("pretty_midi").PrettyMIDI(str(path))

    def quarters(seconds: float) -> float:
        return midi.time_to_tick(seconds) / midi.resolution

    found = []
    for instrument in midi.instruments:
        rows = {(quarters(n.start), quarters(n.end) - quarters(n.start), n.pitch) for n in instrument.notes}
        if not instrument.is_drum and rows:
            found.append(np.array(sorted(rows), dtype=np.float64))
    metres = [(quarters(s.time), f"{s.numerator}/{s.denominator}") for s in midi.time_signature_changes]
    keys = [
        (quarters(change.time), (key_name(change.key_number % 12, "minor" if change.key_number >= 12 else "major"),))
        for change in midi.key_signature_changes
    ]
    bars = [quarters(seconds) for seconds in midi.get_downbeats()] if found else []
    return Score("", tuple(found), _bars(bars, found), tuple(metres), tuple(keys))


def _bars(bars: list[float], parts: list[np.ndarray]) -> np.ndarray:
    """Where bars begin, (B,); every four quarter notes where the file tells none, or one that never ends."""
    end = max((float(part[:, 0].max()) for part in parts), default=0.0)
    if len(bars) < 2 or max(after - before for before, after in pairwise([*bars, end])) > 16:
        return np.arange(0.0, end + 1e-6, 4.0)
    return np.array(bars)
