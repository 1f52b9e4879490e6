"""MusicCaps: 5,521 clips of 10 s of music out of AudioSet, captions by musicians (Agostinelli et al., 2023).

    python -m data.musiccaps MusicCaps shards/musiccaps

From huggingface.co/datasets/google/MusicCaps, CC BY-SA 4.0; the recordings are YouTube's. SOURCE holds
`musiccaps-public.csv` and the clips in any folders, named as AudioSet's (`sources.py`). 15.3 h; AudioLDM's
evaluation has 5,471 clips that were still on YouTube.

It is for evaluation only: one split, "test". Give its CSV to --exclude of the corpora for training.

Caption: as written; the aspects that it was written from are the labels.
"""

import ast
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from audioldm2_pl.errors import UserError
from audioldm2_pl.tables import read_table

from .corpus import run_corpus
from .shards import Clip
from .sources import audio_files, number, youtube_clip

SPLITS = ("test",)
COLUMNS = ("ytid", "start_s", "end_s", "aspect_list", "caption", "is_balanced_subset", "is_audioset_eval")


def clips(source: Path, split: str) -> Iterator[Clip]:
    """All clips; "test" is the only split. `extra` tells the balanced subset and AudioSet's own evaluation set."""
    files = audio_files(source)
    table = source / "musiccaps-public.csv"
    for line, row in read_table(table, COLUMNS):
        place = f"{table}, line {line}"
        start, end = number(row["start_s"], place), number(row["end_s"], place)
        yield youtube_clip(
            files,
            source,
            row["ytid"],
            start,
            end,
            text=row["caption"],
            labels=_aspects(row["aspect_list"], place),
            source="MusicCaps",
            licence="captions CC BY-SA 4.0, audio as its uploader set on YouTube",
            extra={
                "balanced": row["is_balanced_subset"] == "True",
                "audioset_eval": row["is_audioset_eval"] == "True",
            },
        )


def _aspects(text: str, place: str) -> list[str]:
    try:
        return [str(aspect) for aspect in ast.literal_eval(text)]
    except (ValueError, SyntaxError, TypeError):
        raise UserError(f"{place}: {text[:40]!r} is not a list of aspects; fetch the file again") from None


def main(argv: Sequence[str] | None = None) -> int:
    return run_corpus(clips, SPLITS, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
