"""LJSpeech: one reader, 13,100 sentences of 1-10 s from seven books (Ito and Johnson, 2017).

    python -m data.ljspeech LJSpeech-1.1 shards/ljspeech --filelists tacotron2/filelists

From keithito.com/LJ-Speech-Dataset, 23.9 h, public domain. SOURCE: `metadata.csv`, rows of
`id|as printed|numbers and abbreviations written out`, and `wavs/<id>.wav`.

--filelists is a folder with the lists of a split, of which the ids are read:

    ljs_audio_text_{train,val,test}_filelist.txt   `DUMMY/<id>.wav|text`, 12,500 / 100 / 500 (NVIDIA's Tacotron 2)
    training.txt, validation.txt                   `<id>|text|text`, 12,950 / 150 (HiFi-GAN); no test

Without it all clips are for training. What the other lists of the folder name is refused in training.

Transcript: the third column; `extra` keeps the printed one. There is no caption: for speech the authors' is empty.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from audioldm2_pl.errors import UserError
from audioldm2_pl.tables import read_lines

from .corpus import Corpus
from .shards import Clip, key_of

SPLITS = ("train", "val", "test")
HIFIGAN_LISTS = {"train": "training.txt", "val": "validation.txt"}


def read_clips(source: Path, split: str, filelists: Path | None = None) -> Iterator[Clip]:
    """The clips of a split by the lists of a folder; without one, "train" has all and the others none."""
    chosen = None if filelists is None else read_list(filelists, split)
    for name, printed, spoken in _rows(source / "metadata.csv"):
        if name in chosen if chosen is not None else split == "train":
            yield Clip(
                key=key_of(name),
                transcript=spoken,
                path=source / "wavs" / f"{name}.wav",
                source="LJSpeech",
                licence="public domain",
                extra={"source_id": f"ljspeech:{name}", "printed": printed},
            )


def held_out(source: Path, filelists: Path | None = None) -> set[str]:
    lists = [] if filelists is None else [read_list(filelists, other, needed=False) for other in ("val", "test")]
    return {f"ljspeech:{name}" for names in lists for name in names}


def _rows(path: Path) -> Iterator[tuple[str, str, str]]:
    """(id, as printed, as spoken); quotation marks in it are text, not CSV's."""
    for number, line in read_lines(path):
        fields = [field.strip() for field in line.split("|")]
        if len(fields) != 3 or not fields[0]:
            raise UserError(f"{path}, line {number}: not `id|text|text`; is it LJSpeech 1.1's?")
        yield fields[0], fields[1], fields[2] or fields[1]


def read_list(folder: Path, split: str, needed: bool = True) -> set[str]:
    """The ids of a split; none for "test" among HiFi-GAN's lists.

    UserError where the folder has no list of the split, unless it is not needed.
    """
    path = folder / f"ljs_audio_text_{split}_filelist.txt"
    if not path.is_file() and (folder / HIFIGAN_LISTS["train"]).is_file():
        if split not in HIFIGAN_LISTS:
            return set()
        path = folder / HIFIGAN_LISTS[split]
    if not path.is_file() and needed:
        raise UserError(f"{folder} holds neither {path.name} nor {HIFIGAN_LISTS['train']}")
    lines = read_lines(path) if path.is_file() else ()
    return {Path(line.split("|")[0].strip()).stem for _, line in lines if line.strip()}


OPTIONS = {
    "--filelists": {
        "type": Path,
        "metavar": "FOLDER",
        "help": "Tacotron 2's or HiFi-GAN's lists of the splits (default: all clips are for training)",
    }
}
CORPUS = Corpus(__doc__, SPLITS, read_clips, OPTIONS, held_out=held_out)
clips, main = CORPUS.clips, CORPUS.main

if __name__ == "__main__":
    sys.exit(main())
