"""Million Song Dataset, the labelled part ECALS: some 510,000 excerpts of 30 s with tags, titles, artists.

    python -m data.msd msd shards/msd --lp-musiccaps lp_musiccaps_msd.jsonl

Songs by Bertin-Mahieux et al. (2011), tags by Doh et al. (2022), captions by Doh et al. (2023). About 4,250 h. The
annotations are research use (LP-MusicCaps: CC BY-NC 4.0), the sound 7digital's previews, which nobody may
pass on. SOURCE is the dataset folder of github.com/seungheondoh/music-text-representation:

    ecals_annotation/annotation.json            {track: {"track_id", "title", "artist_name", "tag": [...], ...}}
    ecals_annotation/ecals_track_split.json     {"train_track", "extra_track", "valid_track", "test_track": [...]}
    lastfm_annotation/MSD_id_to_7D_id.json      track => 7digital's number
    lastfm_annotation/7D_id_to_path.json        7digital's number => 8/9/8947470.clip.mp3
    songs/8/9/8947470.clip.mp3                  or, without the two tables, <track>.mp3 in any folders

The two tables come as pickles, which nothing here opens, for a pickle can run code. If you trust them, convert each:

    python -c "import json, pickle, sys; json.dump(pickle.load(sys.stdin.buffer), sys.stdout)" < TABLE.pkl > TABLE.json

These layouts are taken from the repository's loader. Where annotation.json is not there, the tags come from
`{train,valid}_tag_to_track.json` of github.com/seungheondoh/lp-music-caps, {tag: [track, ...]}: no titles, no test.
--lp-musiccaps reads that dataset (LP-MusicCaps-MSD, all its splits) as JSON lines, a track with its captions in each.

Captions: the tags, and the tags after title and artist; the paper says only that tags, titles and artists are
used. Before them, if given, LP-MusicCaps' written, summarised and paraphrased ones; its fourth is advised against.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from audioldm2_pl.errors import UserError
from audioldm2_pl.tables import read_json, read_lines

from .corpus import Corpus
from .shards import Clip, key_of
from .sources import audio_files, fields

SPLITS = ("train", "valid", "test")
TRACK_LISTS = {"train": ("train_track", "extra_track"), "valid": ("valid_track",), "test": ("test_track",)}
CAPTIONS = ("caption_writing", "caption_summary", "caption_paraphrase")
LICENCE = "annotations research use, audio 7digital's"


def read_clips(source: Path, split: str, lp_musiccaps: Path | None = None) -> Iterator[Clip]:
    """The tracks of a split that have a tag or a caption."""
    paths = _paths(source)
    written = {} if lp_musiccaps is None else read_lp_musiccaps(lp_musiccaps)
    for song in _songs(source, split):
        track = song["track_id"]
        captions = [*written.get(track, ()), *tag_captions(song)]
        if captions:
            path, *others = paths.get(track, [source / "songs" / f"{track}.mp3"])
            title, artist = song.get("title", ""), song.get("artist_name", "")
            yield Clip(
                key=key_of(track),
                captions=captions,
                labels=song["tag"],
                path=path,
                others=others,
                source="MSD",
                licence=LICENCE,
                extra={"source_id": f"msd:{track}", "title": title, "artist": artist},
            )


def held_out(source: Path, **options: Any) -> set[str]:
    """The tracks of the other splits, and those that share a recording with them."""
    paths = _paths(source)
    tracks = {song["track_id"] for split in ("valid", "test") for song in _songs(source, split)}
    recordings = {path for track in tracks for path in paths.get(track, ())}
    tracks |= {track for track, own in paths.items() if recordings.intersection(own)}
    return {f"msd:{track}" for track in tracks}


def tag_captions(song: dict[str, Any]) -> list[str]:
    """`["jazz, piano", "Title by Artist: jazz, piano"]`, the second where both are known."""
    if not song["tag"]:
        return []
    tags = ", ".join(song["tag"])
    named = song.get("title") and song.get("artist_name")
    return [tags, f"{song['title']} by {song['artist_name']}: {tags}"] if named else [tags]


def _songs(source: Path, split: str) -> Iterator[dict[str, Any]]:
    folder = source / "ecals_annotation"
    if not (folder / "annotation.json").is_file():
        for track, tags in _tags_by_track(source, split).items():
            yield {"track_id": track, "tag": tags}
        return
    songs, lists = read_json(folder / "annotation.json"), read_json(folder / "ecals_track_split.json")
    for name in TRACK_LISTS[split]:
        for track in lists.get(name, ()):
            if track not in songs:
                raise UserError(f"{folder}: {name} names {track}, which annotation.json does not hold")
            fields(songs[track], ("track_id", "tag"), folder / "annotation.json")
            yield songs[track]


def _tags_by_track(source: Path, split: str) -> dict[str, list[str]]:
    if not (source / "train_tag_to_track.json").is_file():
        raise UserError(f"{source} holds neither ecals_annotation/annotation.json nor train_tag_to_track.json")
    path = source / f"{split}_tag_to_track.json"
    tracks: dict[str, list[str]] = {}
    for tag, names in (read_json(path) if path.is_file() else {}).items():
        for track in names:
            if re.fullmatch(r"TR[A-Z0-9]{16}", track):  # the published file shortens its lists by "..."
                tracks.setdefault(track, []).append(tag)
    return tracks


def read_lp_musiccaps(path: Path) -> dict[str, list[str]]:
    """Track => captions, of JSON lines with "track_id", "caption_writing", "caption_summary", ..."""
    captions: dict[str, list[str]] = {}
    for number, line in read_lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f"{path}, line {number}: not a line of JSON") from None
        track, *written = fields(row, ("track_id", *CAPTIONS), f"{path}, line {number}")
        captions[track] = [caption for caption in written if isinstance(caption, str) and caption.strip()]
    return captions


def _paths(source: Path) -> dict[str, list[Path]]:
    """Track => its recordings: by 7digital's numbers where the tables are there, else by the files' names."""
    folder = source / "lastfm_annotation"
    if not (folder / "MSD_id_to_7D_id.json").is_file():
        if (folder / "MSD_id_to_7D_id.pkl").is_file():
            raise UserError(f"{folder}: its tables are pickles; convert them to JSON as `data/msd.py` says")
        return {stem: [Path(path) for path in paths] for stem, paths in audio_files(source).items()}
    numbers, names = (read_json(folder / name) for name in ("MSD_id_to_7D_id.json", "7D_id_to_path.json"))
    return {track: [source / "songs" / names[str(number)]] for track, number in numbers.items() if str(number) in names}


OPTIONS = {"--lp-musiccaps": {"type": Path, "metavar": "FILE", "help": "captions of LP-MusicCaps-MSD, JSON lines"}}
CORPUS = Corpus(__doc__, SPLITS, read_clips, OPTIONS, held_out=held_out)
clips, main = CORPUS.clips, CORPUS.main

if __name__ == "__main__":
    sys.exit(main())
