"""Clips of evaluation sets stay out of training shards, by the id of their recording.

Corpora share recordings: AudioCaps and MusicCaps are parts of AudioSet, WavCaps holds AudioSet's clips and
FreeSound's, VGGSound draws on YouTube too. A clip names its recording in `extra["source_id"]`,
`youtube:<id>` or `freesound:<number>`; an evaluation set's list gives the ids to refuse. Lists as they are
published:

- AudioCaps `test.csv`, `val.csv`; MusicCaps `musiccaps-public.csv`; AudioSet `eval_segments.csv`
- Clotho `clotho_metadata_evaluation.csv` (FreeSound's numbers)
- WavCaps `json_files/blacklist/*.json`: {"AudioSet": ["Y<id>.wav", ...], "FreeSound": ["<number>", ...]}
- the list of AudioLDM's authors, {"data": [{"wav": ".../Y<id>.wav", ...}, ...]}
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from audioldm2_pl.errors import UserError

from .shards import Clip
from .sources import fields, read_json, read_segments, read_table, video_id

# The column that holds the ids, and whose ids they are.
COLUMNS = {"youtube_id": "youtube", "ytid": "youtube", "sound_id": "freesound"}


def guarded(clips: Iterable[Clip], refused: set[str]) -> Iterator[Clip]:
    """The clips whose recording is not refused; prints at the end how many were."""
    num_refused = 0
    for clip in clips:
        if clip.extra["source_id"] in refused:
            num_refused += 1
        else:
            yield clip
    if refused:
        print(f"refused {num_refused} clips of evaluation sets ({len(refused)} ids listed)")


def refused_ids(lists: Sequence[Path] | None) -> set[str]:
    """The ids of all lists; UserError for None, so that nobody forgets the evaluation sets unawares."""
    if lists is None:
        raise UserError(
            "this corpus shares recordings with evaluation sets: name their lists with --exclude "
            "(AudioCaps test.csv and val.csv, MusicCaps' CSV), or give --exclude alone to keep every clip"
        )
    return {identity for path in lists for identity in read_ids(path)}


def read_ids(path: Path) -> set[str]:
    """The ids of one published list; UserError where its layout is none of those above, or it is empty."""
    if not path.is_file():
        raise UserError(f"{path}: no such list of evaluation clips")
    ids = set(_json_ids(path) if path.suffix.lower() == ".json" else _table_ids(path))
    if not ids:
        raise UserError(f"{path} lists no clips; fetch it again")
    return ids


def _json_ids(path: Path) -> Iterator[str]:
    content = read_json(path)
    if isinstance(content, dict) and {"AudioSet", "FreeSound"} & set(content):
        yield from (f"youtube:{video_id(name)}" for name in content.get("AudioSet", ()))
        yield from (f"freesound:{identity}" for identity in content.get("FreeSound", ()))
    elif isinstance(content, dict) and "data" in content:
        yield from (f"youtube:{video_id(*fields(item, ['wav'], path))}" for item in content["data"])
    else:
        raise UserError(f"{path} is no list of evaluation clips that is known here; see `data/leakage.py`")


def _table_ids(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        header = file.readline().strip()
    if header.startswith("# Segments csv"):
        yield from (f"youtube:{video}" for video, *_ in read_segments(path))
        return
    column = next((column for column in COLUMNS if column in header.split(",")), None)
    if column is None:
        raise UserError(f"{path} is no list of evaluation clips that is known here; see `data/leakage.py`")
    for row in read_table(path, [column]):
        # Clotho has "Not found" where a recording's number is lost.
        if row[column] and " " not in row[column]:
            yield f"{COLUMNS[column]}:{row[column]}"


def add_exclude_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--exclude",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="lists of evaluation clips that must not be trained on: AudioCaps test.csv and val.csv, MusicCaps' CSV, "
        "WavCaps' blacklists, AudioSet's eval_segments.csv; without a FILE every clip is kept",
    )
