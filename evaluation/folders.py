"""Folders of audio and tables of captions, by name: what scores and listening tests are made of.

Shapes: T samples.
"""

import unicodedata
from pathlib import Path

from audioldm2_pl.errors import UserError
from audioldm2_pl.tables import read_table

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


def clip_files(folder: Path) -> dict[str, Path]:
    """Relative name without suffix, in NFC -> file, for the audio anywhere below `folder` that is not hidden."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of audio")
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in SUFFIXES and not hidden and path.is_file():
            name = clip_name(path.relative_to(folder))
            if name in files:
                raise UserError(f"{folder}: {files[name].name} and {path.name} are one name; keep one of them")
            files[name] = path
    if not files:
        raise UserError(f"{folder}: holds no audio ({', '.join(SUFFIXES)})")
    return files


def clip_name(path: Path) -> str:
    """What a clip is called: its path without the suffix, accents in the one form that all systems share."""
    path = path.with_suffix("") if path.suffix.lower() in SUFFIXES else path
    return unicodedata.normalize("NFC", path.as_posix())


def read_names(path: Path, column: str) -> dict[str, list[str]]:
    """Name -> texts, from a CSV with the columns filename and `column`, one row a text."""
    found: dict[str, list[str]] = {}
    for line, row in read_table(path, ("filename", column)):
        name, text = Path(row["filename"].strip()), row[column].strip()
        if not name.name or not text or "\ufffd" in text:
            raise UserError(
                f"{path}, line {line}: needs the columns filename and {column}, filled in every row with characters "
                "that no wrong encoding has lost"
            )
        found.setdefault(clip_name(name), []).append(text)
    if not found:
        raise UserError(f"{path}: holds no {column}s; needs the columns filename and {column}")
    return found
