"""Reading what corpora ship: tables, JSON files, and folders of recordings named by an id."""

import ast
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from audioldm2_pl.errors import UserError
from audioldm2_pl.tables import read_cells

from .shards import Clip, key_of

AUDIO_SUFFIXES = {".aac", ".aif", ".aiff", ".flac", ".m4a", ".mkv", ".mp3", ".mp4", ".ogg", ".opus", ".wav", ".webm"}

SECONDS = r"\d+(?:\.\d+)?"
# Site -> the id in a link; the id in a name without its folders, perhaps with a segment's start and end and a suffix;
# what to say of anything else.
SITES = {
    "youtube": (
        re.compile(r"(?:[?&]v=|youtu\.be/|youtube[\w-]*\.com/\w+/)([\w-]{11})(?![\w-])", re.ASCII),
        re.compile(rf"\[?Y?([\w-]{{11}})\]?(?:[_-]\[?{SECONDS}(?:[_-]{SECONDS})?\]?)?(?:\.\w+)?", re.ASCII),
        "is not named by a YouTube id of 11 characters",
    ),
    "freesound": (
        re.compile(r"freesound\.org/(?:.*/)?(?:sounds?|s)/0*(\d+)(?!\d)", re.ASCII),
        re.compile(r"0*(\d+)(?:\.0+)?(?:_.*)?(?:\.\w*[A-Za-z]\w*)?", re.ASCII),
        "is not a number of FreeSound's",
    ),
}


def read_segments(path: Path) -> Iterator[tuple[str, float, float, list[str]]]:
    """(video, start in seconds, end in seconds, machine ids of classes) of every row of AudioSet's segments."""
    for line, row in read_cells(path, skipinitialspace=True):
        if row[0].startswith("#") or row[0] == "YTID":  # copies without the # before the header are about
            continue
        where = f"{path}, line {line}"
        if len(row) != 4:
            raise UserError(f"{where}: {','.join(row)!r} is not a row of AudioSet's segments")
        yield row[0], number(row[1], where), number(row[2], where), row[3].split(",")


def fields(item: Any, names: Sequence[str], path: Path | str) -> list[Any]:
    """The values of a JSON object by name; UserError that names the file where one is not there."""
    missing = [name for name in names if not isinstance(item, dict) or name not in item]
    if missing:
        raise UserError(f"{path}: an entry has no {missing[0]!r}; is it the corpus's own file?")
    return [item[name] for name in names]


def number(text: Any, where: Path | str) -> float:
    """A finite number out of a table, 0 or more; UserError that says where none stands."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value < math.inf:
        raise UserError(f"{where}: {text!r} stands where a number should; is it the corpus's own file?")
    return value


def python_list(text: str, where: str) -> list[Any]:
    """A list or a set as Python prints it; a set in order, for the same shards from the same file."""
    try:
        value = ast.literal_eval(text)
        return sorted(value) if isinstance(value, set) else list(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise UserError(f"{where}: {text[:40]!r} is not a list; fetch the file again") from None


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


def youtube_clips(
    folder: Path, rows: Iterable[tuple[str, float, float, dict[str, Any]]], corpus: str, licence: str
) -> Iterator[Clip]:
    """A clip for each row of a table: the YouTube video by any of its names, start and end in seconds, and the clip's
    further fields. The recordings lie anywhere below `folder`."""
    files = audio_files(folder)
    for name, start, end, known in rows:
        identity = source_id("youtube", name)
        video = identity.removeprefix("youtube:")
        path, *others = youtube_files(files, folder, video, start, end)
        yield Clip(
            key=key_of(video, f"{start:g}"),
            path=path,
            others=others,
            duration=end - start,
            recording_start=start,
            source=corpus,
            licence=licence,
            extra={"source_id": identity, "source_start": start} | known.pop("extra", {}),
            **known,
        )


def site_id(site: str, name: Any) -> str:
    """A recording's id on a site of `SITES`, out of the id, a file's name or a link; UserError where it names none.

    YouTube's, with or without a Y before it, folders, a segment, a suffix: `Y7fmOlUlwoNg.wav`,
    `7fmOlUlwoNg_20_30.flac`, `https://youtu.be/7fmOlUlwoNg`. FreeSound's: `123`, 123.0, `123.flac`,
    `https://freesound.org/people/me/sounds/123/`.
    """
    link, stem, error = SITES[site]
    text = str(name).strip()
    match = link.search(text) or stem.fullmatch(text.removeprefix(f"{site}:").replace("\\", "/").rsplit("/", 1)[-1])
    if match is None:
        raise UserError(f"{name!r} {error}")
    return match[1]


def source_id(site: str, name: Any) -> str:
    """What names a recording in every corpus and list: `youtube:<id>`, `freesound:<number>`, or `<site>:<name>`.

    A name that is no id of the site's stands as it is, so that one bad row of a corpus does not end its build.
    """
    try:
        return f"{site}:{site_id(site, name)}"
    except (KeyError, UserError):
        return f"{site}:{str(name).strip()}"
