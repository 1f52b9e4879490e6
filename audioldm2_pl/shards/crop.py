"""The part of a clip's sound that is read: where it begins, and how it is had without decoding all that lies before.

FLAC and WAV are read from their first wanted sample on; the samples are those of decoding everything and cutting. MP3
and Ogg are decoded whole, since libsndfile 1.2 does not always find the same samples of them by seeking. The crop is
cut at the clip's own rate and resampled afterwards, as the authors do, so resampling needs no margin around it.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

import numpy as np
import soundfile

from audioldm2_pl.audio import SILENT_PEAK, choose_channel
from audioldm2_pl.shards.tar import Span

CROP_TRIES = 10  # draws before a silent crop is taken after all
SEEKABLE = ("FLAC", "WAV", "WAVEX")  # libsndfile's names of formats whose seeks are exact
SEEKABLE_SUFFIXES = ("flac", "wav")
LONG_BYTES = 1 << 20  # of a member, above which it is read in pieces
PIECE_BYTES = 1 << 14  # read at a time of a long one


@dataclass
class Crop:
    """A piece of `num_samples` at `sample_rate` Hz, which begins where `rng` draws it, without one at the beginning."""

    num_samples: int
    sample_rate: int
    rng: np.random.Generator | None = None

    def read(self, file: soundfile.SoundFile) -> np.ndarray:
        """(T,) at the file's rate, shorter where the file is: the first of a few draws that is not silent, else the
        last. The channel is chosen by what is read. ValueError where the file breaks off."""
        wanted = round(self.num_samples * file.samplerate / self.sample_rate)
        last = file.frames - wanted
        if last <= 0 or self.rng is None:
            return choose_channel(read_part(file, 0, min(wanted, file.frames)))
        part = partial(read_part, file)
        if file.format not in SEEKABLE:
            channels = read_part(file, 0, file.frames)  # (T, channels)
            part = partial(slice_of, channels)
        waveform = np.zeros(0, np.float32)
        for _ in range(CROP_TRIES):
            waveform = choose_channel(part(int(self.rng.integers(last + 1)), wanted))
            if np.abs(waveform).max() > SILENT_PEAK:
                break
        return waveform


def read_part(file: soundfile.SoundFile, start: int, count: int) -> np.ndarray:
    """Float32 (count, channels) from sample `start` on. ValueError where there are fewer."""
    if file.tell() != start:
        file.seek(start)
    waveform = file.read(count, dtype="float32", always_2d=True)
    if len(waveform) != count:
        raise ValueError(f"{start + len(waveform)} of {file.frames} samples")
    return waveform


def slice_of(channels: np.ndarray, start: int, count: int) -> np.ndarray:
    """(T, channels) => (count, channels)."""
    return channels[start : start + count]


class MemberFile(io.RawIOBase):
    """A member of an open tar as a file of its own, of which only what is asked for is read."""

    def __init__(self, tar: BinaryIO, span: Span):
        self.tar = tar
        self.begin, self.size = span
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence])
        return self.position

    def readinto(self, buffer) -> int:
        count = max(0, min(len(buffer), self.size - self.position))
        count = os.preadv(self.tar.fileno(), [memoryview(buffer)[:count]], self.begin + self.position) if count else 0
        self.position += count
        return count
