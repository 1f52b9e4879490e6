"""The vocoder: log-mel => waveform (HiFi-GAN, Kong et al. 2020, arXiv:2010.05646).

The network is `transformers.SpeechT5HifiGan`, the class that the published AudioLDM 2 folders hold.

Letters: B batch, F frames, M mel bins, T samples.
"""

from copy import deepcopy
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from audioldm2_pl.audio import AudioConfig
from audioldm2_pl.errors import UserError
from audioldm2_pl.fields import bounded, check_fields

RECORDED = ("num_fft", "window_length", "mel_min_hz", "mel_max_hz", "peak")  # of the front end, in a config.json


@dataclass
class VocoderConfig:
    """HiFi-GAN's generator; level i has upsample_initial_channel / 2^(i+1) channels. Defaults: the published model."""

    num_mel_bins: int = bounded(64, ge=1, le=4_096)  # M, the input's width
    sample_rate: int = bounded(16_000, ge=1_000, le=384_000)  # Hz, noted in the folder for its readers
    upsample_rates: list[int] = bounded(lambda: [5, 4, 2, 2, 2], ge=1, le=1_000, min_length=1)  # product = hop_length
    upsample_kernel_sizes: list[int] = bounded(lambda: [16, 16, 8, 4, 4], ge=1, le=1_000, min_length=1)  # one per rate
    upsample_initial_channel: int = bounded(1024, ge=1, le=65_536)  # width before the first upsampling
    resblock_kernel_sizes: list[int] = bounded(lambda: [3, 7, 11], ge=1, le=1_000, min_length=1)  # a level's blocks
    resblock_dilation_sizes: list[list[int]] = bounded(
        lambda: [[1, 3, 5], [1, 3, 5], [1, 3, 5]], ge=1, le=1_000, min_length=1
    )  # one list per kernel size
    leaky_relu_slope: float = bounded(0.1, ge=0, lt=1)  # of all but the last activation, which has 0.01
    input_mean: float | None = None  # log-mels go in as (x - mean) / std; null takes them as they are
    input_std: float = bounded(1.0, gt=0)  # the same

    def __post_init__(self) -> None:
        check_fields(self, "vocoder.")
        rates, kernels = self.upsample_rates, self.upsample_kernel_sizes
        if len(rates) != len(kernels) or any(kernel < rate for kernel, rate in zip(kernels, rates)):
            raise UserError(
                f"vocoder.upsample_kernel_sizes={kernels} must have one entry for each of upsample_rates={rates}, "
                "none smaller than its rate"
            )
        if self.upsample_initial_channel < 2 ** len(rates):
            raise UserError(
                f"vocoder.upsample_initial_channel={self.upsample_initial_channel} is halved by each of "
                f"upsample_rates={rates}; give {2 ** len(rates)} or more"
            )
        if len(self.resblock_kernel_sizes) != len(self.resblock_dilation_sizes):
            raise UserError("vocoder.resblock_dilation_sizes must have one list for each of resblock_kernel_sizes")
        if even := [kernel for kernel in self.resblock_kernel_sizes if kernel % 2 == 0]:
            raise UserError(f"vocoder.resblock_kernel_sizes: {even[0]} is even, which changes lengths; take an odd one")

    @property
    def hop_length(self) -> int:
        """Samples to a frame."""
        return prod(self.upsample_rates)


def build_vocoder(config: VocoderConfig) -> SpeechT5HifiGan:
    """A freshly initialised vocoder without weight norm."""
    vocoder = SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=config.num_mel_bins,
            sampling_rate=config.sample_rate,
            upsample_initial_channel=config.upsample_initial_channel,
            upsample_rates=list(config.upsample_rates),
            upsample_kernel_sizes=list(config.upsample_kernel_sizes),
            resblock_kernel_sizes=list(config.resblock_kernel_sizes),
            resblock_dilation_sizes=[list(sizes) for sizes in config.resblock_dilation_sizes],
            leaky_relu_slope=config.leaky_relu_slope,
            normalize_before=config.input_mean is not None,
        )
    )
    vocoder.get_buffer("mean").fill_(config.input_mean or 0.0)
    vocoder.get_buffer("scale").fill_(config.input_std)
    # transformers starts all weights at std 0.01; a small vocoder that starts there makes no sound for minutes.
    for convolution in convolutions(vocoder):
        convolution.reset_parameters()
    return vocoder


