"""Folders of audio and tables of captions, by name: what scores and listening tests are made of.

Shapes: T samples.
"""

import csv
import unicodedata
from pathlib import Path

import numpy as np
import soundfile

from audioldm2_pl.errors import UserError

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


def audio_files(folder: Path) -> dict[str, Path]:
    """Relative name without suffix, in NFC -> file, for the audio anywhere below `folder` that is not hidden."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of audio")
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in SUFFIXES and not hidden and path.is_file():
            name = unicodedata.normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())
            if name in files:
                raise UserError(f"{folder}: {files[name].name} and {path.name} are one name; keep one of them")
            files[name] = path
    if not files:
        raise UserError(f"{folder}: holds no audio ({', '.join(SUFFIXES)})")
    return files


def read_captions(path: Path) -> dict[str, list[str]]:
    """Name -> captions, from a CSV with the columns filename and caption, one row a caption."""
    captions: dict[str, list[str]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file, strict=True):
                if not row.get("filename") or not row.get("caption"):
                    raise UserError(f"{path}: needs the columns filename and caption, filled in every row")
                name = Path(row["filename"])
                name = name.with_suffix("") if name.suffix.lower() in SUFFIXES else name
                captions.setdefault(name.as_posix(), []).append(row["caption"].strip())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error})") from None
    if not captions:
        raise UserError(f"{path}: holds no captions; needs the columns filename and caption")
    return captions


def read_audio(path: Path) -> tuple[np.ndarray, int]:
    """=> float32 (T, channels), Hz. UserError where the file is unreadable, empty or not finite."""
    try:
        waveform, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be read as audio ({error})") from None
    if not len(waveform) or not np.isfinite(waveform).all():
        raise UserError(f"{path}: holds no finite samples; generate it again or leave it out")
    return waveform, rate
