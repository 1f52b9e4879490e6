"""Human ratings of clips out of a CSV, whoever wrote it: what was rated, of which system, how.

The layout is recognised by its columns, whatever their case:

    file, rating                             plain; `caption` and `system` may be there, too
    file, system, question, rating, rater    `python -m evaluation listen ratings`: a row an answer
    wav_id, overall, textual                 AudioMOS Challenge 2025, track 1, also without a header
    data_path, Production_Quality, …         AudioMOS Challenge 2025, track 2
    wave_filename, text, text_relevance_score   RELATE (arXiv:2506.23582)
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from audioldm2_pl.errors import UserError
from audioldm2_pl.fields import nearest
from audioldm2_pl.tables import read_cells

FILES = (
    "file", "filename", "file_name", "wav", "wav_id", "wav_name", "wave_filename", "data_path", "audio", "audio_path",
    "path", "clip", "clip_id",
)  # fmt: skip
SYSTEMS = ("system", "system_id", "model")
CAPTIONS = ("caption", "text", "prompt")
QUESTION = "question"  # a row then holds one question's answer
SCORES = (
    "rating", "score", "mos", "ovl", "rel", "overall", "textual", "overall_quality", "textual_alignment", "relevance",
    "relevance_score", "text_relevance_score", "quality", "alignment", "production_quality", "production_complexity",
    "content_enjoyment", "content_usefulness", "pq", "pc", "ce", "cu",
)  # fmt: skip
TRACK_1 = ("wav_id", "overall", "textual")
SYSTEM_IN_NAME = re.compile(r"(?:^|[-/])(S\d+)_P\d+(?:\.\w+)?$")  # of AudioMOS, track 1: …-S001_P044.wav

Cells = dict[str, str]


@dataclass(frozen=True)
class Subject:
    """What was rated: a clip, with the caption that it was held against."""

    file: str
    system: str = ""
    caption: str = ""


@dataclass
class Ratings:
    subjects: list[Subject]
    questions: dict[str, list[float]]  # question -> mean over raters of each subject; nan where nobody was asked

    @property
    def systems(self) -> list[str]:
        return sorted({subject.system for subject in self.subjects})


def read_ratings(path: Path, columns: Sequence[str] = ()) -> Ratings:
    """`columns` are those of the ratings; without them all that are known by name.

    UserError, with file and line, for a table without files or ratings, and for a rating that is no number.
    """
    values: dict[Subject, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for place, subject, question, text in read_answers(path, columns):
        values[subject][question].append(number_of(text, place))
    if not values:
        raise UserError(f"{path}: holds no rows of ratings")
    questions = dict.fromkeys(question for found in values.values() for question in found)
    means = {q: [mean_of(found.get(q, [])) for found in values.values()] for q in questions}
    return Ratings(list(values), means)


def mean_of(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def number_of(text: str, place: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{place}: the rating {text!r} is no number")
    return value


def read_answers(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Subject, str, str]]:
    """(place, subject, question, rating's text) of each answer; an empty cell is no answer."""
    rows = read_cells(path, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    line, header = next(rows, (1, []))
    if len(header) == len(TRACK_1) and is_number(header[1]) and is_number(header[2]):
        yield from answers_of(f"{path}, line {line}", dict(zip(TRACK_1, header)), TRACK_1[1:])
        header = list(TRACK_1)
    names = [re.sub(r"[\s-]+", "_", name.strip().lower()) for name in header]
    scores = score_columns(path, names, columns)
    for line, cells in rows:
        place = f"{path}, line {line}"
        if len(cells) != len(names):
            raise UserError(f"{place}: {len(cells)} cells, but {len(names)} columns")
        yield from answers_of(place, dict(zip(names, cells)), scores)


def is_number(text: str) -> bool:
    return bool(re.fullmatch(r"\s*-?\d+(?:\.\d+)?\s*", text))


def score_columns(path: Path, names: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """Which columns hold ratings; UserError where there are none, or none of files."""
    found = ", ".join(names) or "none"
    if not set(FILES) & set(names):
        raise UserError(f"{path}: no column names the clips; call it file (columns: {found})")
    wanted = [re.sub(r"[\s-]+", "_", name.strip().lower()) for name in wanted]
    for name in wanted:
        if name not in names:
            raise UserError(f"{path}: no column {name}; {nearest(name, list(names))}")
    scores = tuple(wanted or [name for name in names if name in SCORES])
    if not scores:
        raise UserError(f"{path}: no column of ratings is known; name them with --ratings (columns: {found})")
    return scores


def answers_of(place: str, row: Cells, scores: Sequence[str]) -> Iterator[tuple[str, Subject, str, str]]:
    file = first_of(row, FILES)
    if not file:
        raise UserError(f"{place}: names no clip")
    in_name = SYSTEM_IN_NAME.search(file)
    system = first_of(row, SYSTEMS) or (in_name[1] if in_name else "")
    subject = Subject(file, system, first_of(row, CAPTIONS))
    for name in scores:
        if text := row[name].strip():
            yield place, subject, row.get(QUESTION, "").strip() or name, text


def first_of(row: Cells, names: Sequence[str]) -> str:
    return next((row[name].strip() for name in names if name in row), "")
