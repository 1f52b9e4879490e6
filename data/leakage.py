"""Clips of evaluation sets stay out of training shards, by the id of their recording.

Corpora share recordings: AudioCaps and MusicCaps are parts of AudioSet, WavCaps holds AudioSet's clips and
FreeSound's, VGGSound draws on YouTube too. A clip names its recording in `extra["source_id"]`,
`youtube:<id>` or `freesound:<number>`; an evaluation set's list gives the ids to exclude. Lists as they are
published:

- AudioCaps `test.csv`, `val.csv`; MusicCaps `musiccaps-public.csv`; AudioSet `eval_segments.csv`
- Clotho `clotho_metadata_evaluation.csv` (FreeSound's numbers), ESC-50 `esc50.csv`, ESC-10 `meta.csv`
- WavCaps `json_files/blacklist/*.json`: {"AudioSet": ["Y<id>.wav", ...], "FreeSound": ["<number>", ...]}
- the list of AudioLDM's authors, {"data": [{"wav": ".../Y<id>.wav", ...}, ...]}

An id may be a file's name or a link (`sources.site_id`).
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from audioldm2_pl.errors import UserError
from audioldm2_pl.tables import read_cells, read_json, read_table

from .shards import Clip
from .sources import fields, read_segments, site_id

# The column that holds the ids, and whose ids they are.
COLUMNS = {
    "youtube_id": "youtube",
    "ytid": "youtube",
    "sound_id": "freesound",
    "freesound_id": "freesound",
    "src_file": "freesound",
}
LOST = {"", "not found"}  # in Clotho's tables where a recording's number is lost
MAX_SHOWN = 3  # ids in a warning


def without_ids(clips: Iterable[Clip], excluded: set[str], lists: Sequence[Path] = ()) -> Iterator[Clip]:
    """The clips whose recording is not excluded; prints at the end how many were, and warns of those of `lists` that
    name none of the clips."""
    num_excluded = 0
    found: set[str] = set()
    for clip in clips:
        identity = clip.extra.get("source_id")
        if identity in excluded:
            found.add(identity)
            num_excluded += 1
        else:
            yield clip
    if excluded:
        print(f"refused {num_excluded} clips of evaluation sets ({len(excluded)} ids listed)")
    for path in lists:
        ids = _listed(path)
        if found.isdisjoint(ids):
            shown = ", ".join(ids[:MAX_SHOWN])
            print(f"warning: {path}: none of its {len(ids)} ids is in this corpus ({shown}, ...)", file=sys.stderr)


def own_list_exists(table: Path) -> bool:
    """Whether a corpus's own list of val or test clips exists; warns where it does not, since training then gets the
    clips that it lists."""
    if not table.is_file():
        print(f"warning: {table} is not there: training may get clips that it lists", file=sys.stderr)
    return table.is_file()


def ids_of(clips: Iterable[Clip]) -> set[str]:
    """The recordings of clips."""
    return {clip.extra["source_id"] for clip in clips if "source_id" in clip.extra}


def excluded_ids(lists: Sequence[Path] | None) -> set[str]:
    """The ids of all lists; UserError for None, so that nobody forgets the evaluation sets unawares."""
    if lists is None:
        raise UserError(
            "this corpus shares recordings with evaluation sets: name their lists with --exclude "
            "(AudioCaps test.csv and val.csv, MusicCaps' CSV), or give --exclude alone to keep every clip"
        )
    return {identity for path in lists for identity in read_ids(path)}


def read_ids(path: Path) -> set[str]:
    """The ids of one published list; UserError where its layout is none of those above, where it is empty, and where
    something is no id."""
    return set(_listed(path))


def _listed(path: Path) -> list[str]:
    """The ids in the order of the list, each once."""
    if not path.is_file():
        raise UserError(f"{path}: no such list of evaluation clips")
    ids = list(dict.fromkeys(_json_ids(path) if path.suffix.lower() == ".json" else _table_ids(path)))
    if not ids:
        raise UserError(f"{path} lists no clips; fetch it again")
    return ids


def _identity(site: str, name: Any, where: Path | str) -> str:
    try:
        return f"{site}:{site_id(site, name)}"
    except UserError as error:
        raise UserError(f"{where}: {error}; correct it or take it out") from None


def _json_ids(path: Path) -> Iterator[str]:
    content = read_json(path)
    sites = {"AudioSet": "youtube", "FreeSound": "freesound"}
    if isinstance(content, dict) and set(sites) & set(content):
        for part, site in sites.items():
            yield from (_identity(site, name, path) for name in content.get(part) or ())
    elif isinstance(content, dict) and isinstance(content.get("data"), list):
        yield from (_identity("youtube", fields(item, ["wav"], path)[0], path) for item in content["data"])
    else:
        raise UserError(f"{path} is no list of evaluation clips that is known here; see `data/leakage.py`")


def _table_ids(path: Path) -> Iterator[str]:
    header = [name.strip() for name in next(read_cells(path, skipinitialspace=True), (1, [""]))[1]]
    if header[0].startswith("# Segments csv") or header[0] == "YTID":
        yield from (_identity("youtube", video, path) for video, *_ in read_segments(path))
        return
    column = next((column for column in COLUMNS if column in header), None)
    if column is None:
        raise UserError(f"{path} is no list of evaluation clips that is known here; see `data/leakage.py`")
    site = COLUMNS[column]
    for line, row in read_table(path, [column]):
        if site == "youtube" or row[column].strip().lower() not in LOST:
            yield _identity(site, row[column], f"{path}, line {line}")
