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

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from audioldm2_pl.errors import UserError
from audioldm2_pl.tables import read_json, read_table

from .corpus import Corpus
from .leakage import own_list_exists, read_ids
from .shards import Clip
from .sources import fields, number, site_id, source_id, youtube_clips

SPLITS = ("train", "val", "test")
CLIP_SECONDS = 10.0
LICENCE = "captions MIT, audio as its uploader set on YouTube"


def read_clips(source: Path, split: str, evaluation_list: Path | None = None) -> Iterator[Clip]:
    """The clips of a split; of "test" those of `evaluation_list`, if given, with its captions."""
    found = read_captions(_table(source, split))
    if split == "test" and evaluation_list is not None:
        found = _listed(found, evaluation_list)
    return youtube_clips(source, _rows(found), "AudioCaps", LICENCE)


def held_out(source: Path, evaluation_list: Path | None = None) -> set[str]:
    tables = [_table(source, split) for split in ("val", "test")]
    videos = [video for table in tables if own_list_exists(table) for video, _ in read_captions(table)]
    listed = read_ids(evaluation_list) if evaluation_list is not None else set()
    return {source_id("youtube", video) for video in videos} | listed


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


def _rows(found: dict[tuple[str, float], list[str]]) -> Iterator[tuple[str, float, float, dict[str, Any]]]:
    for (video, start), captions in found.items():
        yield (
            video,
            start,
            start + CLIP_SECONDS,
            {"text": captions[0]} if len(captions) == 1 else {"captions": captions},
        )


def _listed(found: dict[tuple[str, float], list[str]], path: Path) -> dict[tuple[str, float], list[str]]:
    starts = {video: start for video, start in found}  # a video comes once
    content = read_json(path)
    listed: dict[tuple[str, float], list[str]] = {}
    for item in content["data"] if isinstance(content, dict) and "data" in content else ():
        name, caption = fields(item, ("wav", "caption"), path)
        video = site_id("youtube", name)
        if video not in starts:
            raise UserError(f"{path}: test.csv has no clip of {video}")
        listed[video, starts[video]] = ["" if caption is None else caption]
    if not listed:
        raise UserError(f"{path} is not the authors' list: {{'data': [{{'wav': ..., 'caption': ...}}]}}")
    return listed


OPTIONS = {
    "--evaluation-list": {"type": Path, "metavar": "FILE", "help": "the 964 clips and captions of AudioLDM's authors"}
}
CORPUS = Corpus(__doc__, SPLITS, read_clips, OPTIONS, held_out=held_out, exclude="optional")
clips, main = CORPUS.clips, CORPUS.main

if __name__ == "__main__":
    sys.exit(main())
