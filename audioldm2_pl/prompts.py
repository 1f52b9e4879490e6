"""Prompt files, and the names of the clips that are made of them."""

import os
import unicodedata
from pathlib import Path, PurePosixPath

from audioldm2_pl.errors import UserError

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".m4a", ".opus")  # that a clip's name in a prompt file may have
MAX_NAME = 240  # bytes of a file's name, which gets a suffix


def read_prompts(path: Path, first: int) -> list[tuple[str, str]]:
    """(name of the clip's file, prompt) of each line; a line without a name is numbered from `first`."""
    if not path.is_file():
        raise UserError(f"{path}: no such prompt file")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error}); save it as UTF-8") from None
    named = []
    for line in filter(None, map(str.strip, content.split("\n"))):
        name, bar, text = (part.strip() for part in line.partition("|"))
        named.append((output_name(path, name), text) if bar else (f"{first + len(named):04d}_{file_name(line)}", line))
    return named


def output_name(path: Path, name: str) -> str:
    """A prompt file's name of a clip, without an audio file's suffix. Raises UserError where it leaves the folder."""
    plain = PurePosixPath(unicodedata.normalize("NFC", name))
    if plain.suffix.lower() in SUFFIXES:
        plain = plain.with_suffix("")
    outside = plain.is_absolute() or not plain.parts or ".." in plain.parts
    if outside or not name.isprintable() or any(len(os.fsencode(part)) > MAX_NAME for part in plain.parts):
        raise UserError(f"{path}: {name!r}: the name before | has to be a file name inside the output folder")
    return str(plain)


def file_name(prompt: str) -> str:
    """A prompt's first words, fit for a file name."""
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in prompt.lower()).split()
    return "_".join(words)[:60] or "clip"
