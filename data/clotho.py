"""Clotho: recordings of 15-30 s from FreeSound with five captions each (Drossos, Lipping and Virtanen, 2020).

    python -m data.clotho clotho_v2.1 shards/clotho

Version 2.1, zenodo.org/record/4783391; captions under Tampere University's licence (academic use), a licence of its
own for every recording. SOURCE is as Zenodo's files unpack, or as aac-datasets lays them out (in brackets):

    [clotho_csv_files/]clotho_captions_{development,validation,evaluation}.csv   file_name, caption_1 ... caption_5
    [clotho_csv_files/]clotho_metadata_{development,validation,evaluation}.csv   FreeSound's numbers, licences
    [clotho_audio_files/]{development,validation,evaluation}/*.wav

train 3,839, val 1,045, test 1,045 recordings: 5,929, about 37 h. Without the metadata files, whose layout is taken
from programs that read them, clips carry no number of FreeSound.

Caption: the five as written; training draws one. AudioLDM 2's authors do not train on Clotho.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from .corpus import run_corpus
from .shards import Clip, key_of
from .sources import read_table

SPLITS = ("train", "val", "test")
NAMES = {"train": "development", "val": "validation", "test": "evaluation"}
CAPTIONS = tuple(f"caption_{number}" for number in range(1, 6))
LICENCE = "Tampere University, academic use"


def clips(source: Path, split: str) -> Iterator[Clip]:
    name = NAMES[split]
    tables = _either(source / "clotho_csv_files", source)
    recordings = _either(source / "clotho_audio_files", source) / name
    about = _metadata(tables / f"clotho_metadata_{name}.csv")
    rows = read_table(tables / f"clotho_captions_{name}.csv", ("file_name", *CAPTIONS))
    for index, row in enumerate(rows):
        sound, licence = about.get(row["file_name"], (None, LICENCE))
        yield Clip(
            # Names differ in blanks and signs alone, which a key cannot hold.
            key=key_of(f"{index:04d}", Path(row["file_name"]).stem),
            captions=[row[caption] for caption in CAPTIONS],
            path=recordings / row["file_name"],
            source="Clotho",
            licence=licence,
            extra={"source_id": f"freesound:{sound}"} if sound else {},
        )


def _either(folder: Path, other: Path) -> Path:
    return folder if folder.is_dir() else other


def _metadata(path: Path) -> dict[str, tuple[str | None, str]]:
    """File name => (FreeSound's number if known, licence); empty where the file is not there."""
    if not path.is_file():
        return {}
    rows = read_table(path, ("file_name", "sound_id", "license"), encoding="latin-1")
    return {
        row["file_name"]: (row["sound_id"] if row["sound_id"].isdigit() else None, row["license"] or LICENCE)
        for row in rows
    }


def main(argv: Sequence[str] | None = None) -> int:
    return run_corpus(clips, SPLITS, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
