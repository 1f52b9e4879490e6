"""Free Spoken Digit Dataset: the ten English digits, 50 takes each of six speakers, 8 kHz (Jackson et al., 2018).

    python -m data.fsdd free-spoken-digit-dataset/recordings shards/fsdd

From github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0: 3,000 files, about 22 minutes. SOURCE: files
`<digit>_<speaker>_<take>.wav`, or an excerpt of them. Takes 0 to 4 are for testing, as its authors say; 5 to 9 are for
validation, the others for training.

Transcript: the digit's word, which is the clip's label, too; `extra` has the speaker. There is no caption, as of all
speech.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from audioldm2_pl.errors import UserError

from .corpus import Corpus
from .leakage import ids_of
from .shards import Clip, key_of

SPLITS = ("train", "val", "test")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NAME = re.compile(r"(\d)_([a-z]+)_(\d+)")
FIRST_TAKES = {"test": 0, "val": 5, "train": 10}  # of each split, up to the next one's


def read_clips(source: Path, split: str) -> Iterator[Clip]:
    """The clips of a split. Raises UserError for a file whose name says no digit, speaker and take."""
    for path in sorted(source.glob("*.wav")):
        named = NAME.fullmatch(path.stem)
        if named is None:
            raise UserError(f"{path}: not <digit>_<speaker>_<take>.wav; name the dataset's folder recordings/")
        digit, speaker, take = named.groups()
        if split_of(int(take)) == split:
            yield Clip(
                key=key_of(path.stem),
                transcript=WORDS[int(digit)],
                labels=[WORDS[int(digit)]],
                path=path,
                source="FSDD",
                licence="CC BY-SA 4.0",
                extra={"source_id": f"fsdd:{path.stem}", "speaker": speaker},
            )


def split_of(take: int) -> str:
    return next(split for split, first in sorted(FIRST_TAKES.items(), key=lambda item: -item[1]) if take >= first)


def held_out(source: Path) -> set[str]:
    return {name for split in ("val", "test") for name in ids_of(read_clips(source, split))}


CORPUS = Corpus(__doc__, SPLITS, read_clips, held_out=held_out)
clips, main = CORPUS.clips, CORPUS.main

if __name__ == "__main__":
    sys.exit(main())
