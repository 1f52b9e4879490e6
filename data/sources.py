"""Reading what corpora ship: tables, JSON files, and folders of recordings named by an id."""

import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from audioldm2_pl.errors import UserError
from audioldm2_pl.tables import read_cells

from .shards import Clip, key_of

AUDIO_SUFFIXES = {".flac", ".m4a", ".mkv", ".mp3", ".mp4", ".ogg", ".opus", ".wav", ".webm"}

SECONDS = r"\d+(?:\.\d+)?"
# Of a name, without its folders: an id, perhaps a segment's start and end, and a suffix.
YOUTUBE_NAME = re.compile(rf"\[?Y?([\w-]{{11}})\]?(?:[_-]\[?{SECONDS}(?:[_-]{SECONDS})?\]?)?(?:\.\w+)?", re.ASCII)
YOUTUBE_LINK = re.compile(r"(?:[?&]v=|youtu\.be/|youtube[\w-]*\.com/\w+/)([\w-]{11})(?![\w-])", re.ASCII)
FREESOUND_NAME = re.compile(r"0*(\d+)(?:\.0+)?(?:_.*)?(?:\.\w*[A-Za-z]\w*)?", re.ASCII)
FREESOUND_LINK = re.compile(r"freesound\.org/(?:.*/)?(?:sounds?|s)/0*(\d+)(?!\d)", re.ASCII)


def read_segments(path: Path) -> Iterator[tuple[str, float, float, list[str]]]:
    """(video, start in seconds, end in seconds, machine ids of classes) of every row of AudioSet's segments."""
    for line, row in read_cells(path, skipinitialspace=True):
        if row[0].startswith("#") or row[0] == "YTID":  # copies without the # before the header are about
            continue
        place = f"{path}, line {line}"
        if len(row) != 4:
            raise UserError(f"{place}: {','.join(row)!r} is not a row of AudioSet's segments")
        yield row[0], number(row[1], place), number(row[2], place), row[3].split(",")


def fields(item: Any, names: Sequence[str], path: Path | str) -> list[Any]:
    """The values of a JSON object by name; UserError that names the file where one is not there."""
    missing = [name for name in names if not isinstance(item, dict) or name not in item]
    if missing:
        raise UserError(f"{path}: an entry has no {missing[0]!r}; is it the corpus's own file?")
    return [item[name] for name in names]


def number(text: Any, place: Path | str) -> float:
    """A finite number out of a table, 0 or more; UserError that names the place where it is none."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value < math.inf:
        raise UserError(f"{place}: {text!r} stands where a number should; is it the corpus's own file?")
    return value


def audio_files(folder: Path) -> dict[str, list[str]]:
    """Stem => paths of every recording of that name below a folder, in the order of path."""
    found: dict[str, list[str]] = {}
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in AUDIO_SUFFIXES:
                found.setdefault(stem, []).append(os.path.join(parent, name))
    return found


def youtube_files(files: dict[str, list[str]], source: Path, video: str, start: float, end: float) -> list[Path]:
    """The recordings of a YouTube clip among `audio_files`, by any of the names downloaders give it; segments first.

    A clip that is not there gets the name it would have as AudioSet is commonly laid out, `Y<id>.wav`.
    """
    names = (
        f"{video}_{start:06.0f}",  # VGGSound
        f"{video}_{start:g}_{end:g}",
        f"{video}_{start:g}-{end:g}",
        f"{video}_{start:.1f}-{end:.1f}",  # audioset-download
        f"{video}_{1000 * start:.0f}_{1000 * end:.0f}",  # audiosetdl: milliseconds
        f"{video}_{start:g}",
        f"[{video}]-[{start:g}-{end:g}]",  # LP-MusicCaps
        f"Y{video}",  # the audio of PANNs, WavCaps, AudioLDM
        video,
    )
    found = [Path(path) for name in dict.fromkeys(names) for path in files.get(name, ())]
    return found or [source / f"Y{video}.wav"]


def youtube_clip(files: dict[str, list[str]], folder: Path, name: str, start: float, end: float, **known: Any) -> Clip:
    """A clip of the YouTube video that a table calls `name`; `files` are the `audio_files` of the folder, and `known`
    the clip's further fields."""
    identity = source_id("youtube", name)
    video = identity.removeprefix("youtube:")
    path, *others = youtube_files(files, folder, video, start, end)
    return Clip(
        key=key_of(video, f"{start:g}"),
        path=path,
        others=others,
        duration=end - start,
        recording_start=start,
        extra={"source_id": identity, "source_start": start} | known.pop("extra", {}),
        **known,
    )


def video_id(name: Any) -> str:
    """YouTube's id out of an id, a file's name or a link, with or without a Y before it, folders, a segment, a suffix:
    `Y7fmOlUlwoNg.wav`, `7fmOlUlwoNg_20_30.flac`, `https://youtu.be/7fmOlUlwoNg`."""
    text = str(name).strip()
    link = YOUTUBE_LINK.search(text)
    match = link or YOUTUBE_NAME.fullmatch(text.removeprefix("youtube:").replace("\\", "/").rsplit("/", 1)[-1])
    if match is None:
        raise UserError(f"{name!r} is not named by a YouTube id of 11 characters")
    return match[1]


def sound_number(name: Any) -> str:
    """FreeSound's number out of a number, a file's name or a link: `123`, 123.0, `123.flac`,
    `https://freesound.org/people/me/sounds/123/`."""
    text = str(name).strip()
    link = FREESOUND_LINK.search(text)
    match = link or FREESOUND_NAME.fullmatch(text.removeprefix("freesound:").replace("\\", "/").rsplit("/", 1)[-1])
    if match is None:
        raise UserError(f"{name!r} is not a number of FreeSound's")
    return match[1]


def source_id(site: str, name: Any) -> str:
    """What names a recording in every corpus and list: `youtube:<id>`, `freesound:<number>`, or `<site>:<name>`.

    A name that is no id of the site's stands as it is, so that one bad row of a corpus does not end its build.
    """
    try:
        return f"{site}:{SITES[site](name)}"
    except (KeyError, UserError):
        return f"{site}:{str(name).strip()}"


SITES = {"youtube": video_id, "freesound": sound_number}
