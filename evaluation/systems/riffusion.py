"""Riffusion (Forsgren and Martiros 2022): Stable Diffusion draws a mel spectrogram, Griffin-Lim finds the waveform.

A picture's columns are 10 ms, its rows 512 mel bins up to 10 kHz, from the top down; its red channel is dark where the
sound is loud: 1 - red is the magnitude to the power 0.25.

Letters: B clips, F frames, H height, W width, T samples.
"""

from collections.abc import Sequence
from math import ceil

import torch
from torch import Tensor

from ..libraries import import_library
from .pipelines import SAMPLING, open_pipeline, run
from .system import Opener, Request, Settings, System, seeded

SAMPLE_RATE = 44_100  # Hz
HOP, WINDOW, NUM_FFT = 441, 4_410, 17_640  # samples: 10, 100 and 400 ms
NUM_MEL_BINS, MAX_HZ = 512, 10_000
POWER = 0.25  # of the magnitude, in the picture
NUM_ROUNDS = 32  # of Griffin-Lim
SIDE = 512  # pixels: the pictures that it was trained on


def open_riffusion(source: str, device: str, settings: Settings) -> System:
    pipeline = open_pipeline(
        "StableDiffusionPipeline", source, device, safety_checker=None, requires_safety_checker=False
    )
    _, to_linear = mel_to_linear()

    def generate(requests: Sequence[Request], seconds: float) -> list[Tensor]:
        """Waveforms (T,)"""
        num_frames = ceil(seconds * SAMPLE_RATE / HOP) + 1
        unit = pipeline.vae_scale_factor
        size = {"height": SIDE, "width": max(SIDE, ceil(num_frames / unit) * unit)}
        pictures = run(pipeline, requests, settings, **size).images  # (B, 3, H, W) in [0, 1]
        return [
            sound_of(picture[..., :num_frames].float().cpu(), to_linear, request.seed)
            for picture, request in zip(pictures, requests)
        ]

    return System(SAMPLE_RATE, generate)


def mel_to_linear() -> tuple[Tensor, Tensor]:
    """The mel filters (NUM_FFT // 2 + 1, NUM_MEL_BINS) and the pseudo-inverse that leads back, of the same shape."""
    from transformers.audio_utils import mel_filter_bank  # takes seconds

    filters = torch.from_numpy(
        mel_filter_bank(NUM_FFT // 2 + 1, NUM_MEL_BINS, 0, MAX_HZ, SAMPLE_RATE, norm=None, mel_scale="htk")
    )
    return filters.float(), (filters @ torch.linalg.pinv(filters.T @ filters)).float()


def sound_of(picture: Tensor, to_linear: Tensor, seed: int) -> Tensor:
    """Picture (3, H, F) in [0, 1] => waveform (T,) of any level; the seed is of Griffin-Lim's first phases."""
    griffin_lim = import_library("torchaudio").functional.griffinlim
    mel = (1 - picture[0].flip(0)).clamp(0, 1) ** (1 / POWER)
    magnitude = (to_linear @ mel).clamp(min=0)
    sizes = {"n_fft": NUM_FFT, "hop_length": HOP, "win_length": WINDOW, "window": torch.hann_window(WINDOW)}
    with seeded(seed, "cpu"):
        return griffin_lim(magnitude, **sizes, power=1.0, n_iter=NUM_ROUNDS, momentum=0.99, length=None, rand_init=True)


RIFFUSION = Opener("riffusion", open_riffusion, "diffusers", SAMPLING)
