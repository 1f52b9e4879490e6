"""VGGSound: clips of 10 s from YouTube whose source is seen, one of 309 classes each (Chen et al., 2020).

    python -m data.vggsound VGGSound shards/vggsound --exclude audiocaps/test.csv audiocaps/val.csv musiccaps-public.csv

From robots.ox.ac.uk/~vgg/data/vggsound and github.com/hche11/VGGSound, CC BY 4.0; the recordings are YouTube's.
SOURCE holds one of the two published lists, and the clips in any folders, `<id>_<start in six digits>.mp4` or any
name of `sources.py`:

    vggsound.csv                    id, start in seconds, class, "train" or "test"; no header
    data/train.csv, data/test.csv   <id>_<start>.mp4, class; no header

199,176 clips by the repository's `stat.csv`, 553 h, if all of it were still on YouTube. The layout of vggsound.csv is
taken from the authors' description and programs that read it.

Videos of the test split and the ids of a list in --exclude are refused in training.

Caption: the class ("playing hammond organ"); only the sound and the label are used (paper, section IV-A).
"""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from audioldm2_pl.errors import UserError
from audioldm2_pl.tables import read_cells

from .corpus import run_corpus
from .leakage import add_exclude_option, guarded, is_there, refused_ids
from .shards import Clip
from .sources import audio_files, number, source_id, youtube_clip

SPLITS = ("train", "test")
CLIP_SECONDS = 10.0


def clips(source: Path, split: str, exclude: Sequence[Path] | None = None) -> Iterator[Clip]:
    """The clips of "train", less those of "test" and of the lists in `exclude`, or of "test"."""
    found = _clips(source, split)
    if split != "train":
        return found
    refused = refused_ids(exclude) | {source_id("youtube", video) for video, *_ in _rows(source, "test", needed=False)}
    return guarded(found, refused, exclude or ())


def _clips(source: Path, split: str) -> Iterator[Clip]:
    files = audio_files(source)
    for video, start, label in _rows(source, split):
        yield youtube_clip(
            files,
            source,
            video,
            start,
            start + CLIP_SECONDS,
            text=label,
            labels=[label],
            source="VGGSound",
            licence="CC BY 4.0",
        )


def _rows(source: Path, split: str, needed: bool = True) -> Iterator[tuple[str, float, str]]:
    """(video, start in seconds, class) of a split; none where its list is missing and not needed."""
    whole = source / "vggsound.csv"
    parts = [path for path in (source / f"data/{split}.csv", source / f"{split}.csv") if path.is_file()]
    if not whole.is_file() and not parts:
        if needed:
            raise UserError(f"{source} holds neither vggsound.csv nor data/{split}.csv; fetch VGGSound's list into it")
        is_there(source / f"data/{split}.csv")
        return
    path = whole if whole.is_file() else parts[0]
    for line, row in read_cells(path):
        if path == whole and len(row) == 4 and row[3] in SPLITS:
            if row[3] == split:
                yield row[0], number(row[1], f"{path}, line {line}"), row[2]
        elif path != whole and len(row) == 2 and (match := re.fullmatch(r"(.{11})_(\d{6})\.mp4", row[0])):
            yield match[1], float(match[2]), row[1]
        else:
            raise UserError(f"{path}, line {line}: {','.join(row)!r} is not a row of VGGSound")


def main(argv: Sequence[str] | None = None) -> int:
    return run_corpus(clips, SPLITS, __doc__, argv, add_exclude_option)


if __name__ == "__main__":
    sys.exit(main())
