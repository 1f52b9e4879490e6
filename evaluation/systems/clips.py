"""A folder of anybody's clips, under the names of the captions' file: brought to the same length and level as all.

Letters: C channels, T samples.
"""

from collections.abc import Sequence
from pathlib import Path

import soxr
import torch
from torch import Tensor

from audioldm2_pl.audio import read_audio
from audioldm2_pl.errors import UserError
from audioldm2_pl.mp3 import open_sound

from ..folders import clip_files
from .system import Opener, Request, Settings, System


def open_clips(source: str, device: str, settings: Settings) -> System:
    files = clip_files(Path(source))
    sample_rate = max(rate_of(path) for path in files.values())

    def generate(requests: Sequence[Request], seconds: float) -> list[Tensor]:
        """Waveforms (C, T), as long as their files"""
        if missing := [request.name for request in requests if request.name not in files]:
            raise UserError(f"{source}: holds no clip {missing[0]}; leave it out of the captions")
        return [load(files[request.name], sample_rate) for request in requests]

    return System(sample_rate, generate)


def rate_of(path: Path) -> int:
    """Hz of a file; 0 where it is no audio, which reading it will say."""
    try:
        with open_sound(path) as file:
            return file.samplerate
    except RuntimeError:
        return 0


def load(path: Path, sample_rate: int) -> Tensor:
    """All channels of a file at `sample_rate`, (C, T)"""
    waveform, rate = read_audio(path)
    if rate != sample_rate:
        waveform = soxr.resample(waveform, rate, sample_rate)
    return torch.from_numpy(waveform.T)


CLIPS = Opener("clips", open_clips, None)
