"""Free Music Archive: 106,574 tracks of 161 genres (Defferrard et al., 2017).

    python -m data.fma fma shards/fma

From github.com/mdeff/fma; metadata CC BY 4.0, a Creative Commons licence of its own for every track. SOURCE:

    fma_metadata/tracks.csv       three header rows: groups, columns, "track_id"; splits training/validation/test
    fma_metadata/raw_tracks.csv   one header row, 109,727 tracks, no splits; read where tracks.csv is not there
    fma_metadata/genres.csv       names of the genres' numbers
    fma_full/000/000002.mp3       whole tracks, 8,232 h; or 30 s of each, 888 h: fma_large, fma_medium (25,000 tracks),
                                  fma_small (8,000)

The largest folder there is read, or that of --subset; of a track the first --max-seconds are taken. The layout of
tracks.csv is taken from programs that read it, that of raw_tracks.csv from an excerpt; its genres are numbers, or dicts
with a title.

Caption: none. FMA is "a large music dataset without captions" (paper §IV-A), which the stages that need no text
train on. --genre-captions writes one of genres and tags, "Hip-Hop, beats, instrumental".
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audioldm2_pl.errors import UserError
from audioldm2_pl.tables import read_cells, read_table

from .corpus import MAX_SECONDS, MAX_SECONDS_OPTION, Corpus
from .shards import Clip, key_of
from .sources import python_list

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {"training": "train", "validation": "val", "test": "test"}
SUBSETS = ("small", "medium", "large", "full")  # each within the next


@dataclass
class Track:
    number: int
    title: str
    artist: str
    licence: str
    genres: list[str]
    tags: list[str]
    split: str = "train"
    subset: str = "small"  # the smallest that holds the track


def read_clips(
    source: Path,
    split: str,
    subset: str | None = None,
    max_seconds: float = MAX_SECONDS,
    genre_captions: bool = False,
) -> Iterator[Clip]:
    """The tracks of a split and of a subset, by default the largest whose folder is there."""
    there = [name for name in SUBSETS if subset in (None, name) and (source / f"fma_{name}").is_dir()]
    if not there:
        wanted = f"fma_{subset}" if subset else "any of fma_full, fma_large, fma_medium and fma_small"
        raise UserError(f"{source} does not hold {wanted}")
    subset = there[-1]
    for track in read_tracks(source):
        if track.split != split or SUBSETS.index(track.subset) > SUBSETS.index(subset):
            continue
        name = f"{track.number:06d}"
        words = list(dict.fromkeys([*track.genres, *track.tags]))
        yield Clip(
            key=key_of("fma", name),
            text=", ".join(words) if genre_captions and words else None,
            labels=track.genres,
            path=source / f"fma_{subset}" / name[:3] / f"{name}.mp3",
            duration=max_seconds,
            source="FMA",
            licence=track.licence,
            extra={
                "source_id": f"fma:{track.number}",
                "title": track.title,
                "artist": track.artist,
                "tags": track.tags,
            },
        )


def held_out(source: Path, **options: Any) -> set[str]:
    return {f"fma:{track.number}" for track in read_tracks(source) if track.split != "train"}


def read_tracks(source: Path) -> Iterator[Track]:
    """All tracks of tracks.csv, or else of raw_tracks.csv."""
    folder = source / "fma_metadata"
    titles: dict[str, str] = {}
    if (folder / "genres.csv").is_file():
        titles = {row["genre_id"]: row["title"] for _, row in read_table(folder / "genres.csv", ("genre_id", "title"))}
    if (folder / "tracks.csv").is_file():
        return _tracks(folder / "tracks.csv", titles)
    return _raw_tracks(folder / "raw_tracks.csv", titles)


def _tracks(path: Path, titles: dict[str, str]) -> Iterator[Track]:
    rows = read_cells(path)
    (_, groups), (_, names), (_, third) = (next(rows, (0, [""])) for _ in range(3))
    positions = {pair: index for index, pair in enumerate(zip(groups, names))}
    columns = [("track", name) for name in ("title", "license", "genres", "tags")]
    columns += [("artist", "name"), ("set", "split"), ("set", "subset")]
    missing = [".".join(column) for column in columns if column not in positions]
    if missing or third[0] != "track_id":
        raise UserError(f"{path} is not FMA's: {missing[0] if missing else 'the row of track_id'} is missing")
    for line, row in rows:
        where = f"{path}, line {line}"
        if len(row) != len(names) or not row[0].isdecimal():
            raise UserError(f"{where}: not a row of FMA's tracks; fetch the file again")
        title, licence, genres, tags, artist, split, subset = (row[positions[column]] for column in columns)
        if split not in SPLIT_NAMES or subset not in SUBSETS:
            raise UserError(f"{where}: split {split!r}, subset {subset!r} are not FMA's")
        names_of = _genres(genres, titles, where), _tags(tags, where)
        yield Track(int(row[0]), title, artist, licence, *names_of, SPLIT_NAMES[split], subset)


def _raw_tracks(path: Path, titles: dict[str, str]) -> Iterator[Track]:
    columns = ("track_id", "track_title", "artist_name", "license_title", "track_genres", "tags")
    for line, row in read_table(path, columns):
        where = f"{path}, line {line}"
        number, title, artist, licence, genres, tags = (row[column] for column in columns)
        if not number.isdecimal():
            raise UserError(f"{where}: {number!r} is not a track's number; fetch the file again")
        yield Track(int(number), title, artist, licence, _genres(genres, titles, where), _tags(tags, where))


def _genres(text: str, titles: dict[str, str], where: str) -> list[str]:
    """Names of the genres: of `[21, 4]`, of `{1, 76}`, or of `[{"genre_title": "Hip-Hop", ...}]`."""
    entries = python_list(text.strip() or "[]", where)
    if entries and isinstance(entries[0], dict):
        return [str(entry["genre_title"]) for entry in entries]
    unknown = [entry for entry in entries if str(entry) not in titles]
    if unknown:
        raise UserError(f"{where}: genre {unknown[0]} is not in genres.csv, which comes with it")
    return [titles[str(entry)] for entry in entries]


def _tags(text: str, where: str) -> list[str]:
    return [str(tag) for tag in python_list(text.strip() or "[]", where)]


CORPUS = Corpus(
    __doc__,
    SPLITS,
    read_clips,
    options={
        "--subset": {"choices": SUBSETS, "help": "default: the largest whose folder is there"},
        "--max-seconds": MAX_SECONDS_OPTION,
        "--genre-captions": {"action": "store_true", "help": "caption tracks by their genres and tags"},
    },
    held_out=held_out,
)
clips, main = CORPUS.clips, CORPUS.main

if __name__ == "__main__":
    sys.exit(main())
