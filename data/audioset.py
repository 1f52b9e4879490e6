"""AudioSet: two million clips of 10 s from YouTube, 527 classes (Gemmeke et al., 2017).

    python -m data.audioset AudioSet shards/audioset --exclude audiocaps/test.csv audiocaps/val.csv musiccaps-public.csv

From research.google.com/audioset; labels CC BY 4.0, the recordings are YouTube's and not distributed. SOURCE:

    balanced_train_segments.csv     22,160 clips (train)
    unbalanced_train_segments.csv   2,041,789 clips (train)
    eval_segments.csv               20,371 clips (test)
    class_labels_indices.csv        527 classes
    any folders of clips            Y<id>.wav, <id>.flac, <id>_<start>_<end>.flac in milliseconds, ... (`sources.py`)

About 5,800 h if all of it were still on YouTube; clips that are not among the files are listed as left out.
Either train file alone will do. The ids of a list in --exclude are refused in training: AudioCaps and MusicCaps are
parts of AudioSet.

Caption: the classes' names in the order of their indices, "Speech, Dog, Bark". AudioLDM's training code
writes the same with a full stop.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from audioldm2_pl.errors import UserError

from .corpus import run_corpus
from .leakage import add_exclude_option, guarded, refused_ids
from .shards import Clip, key_of
from .sources import audio_files, number, read_segments, read_table, youtube_file

SPLITS = ("train", "test")
SEGMENTS = {
    "train": ("balanced_train_segments.csv", "unbalanced_train_segments.csv"),
    "test": ("eval_segments.csv",),
}
LICENCE = "labels CC BY 4.0, audio as its uploader set on YouTube"


def clips(source: Path, split: str, exclude: Sequence[Path] | None = None) -> Iterator[Clip]:
    """The clips of "train", less those of the lists in `exclude`, or of "test"."""
    found = _clips(source, split)
    return guarded(found, refused_ids(exclude)) if split == "train" else found


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
            yield Clip(
                key=key_of(video, f"{start:g}"),
                text=", ".join(labels),
                labels=labels,
                path=youtube_file(files, source, video, start, end),
                duration=end - start,
                source="AudioSet",
                licence=LICENCE,
                extra={"source_id": f"youtube:{video}", "source_start": start},
            )


def read_classes(path: Path) -> dict[str, tuple[int, str]]:
    """Machine id => (index, name) of AudioSet's classes."""
    rows = read_table(path, ("index", "mid", "display_name"))
    return {row["mid"]: (int(number(row["index"], path)), row["display_name"]) for row in rows}


def main(argv: Sequence[str] | None = None) -> int:
    return run_corpus(clips, SPLITS, __doc__, argv, add_exclude_option)


if __name__ == "__main__":
    sys.exit(main())
