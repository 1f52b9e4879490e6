"""MusicCaps: 5,521 clips of 10 s of music out of AudioSet, captions by musicians (Agostinelli et al., 2023).

    python -m data.musiccaps MusicCaps shards/musiccaps

From huggingface.co/datasets/google/MusicCaps, CC BY-SA 4.0; the recordings are YouTube's. SOURCE holds
`musiccaps-public.csv` and the clips in any folders, named as AudioSet's (`sources.py`). 15.3 h; AudioLDM's
evaluation has 5,471 clips that were still on YouTube.

It is for evaluation only: one split, "test". Give its CSV to --exclude of the corpora for training.

Caption: as written; the aspects that it was written from are the labels.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from audioldm2_pl.tables import read_table

from .corpus import Corpus
from .shards import Clip
from .sources import number, python_list, youtube_clips

COLUMNS = ("ytid", "start_s", "end_s", "aspect_list", "caption", "is_balanced_subset", "is_audioset_eval")
LICENCE = "captions CC BY-SA 4.0, audio as its uploader set on YouTube"


def read_clips(source: Path, split: str) -> Iterator[Clip]:
    """All clips; "test" is the only split. `extra` marks the balanced subset and AudioSet's own evaluation set."""
    return youtube_clips(source, _rows(source / "musiccaps-public.csv"), "MusicCaps", LICENCE)


def _rows(table: Path) -> Iterator[tuple[str, float, float, dict[str, Any]]]:
    for line, row in read_table(table, COLUMNS):
        where = f"{table}, line {line}"
        known = {
            "text": row["caption"],
            "labels": [str(aspect) for aspect in python_list(row["aspect_list"], where)],
            "extra": {
                "balanced": row["is_balanced_subset"] == "True",
                "audioset_eval": row["is_audioset_eval"] == "True",
            },
        }
        yield row["ytid"], number(row["start_s"], where), number(row["end_s"], where), known


CORPUS = Corpus(__doc__, ("test",), read_clips)
clips, main = CORPUS.clips, CORPUS.main

if __name__ == "__main__":
    sys.exit(main())
