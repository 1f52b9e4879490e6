"""The comment of a WAV or FLAC file: text that travels with the sound, and that other programs show."""

import struct
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from audioldm2_pl.errors import UserError

MAX_COMMENT = 1 << 20  # bytes of a comment that is read


def encode_audio(samples: np.ndarray, sample_rate: int, file_format: str, comment: str = "") -> bytes:
    """int16 samples (T,) or (T, channels) => a file's bytes. ValueError for a format that soundfile does not know."""
    encoded, channels = BytesIO(), 1 if samples.ndim == 1 else samples.shape[1]
    with soundfile.SoundFile(encoded, "w", sample_rate, channels, "PCM_16", format=file_format) as file:
        if comment and file.format != "WAV":
            file.comment = comment
        file.write(samples)
    content = encoded.getvalue()
    # libsndfile drops all text of a WAV file where it is longer than its own buffer
    return with_chunk(content, comment) if comment and file_format.upper() == "WAV" else content


def with_chunk(wav: bytes, comment: str) -> bytes:
    """A WAV file's bytes with a comment in a LIST chunk of type INFO behind the samples."""
    text = comment.encode() + b"\0"
    entry = b"ICMT" + struct.pack("<I", len(text)) + text + b"\0" * (len(text) % 2)
    content = wav[8:] + b"LIST" + struct.pack("<I", 4 + len(entry)) + b"INFO" + entry
    return b"RIFF" + struct.pack("<I", len(content)) + content


def read_comment(path: Path) -> str | None:
    """A file's comment, None where it has none. UserError for a file that is missing or no WAV or FLAC."""
    try:
        with path.open("rb") as file:
            if file.read(4) == b"RIFF":
                return wav_comment(file)
        with soundfile.SoundFile(path) as sound:
            return sound.comment or None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except soundfile.LibsndfileError:
        raise UserError(f"{path}: cannot be read as sound; give a WAV or FLAC file") from None


def wav_comment(file: BinaryIO) -> str | None:
    """The comment of a WAV file that is open behind its first four bytes."""
    file.seek(12)
    while len(head := file.read(8)) == 8:
        name, size = struct.unpack("<4sI", head)
        if name != b"LIST" or size > MAX_COMMENT:
            file.seek(size + size % 2, 1)
            continue
        entries = file.read(size + size % 2)[4:]  # behind the list's type
        while len(entries) >= 8:
            name, size = struct.unpack("<4sI", entries[:8])
            if name == b"ICMT":
                return entries[8 : 8 + size].rstrip(b"\0").decode("utf-8", "replace")
            entries = entries[8 + size + size % 2 :]
    return None
