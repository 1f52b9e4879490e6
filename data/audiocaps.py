"""AudioCaps: clips of 10 s out of AudioSet with captions written by hand (Kim et al., 2019).

    python -m data.audiocaps AudioCaps shards/audiocaps --evaluation-list audiocaps_test_nonrepeat_subset_2.json

From github.com/cdjkim/audiocaps, MIT; the recordings are YouTube's. SOURCE is that repository's `dataset` folder,
or the repository, with the clips in any folders below it, named as AudioSet's (`sources.py`):

    train.csv   49,838 rows, one caption a clip (2.0: 91,256)
    val.csv     2,475 rows, five captions each of 495 clips
    test.csv    4,875 rows, five captions each of 975 clips

138 h for training if all of it were still on YouTube; AudioLDM 2's authors had about 46,000 clips in all.

Caption: as written; the captions of one clip are together in it. With --evaluation-list "test" is the list of
AudioLDM's authors instead: 964 clips in its order, each with the one caption it was scored by.
Clips of val and test are refused in training, as are the ids of --exclude (MusicCaps, say).
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from audioldm2_pl.errors import UserError
from audioldm2_pl.tables import read_json, read_table

from .corpus import run_corpus
from .leakage import add_exclude_option, guarded, is_there, read_ids, refused_ids
from .shards import Clip
from .sources import audio_files, fields, number, source_id, video_id, youtube_clip

SPLITS = ("train", "val", "test")
CLIP_SECONDS = 10.0
LICENCE = "captions MIT, audio as its uploader set on YouTube"


def clips(
    source: Path, split: str, exclude: Sequence[Path] | None = None, evaluation_list: Path | None = None
) -> Iterator[Clip]:
    """The clips of a split; of "test" those of `evaluation_list`, if given, with its captions."""
    if split != "train":
        return _clips(source, split, evaluation_list if split == "test" else None)
    refused = refused_ids(exclude or ())
    for table in (_table(source, other) for other in ("val", "test")):
        refused |= {source_id("youtube", video) for video, _ in read_captions(table)} if is_there(table) else set()
    refused |= read_ids(evaluation_list) if evaluation_list is not None else set()
    return guarded(_clips(source, split), refused, exclude or ())


def _clips(source: Path, split: str, evaluation_list: Path | None = None) -> Iterator[Clip]:
    found = read_captions(_table(source, split))
    if evaluation_list is not None:
        found = _listed(found, evaluation_list)
    files = audio_files(source)
    for (video, start), captions in found.items():
        yield youtube_clip(
            files,
            source,
            video,
            start,
            start + CLIP_SECONDS,
            text=captions[0] if len(captions) == 1 else None,
            captions=captions if len(captions) > 1 else None,
            source="AudioCaps",
            licence=LICENCE,
        )


def _table(source: Path, split: str) -> Path:
    clone = source / "dataset" / f"{split}.csv"
    return clone if clone.is_file() else source / f"{split}.csv"


def read_captions(path: Path) -> dict[tuple[str, float], list[str]]:
    """(video, start in seconds) => its captions, in the order of the file."""
    found: dict[tuple[str, float], list[str]] = {}
    for line, row in read_table(path, ("youtube_id", "start_time", "caption")):
        video = source_id("youtube", row["youtube_id"]).removeprefix("youtube:")
        found.setdefault((video, number(row["start_time"], f"{path}, line {line}")), []).append(row["caption"])
    return found


def _listed(found: dict[tuple[str, float], list[str]], path: Path) -> dict[tuple[str, float], list[str]]:
    starts = {video: start for video, start in found}  # a video comes once
    content = read_json(path)
    listed: dict[tuple[str, float], list[str]] = {}
    for item in content["data"] if isinstance(content, dict) and "data" in content else ():
        name, caption = fields(item, ("wav", "caption"), path)
        video = video_id(name)
        if video not in starts:
            raise UserError(f"{path}: test.csv has no clip of {video}")
        listed[video, starts[video]] = ["" if caption is None else caption]
    if not listed:
        raise UserError(f"{path} is not the authors' list: {{'data': [{{'wav': ..., 'caption': ...}}]}}")
    return listed


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_exclude_option(parser)
    parser.add_argument(
        "--evaluation-list", type=Path, metavar="FILE", help="the 964 clips and captions of AudioLDM's authors"
    )


def main(argv: Sequence[str] | None = None) -> int:
    return run_corpus(clips, SPLITS, __doc__, argv, _add_options)


if __name__ == "__main__":
    sys.exit(main())