def check_hop_length(vocoder: SpeechT5HifiGan, hop_length: int) -> None:
    """Raises UserError where a vocoder does not make `hop_length` samples of a frame."""
    rates = list(vocoder.config.upsample_rates)
    if prod(rates) != hop_length:
        raise UserError(
            f"the vocoder's upsample_rates={rates} multiply to {prod(rates)}, but audio.hop_length is {hop_length}; "
            "make them equal"
        )


def note_front_end(vocoder: SpeechT5HifiGan, audio: AudioConfig) -> SpeechT5HifiGan:
    """Writes into the vocoder's config of which log-mels it makes sound."""
    vocoder.config.update({name: getattr(audio, name) for name in RECORDED})
    return vocoder


def front_end_of(vocoder: SpeechT5HifiGan) -> dict[str, Any]:
    """The fields of AudioConfig that say of which log-mels a vocoder makes sound.

    The hub's folders do not note all of them: theirs look at 1,024 samples and 0 Hz to 8 kHz, the 48 kHz variants at
    2,048 samples and 20 Hz to 24 kHz.
    """
    config = vocoder.config
    top = config.sampling_rate / 2
    assumed = (2048, 2048, 20.0, top, 0.5) if config.sampling_rate > 16_000 else (1024, 1024, 0.0, top, 0.5)
    noted = {name: getattr(config, name, value) for name, value in zip(RECORDED, assumed)}
    return noted | {
        "sample_rate": config.sampling_rate,
        "hop_length": prod(config.upsample_rates),
        "num_mel_bins": config.model_in_dim,
    }


def audio_of(vae: Any, vocoder: SpeechT5HifiGan, unet: Any) -> AudioConfig:
    """The audio front end that a model folder's parts were trained with."""
    front_end = front_end_of(vocoder)
    frames = unet.config.sample_size * 2 ** (len(vae.config.block_out_channels) - 1)
    clip_seconds = frames * front_end["hop_length"] / front_end["sample_rate"]
    return AudioConfig(clip_seconds=clip_seconds, **front_end)


def check_front_end(vocoder: SpeechT5HifiGan, audio: AudioConfig) -> None:
    """Raises UserError where an experiment's log-mels are not those of a vocoder that it takes from elsewhere."""
    for name, value in front_end_of(vocoder).items():
        if name != "peak" and value != getattr(audio, name):  # a vocoder serves sound of any level
            raise UserError(
                f"audio.{name} is {getattr(audio, name)}, but the vocoder that `from:` names was trained with {value}; "
                "make them equal, or train a vocoder"
            )


def convolutions(vocoder: SpeechT5HifiGan) -> list[Any]:
    """All convolutions: every layer of HiFi-GAN that has weights."""
    return [m for m in vocoder.modules() if isinstance(m, (nn.Conv1d, nn.ConvTranspose1d))]


def prepare_for_training(vocoder: SpeechT5HifiGan) -> SpeechT5HifiGan:
    """Puts weight norm on every convolution, in place; the function that the network computes stays the same."""
    for convolution in convolutions(vocoder):
        weight_norm(convolution)
    return vocoder


@torch.no_grad()
def finish_training(vocoder: SpeechT5HifiGan) -> SpeechT5HifiGan:
    """A copy on the CPU without weight norm: the names and sizes that a model folder holds.

    `SpeechT5HifiGan.remove_weight_norm` knows only torch's older weight norm, and today's, taken off a deep copy, is
    taken off the class that the original shares; so the weights go into a new network.
    """
    finished = SpeechT5HifiGan(deepcopy(vocoder.config))
    for new, old in zip(convolutions(finished), convolutions(vocoder)):
        new.weight.copy_(old.weight)
        new.bias.copy_(old.bias)
    for name in ("mean", "scale"):
        finished.get_buffer(name).copy_(vocoder.get_buffer(name))
    return finished.eval()


def vocode(vocoder: SpeechT5HifiGan, log_mel: Tensor) -> Tensor:
    """log-mel (B, 1, F, M) => waveform (B, F · hop) in [-1, 1].

    Kernels whose size and rate differ by an odd number make the network's own output a little longer (32 samples in
    the published model); the surplus at the end is cut.
    """
    num_samples = log_mel.shape[2] * prod(vocoder.config.upsample_rates)
    return vocoder(log_mel.squeeze(1))[:, :num_samples].float()  # (B, T)
