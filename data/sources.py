"""Reading what corpora ship: tables, JSON files, and folders of recordings named by an id."""

import csv
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from audioldm2_pl.errors import UserError

AUDIO_SUFFIXES = {".flac", ".m4a", ".mkv", ".mp3", ".mp4", ".ogg", ".opus", ".wav", ".webm"}

csv.field_size_limit(1 << 24)  # descriptions of albums are longer than Python's default of 128 Ki


def read_table(path: Path, columns: Sequence[str], encoding: str = "utf-8-sig") -> Iterator[dict[str, str]]:
    """The rows of a CSV file with a header; UserError where it is missing or lacks one of `columns`."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; it comes with the corpus")
    with path.open(newline="", encoding=encoding, errors="replace") as file:
        reader = csv.DictReader(file)
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise UserError(f"{path} has no column {missing[0]}; is it the corpus's own file?")
        for row in reader:
            if any(row[column] is None for column in columns):
                raise UserError(f"{path}, line {reader.line_num}: the row is cut off; fetch the file again")
            yield row


def read_segments(path: Path) -> Iterator[tuple[str, float, float, list[str]]]:
    """(video, start in seconds, end in seconds, machine ids of classes) of every row of AudioSet's segments."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        for row in csv.reader((line for line in file if not line.startswith("#")), skipinitialspace=True):
            if not row or row[0] == "YTID":  # copies without the # before the header are about
                continue
            if len(row) != 4:
                raise UserError(f"{path}: {','.join(row)!r} is not a row of AudioSet's segments")
            yield row[0], number(row[1], path), number(row[2], path), row[3].split(",")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; it comes with the corpus") from None
    except ValueError as error:
        raise UserError(f"{path} is not whole JSON ({error}); fetch it again") from None


def fields(item: Any, names: Sequence[str], path: Path) -> list[Any]:
    """The values of a JSON object by name; UserError that names the file where one is not there."""
    missing = [name for name in names if not isinstance(item, dict) or name not in item]
    if missing:
        raise UserError(f"{path}: an entry has no {missing[0]!r}; is it the corpus's own file?")
    return [item[name] for name in names]


def number(text: str, path: Path) -> float:
    """A number out of a table; UserError that names the file where it is none."""
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{path}: {text!r} stands where a number should; is it the corpus's own file?") from None


def audio_files(folder: Path) -> dict[str, str]:
    """Stem => path of every recording below a folder; of equal stems the first in order of path counts."""
    found: dict[str, str] = {}
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in AUDIO_SUFFIXES:
                found.setdefault(stem, os.path.join(parent, name))
    return found


def youtube_file(files: dict[str, str], source: Path, video: str, start: float, end: float) -> Path:
    """The recording of a YouTube clip among `audio_files`, by any of the names downloaders give it.

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
    return Path(next((files[name] for name in names if name in files), source / f"Y{video}.wav"))


def video_id(name: str) -> str:
    """YouTube's id out of a file name: `Y7fmOlUlwoNg.wav`, with or without the Y, the suffix, folders."""
    match = re.fullmatch(r"Y?([\w-]{11})(\.\w+)?", name.replace("\\", "/").rsplit("/", 1)[-1], re.ASCII)
    if match is None:
        raise UserError(f"{name!r} is not named by a YouTube id of 11 characters")
    return match[1]
