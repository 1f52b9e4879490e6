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
from collections.abc import Iterator, Sequence
from pathlib import Path

from audioldm2_pl.errors import UserError
from audioldm2_pl.tables import read_table

from .corpus import run_corpus
from .leakage import add_exclude_option, guarded, is_there, refused_ids
from .shards import Clip
from .sources import audio_files, number, read_segments, source_id, youtube_clip

SPLITS = ("train", "test")
SEGMENTS = {
    "train": ("balanced_train_segments.csv", "unbalanced_train_segments.csv"),
    "test": ("eval_segments.csv",),
}
LICENCE = "labels CC BY 4.0, audio as its uploader set on YouTube"


def clips(source: Path, split: str, exclude: Sequence[Path] | None = None) -> Iterator[Clip]:
    """The clips of "train", less those of "test" and of the lists in `exclude`, or of "test"."""
    found = _clips(source, split)
    if split != "train":
        return found
    refused = refused_ids(exclude)
    for table in (source / name for name in SEGMENTS["test"]):
        refused |= {source_id("youtube", video) for video, *_ in read_segments(table)} if is_there(table) else set()
    return guarded(found, refused, exclude or ())


def _clips(source: Path, split: str) -> Iterator[Clip]:
    tables = [source / name for name in SEGMENTS[split] if (source / name).is_file()]
    if not tables:
        raise UserError(f"{source} holds no {SEGMENTS[split][0]}; fetch AudioSet's segment files into it")
    classes = read_classes(source / "class_labels_indices.csv")
    files = audio_files(source)
    for table in tables:
        for video, start, end, mids in read_segments(table):
            unknown = [mid for mid in mids if mid not in classes]
            if unknown:
                raise UserError(f"{table}: class_labels_indices.csv has no class {unknown[0]}")
            labels = [name for _, name in sorted(classes[mid] for mid in mids)]
            yield youtube_clip(
                files,
                source,
                video,
                start,
                end,
                text=", ".join(labels),
                labels=labels,
                source="AudioSet",
                licence=LICENCE,
            )


def read_classes(path: Path) -> dict[str, tuple[int, str]]:
    """Machine id => (index, name) of AudioSet's classes."""
    rows = read_table(path, ("index", "mid", "display_name"))
    return {row["mid"]: (int(number(row["index"], f"{path}, line {line}")), row["display_name"]) for line, row in rows}


def main(argv: Sequence[str] | None = None) -> int:
    return run_corpus(clips, SPLITS, __doc__, argv, add_exclude_option)


if __name__ == "__main__":
    sys.exit(main())
