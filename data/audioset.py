"""AudioSet: two million clips of 10 s from YouTube, 527 classes (Gemmeke et al., 2017).

    python -m data.audioset AudioSet shards/audioset --exclude audiocaps/test.csv audiocaps/val.csv musiccaps-public.csv

From research.google.com/audioset; labels CC BY 4.0, the recordings are YouTube's and not distributed. SOURCE:

    balanced_train_segments.csv     22,160 clips (train)
    unbalanced_train_segments.csv   2,041,789 clips (train)
    eval_segments.csv               20,371 clips (test)
    class_labels_indices.csv        527 classes
    any folders of clips            Y<id>.wav, <id>.flac, <id>_<start>_<end>.flac in milliseconds, ... (`sources.py`)

About 5,800 h if all of it were still on YouTube; clips that are not among the files are listed as left out.
Either train file alone will do. The ids of eval_segments.csv and of a list in --exclude are refused in training:
AudioCaps and MusicCaps are parts of AudioSet.

Caption: the classes' names in the order of their indices, "Speech, Dog, Bark". AudioLDM's training code
writes the same with a full stop.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from audioldm2_pl.errors import UserError
from audioldm2_pl.tables import read_table

from .corpus import Corpus
from .leakage import own_list_exists
from .shards import Clip
from .sources import number, read_segments, source_id, youtube_clips

SEGMENTS = {
    "train": ("balanced_train_segments.csv", "unbalanced_train_segments.csv"),
    "test": ("eval_segments.csv",),
}
LICENCE = "labels CC BY 4.0, audio as its uploader set on YouTube"


def read_clips(source: Path, split: str) -> Iterator[Clip]:
    return youtube_clips(source, _rows(source, split), "AudioSet", LICENCE)


def held_out(source: Path) -> set[str]:
    tables = [source / name for name in SEGMENTS["test"]]
    videos = [video for table in tables if own_list_exists(table) for video, *_ in read_segments(table)]
    return {source_id("youtube", video) for video in videos}


def _rows(source: Path, split: str) -> Iterator[tuple[str, float, float, dict[str, Any]]]:
    tables = [source / name for name in SEGMENTS[split] if (source / name).is_file()]
    if not tables:
        raise UserError(f"{source} holds no {SEGMENTS[split][0]}; fetch AudioSet's segment files into it")
    classes = read_classes(source / "class_labels_indices.csv")
    for table in tables:
        for video, start, end, mids in read_segments(table):
            unknown = [mid for mid in mids if mid not in classes]
            if unknown:
                raise UserError(f"{table}: class_labels_indices.csv has no class {unknown[0]}")
            labels = [name for _, name in sorted(classes[mid] for mid in mids)]
            yield video, start, end, {"text": ", ".join(labels), "labels": labels}


def read_classes(path: Path) -> dict[str, tuple[int, str]]:
    """Machine id => (index, name) of AudioSet's classes."""
    rows = read_table(path, ("index", "mid", "display_name"))
    return {row["mid"]: (int(number(row["index"], f"{path}, line {line}")), row["display_name"]) for line, row in rows}


CORPUS = Corpus(__doc__, tuple(SEGMENTS), read_clips, held_out=held_out, exclude="required")
clips, main = CORPUS.clips, CORPUS.main

if __name__ == "__main__":
    sys.exit(main())
