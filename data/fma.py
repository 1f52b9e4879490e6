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

Caption: none. FMA is "a large music dataset without captions" (paper, section IV-A), which the stages that need no text
train on. --genre-captions writes one of genres and tags, "Hip-Hop, beats, instrumental".
"""

import argparse
import ast
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audioldm2_pl.errors import UserError
from audioldm2_pl.tables import read_cells, read_table

from .corpus import run_corpus
from .leakage import guarded
from .shards import Clip, key_of

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {"training": "train", "validation": "val", "test": "test"}
SUBSETS = ("small", "medium", "large", "full")  # each within the next
MAX_SECONDS = 600.0


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


def clips(
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
    if split != "train":
        return _clips(source, split, subset, max_seconds, genre_captions)
    refused = {f"fma:{track.number}" for track in read_tracks(source) if track.split != "train"}
    return guarded(_clips(source, split, subset, max_seconds, genre_captions), refused)


def _clips(source: Path, split: str, subset: str, max_seconds: float, genre_captions: bool) -> Iterator[Clip]:
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
    place = {pair: index for index, pair in enumerate(zip(groups, names))}
    columns = [("track", name) for name in ("title", "license", "genres", "tags")]
    columns += [("artist", "name"), ("set", "split"), ("set", "subset")]
    missing = [".".join(column) for column in columns if column not in place]
    if missing or third[0] != "track_id":
        raise UserError(f"{path} is not FMA's: it lacks {missing[0] if missing else 'the row of track_id'}")
    for line, row in rows:
        if len(row) != len(names) or not row[0].isdecimal():
            raise UserError(f"{path}, line {line}: not a row of FMA's tracks; fetch the file again")
        title, licence, genres, tags, artist, split, subset = (row[place[column]] for column in columns)
        if split not in SPLIT_NAMES or subset not in SUBSETS:
            raise UserError(f"{path}, line {line}: split {split!r}, subset {subset!r} are not FMA's")
        yield Track(
            number=int(row[0]),
            title=title,
            artist=artist,
            licence=licence,
            genres=_genres(genres, titles, f"{path}, line {line}"),
            tags=[str(tag) for tag in _literal(tags, f"{path}, line {line}")],
            split=SPLIT_NAMES[split],
            subset=subset,
        )


def _raw_tracks(path: Path, titles: dict[str, str]) -> Iterator[Track]:
    columns = ("track_id", "track_title", "artist_name", "license_title", "track_genres", "tags")
    for line, row in read_table(path, columns):
        place = f"{path}, line {line}"
        if not row["track_id"].isdecimal():
            raise UserError(f"{place}: {row['track_id']!r} is not a track's number; fetch the file again")
        yield Track(
            number=int(row["track_id"]),
            title=row["track_title"],
            artist=row["artist_name"],
            licence=row["license_title"],
            genres=_genres(row["track_genres"], titles, place),
            tags=[str(tag) for tag in _literal(row["tags"], place)],
        )


def _genres(text: str, titles: dict[str, str], place: str) -> list[str]:
    """Names of the genres: of `[21, 4]`, of `{1, 76}`, or of `[{"genre_title": "Hip-Hop", ...}]`."""
    entries = _literal(text, place)
    if entries and isinstance(entries[0], dict):
        return [str(entry["genre_title"]) for entry in entries]
    unknown = [entry for entry in entries if str(entry) not in titles]
    if unknown:
        raise UserError(f"{place}: genre {unknown[0]} is not in genres.csv, which comes with it")
    return [titles[str(entry)] for entry in entries]


def _literal(text: str, place: str) -> list[Any]:
    """A list or a set as Python prints it; a set in order, for the same shards from the same file."""
    try:
        value = ast.literal_eval(text) if text.strip() else []
        return sorted(value) if isinstance(value, set) else list(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise UserError(f"{place}: {text[:40]!r} is not a list; fetch the file again") from None


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--subset", choices=SUBSETS, help="default: the largest whose folder is there")
    parser.add_argument(
        "--max-seconds", type=float, default=MAX_SECONDS, metavar="S", help="taken of a track, from its start"
    )
    parser.add_argument("--genre-captions", action="store_true", help="caption tracks by their genres and tags")


def main(argv: Sequence[str] | None = None) -> int:
    return run_corpus(clips, SPLITS, __doc__, argv, _add_options)


if __name__ == "__main__":
    sys.exit(main())
