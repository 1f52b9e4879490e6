"""Which scores there are, whose they are, and which split each work is in.

music21's own licence leaves the rights in its corpus to each file. Taken are the files that state a free one:

    beach            CC BY-SA, 2017
    ciconia, luca    CC BY-SA 3.0
    corelli          CC BY
    josquin          GPL-2.0 or later
    leadSheet        fosterBrownHair alone: public domain
    schumann_clara   the four polonaises op. 1: CC BY-SA 4.0
    weber            public domain

Not taken: bach ("used by permission", its encoder kept commercial use to herself), palestrina (a
licence of its own), essenFolksong (not commercial), and all that say nothing: airdsAirs, beethoven, chopin, cpebach,
handel, haydn, johnson_j_r, joplin, liliuokalani, lusitano, miscFolk, monteverdi, mozart, nottingham-dataset,
oneills1850, ryansMammoth, schoenberg, schubert, schumann_robert, trecento, verdi, webern. Whoever may use one of them
names its folder with --scores.
"""

import os
import re
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audioldm2_pl.errors import UserError

from .folder_files import walk
from .folder_names import draw, printable
from .score_notes import SUFFIXES, Score, import_library, read_scores
from .shards import MAX_LISTED

SPLITS = ("train", "test", "judge")
HELD_OUT_RATIO = 0.2  # of the works, for test and for judge each

# pattern in music21's corpus: (work, or "" for one a file; licence; whether a file's tunes are parts of one piece)
FREE: dict[str, tuple[str, str, bool]] = {
    "beach/prayer_of_a_tired_child.musicxml": ("", "CC BY-SA", False),
    "ciconia/quod_jactatur.xml": ("", "CC BY-SA 3.0", False),
    "luca/gloria.xml": ("", "CC BY-SA 3.0", False),
    "corelli/opus3no1/1grave.xml": ("", "CC BY", False),
    "josquin/*.abc": ("", "GPL-2.0-or-later", True),
    "leadSheet/fosterBrownHair.mxl": ("", "public domain", False),
    "schumann_clara/polonaise_op1n?.mxl": ("schumann_clara/polonaises_op1", "CC BY-SA 4.0", False),
    "weber/concertino_clarinet.mxl": ("", "public domain", False),
}
MOVEMENT = re.compile(r"[ ._-]*(?:movement|mvmt|mvt|mov|satz)[ ._-]*\d+[a-z]?$|\.\d+[a-z]?$", re.IGNORECASE)


@dataclass(frozen=True)
class ScoreFile:
    path: Path
    work: str
    source: str  # as clips name it
    licence: str
    merge: bool = False  # its tunes are parts of one piece
    by_title: bool = False  # of several tunes each title is a work


@dataclass
class Work:
    """What stays in one split."""

    name: str
    source: str
    licence: str
    scores: list[Score] = field(default_factory=list)

    @property
    def split(self) -> str:
        """It follows from the name alone, so that a work stays where it is when others come."""
        place = draw(f"piece {self.name}")
        return "test" if place < HELD_OUT_RATIO else "judge" if place < 2 * HELD_OUT_RATIO else "train"


def find_works(folder: Path | None, licence: str | None) -> list[ScoreFile]:
    """The files of a folder, or music21's free ones; UserError where there are none."""
    if folder is None:
        if licence is not None:
            raise UserError("--licence is of the scores in a folder; name it with --scores")
        return _free_files()
    if not (licence and licence.strip()):
        raise UserError("--scores needs --licence TEXT, of the scores in the folder, for the clips to name it")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    names = [name for name in walk(folder, follow_links=False)[0] if name.lower().endswith(SUFFIXES)]
    if not names:
        raise UserError(f"{folder}: holds no scores ({', '.join(SUFFIXES)})")
    source = folder.resolve().name
    return [ScoreFile(folder / name, work_of(printable(name)), source, licence, by_title=True) for name in names]


def work_of(name: str) -> str:
    """The work that a file's name tells: without the suffix and a movement's number, a folder's name where no more is
    left ("mozart/k155/movement1.mxl" => "mozart/k155")."""
    return MOVEMENT.sub("", os.path.splitext(name)[0]).rstrip("/") or os.path.splitext(name)[0]


def _free_files() -> list[ScoreFile]:
    folder = Path(str(import_library("music21").__file__)).parent / "corpus"
    found = []
    for pattern, (work, licence, merge) in FREE.items():
        paths = sorted(folder.glob(pattern))
        if not paths:
            print(f"left out {pattern}: not in this music21's corpus")
        for path in paths:
            name = work or path.relative_to(folder).with_suffix("").as_posix()
            found.append(ScoreFile(path, name, f"music21/{path.relative_to(folder).parts[0]}", licence, merge))
    if not found:
        raise UserError("this music21 has no corpus; name a folder with --scores FOLDER --licence TEXT")
    return found


def read_file(file: ScoreFile) -> list[Score] | str:
    """In a worker."""
    return read_scores(file.path, file.merge)


def works_of(
    files: Sequence[ScoreFile], run: Callable[[Callable[[Any], Any], Iterable[Any]], Generator[Any, None, None]]
) -> dict[str, list[Work]]:
    """Split => its works; each file is read once, by `run`. Files that are no scores are left out with a line each;
    UserError where nothing is left."""
    works: dict[str, Work] = {}
    reasons = []
    for file, scores in zip(files, run(read_file, files)):
        if isinstance(scores, str):
            reasons.append(f"{file.path}: {scores}")
            continue
        for score in scores:
            title = re.sub(r"\W+", " ", score.title).strip().lower()
            name = title if file.by_title and len(scores) > 1 and title else file.work
            work = works.setdefault(name, Work(name, file.source, file.licence))
            work.scores.append(score)
    for reason in reasons[:MAX_LISTED]:
        print(f"left out {reason}")
    if len(reasons) > MAX_LISTED:
        print(f"left out {len(reasons)} files in all")
    if not works:
        raise UserError(f"no score could be read: {reasons[0]}")
    splits: dict[str, list[Work]] = {split: [] for split in SPLITS}
    for name in sorted(works):
        splits[works[name].split].append(works[name])
    counts = ", ".join(f"{split} {len(found)}" for split, found in splits.items())
    print(f"{sum(len(work.scores) for work in works.values())} pieces of {len(works)} works: {counts}")
    return splits
