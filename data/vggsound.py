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

Caption: the class ("playing hammond organ"); only the sound and the label are used (paper §IV-A).
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from audioldm2_pl.errors import UserError
from audioldm2_pl.tables import read_cells

from .corpus import Corpus
from .leakage import own_list_exists
from .shards import Clip
from .sources import number, source_id, youtube_clips

SPLITS = ("train", "test")
CLIP_SECONDS = 10.0


def read_clips(source: Path, split: str) -> Iterator[Clip]:
    return youtube_clips(source, _rows(source, split), "VGGSound", "CC BY 4.0")


def held_out(source: Path) -> set[str]:
    videos = _rows(source, "test") if own_list_exists(_table(source, "test")) else ()
    return {source_id("youtube", video) for video, *_ in videos}


def _table(source: Path, split: str) -> Path:
    tables = (source / "vggsound.csv", source / f"data/{split}.csv", source / f"{split}.csv")
    return next((table for table in tables if table.is_file()), tables[1])


def _rows(source: Path, split: str) -> Iterator[tuple[str, float, float, dict[str, Any]]]:
    path = _table(source, split)
    if not path.is_file():
        raise UserError(f"{source} holds neither vggsound.csv nor data/{split}.csv; fetch VGGSound's list into it")
    is_whole = path.name == "vggsound.csv"
    for line, row in read_cells(path):
        if is_whole and len(row) == 4 and row[3] in SPLITS:
            if row[3] != split:
                continue
            video, start, label = row[0], number(row[1], f"{path}, line {line}"), row[2]
        elif not is_whole and len(row) == 2 and (match := re.fullmatch(r"(.{11})_(\d{6})\.mp4", row[0])):
            video, start, label = match[1], float(match[2]), row[1]
        else:
            raise UserError(f"{path}, line {line}: {','.join(row)!r} is not a row of VGGSound")
        yield video, start, start + CLIP_SECONDS, {"text": label, "labels": [label]}


CORPUS = Corpus(__doc__, SPLITS, read_clips, held_out=held_out, exclude="required")
clips, main = CORPUS.clips, CORPUS.main

if __name__ == "__main__":
    sys.exit(main())
