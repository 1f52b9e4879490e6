"""Clotho: recordings of 15-30 s from FreeSound with five captions each (Drossos, Lipping and Virtanen, 2020).

    python -m data.clotho clotho_v2.1 shards/clotho

Version 2.1, zenodo.org/record/4783391; captions under Tampere University's licence (academic use), a licence of its
own for every recording. SOURCE is as Zenodo's files unpack, or as aac-datasets lays them out (in brackets):

    [clotho_csv_files/]clotho_captions_{development,validation,evaluation}.csv   file_name, caption_1 ... caption_5
    [clotho_csv_files/]clotho_metadata_{development,validation,evaluation}.csv   FreeSound's numbers, licences
    [clotho_audio_files/]{development,validation,evaluation}/*.wav

train 3,839, val 1,045, test 1,045 recordings: 5,929, about 37 h. Without the metadata files, whose layout is taken
from programs that read them, a clip is known by its file's name instead of a number of FreeSound.

Recordings of val and test are refused in training: the published splits share some.

Caption: the five as written; training draws one. AudioLDM 2's authors do not train on Clotho.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from audioldm2_pl.tables import read_table

from .corpus import Corpus
from .leakage import ids_of, own_list_exists
from .shards import Clip, key_of
from .sources import source_id

SPLITS = ("train", "val", "test")
NAMES = {"train": "development", "val": "validation", "test": "evaluation"}
CAPTIONS = tuple(f"caption_{number}" for number in range(1, 6))
LICENCE = "Tampere University, academic use"


def held_out(source: Path) -> set[str]:
    splits = [split for split in ("val", "test") if own_list_exists(_table(source, split))]
    others = [clip for split in splits for clip in read_clips(source, split)]
    return ids_of(others) | {f"clotho:{Path(str(clip.path)).name}" for clip in others}  # where a number is lost


def _table(source: Path, split: str) -> Path:
    return _either(source / "clotho_csv_files", source) / f"clotho_captions_{NAMES[split]}.csv"


def read_clips(source: Path, split: str) -> Iterator[Clip]:
    table = _table(source, split)
    recordings = _either(source / "clotho_audio_files", source) / NAMES[split]
    about = _metadata(table.with_name(f"clotho_metadata_{NAMES[split]}.csv"))
    for index, (_, row) in enumerate(read_table(table, ("file_name", *CAPTIONS))):
        sound, licence = about.get(row["file_name"], (None, LICENCE))
        yield Clip(
            # Names differ in blanks and signs alone, which a key cannot hold.
            key=key_of(f"{index:04d}", Path(row["file_name"]).stem),
            captions=[row[caption] for caption in CAPTIONS],
            path=recordings / row["file_name"],
            source="Clotho",
            licence=licence,
            extra={"source_id": sound or f"clotho:{row['file_name']}"},
        )


def _either(folder: Path, other: Path) -> Path:
    return folder if folder.is_dir() else other


def _metadata(path: Path) -> dict[str, tuple[str | None, str]]:
    """File name => (its recording if known, licence); empty where the file is not there."""
    if not path.is_file():
        return {}
    about: dict[str, tuple[str | None, str]] = {}
    for _, row in read_table(path, ("file_name", "sound_id", "license"), encoding=_encoding(path)):
        sound = source_id("freesound", row["sound_id"])
        about[row["file_name"]] = (sound if re.fullmatch(r"freesound:\d+", sound) else None, row["license"] or LICENCE)
    return about


def _encoding(path: Path) -> str:
    """As published the tables are Latin-1; copies that a spreadsheet has saved are UTF-8."""
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8-sig"


CORPUS = Corpus(__doc__, SPLITS, read_clips, held_out=held_out)
clips, main = CORPUS.clips, CORPUS.main

if __name__ == "__main__":
    sys.exit(main())
