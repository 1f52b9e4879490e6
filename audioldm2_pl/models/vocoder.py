"""The vocoder: log-mel => waveform.

`kind: hifigan` (Kong et al. 2020, arXiv:2010.05646) is `transformers.SpeechT5HifiGan`, the class that the published
AudioLDM 2 folders hold; `kind: istft` is `istft.py`'s, which learns sooner and runs faster.

Letters: B batch, F frames, M mel bins, T samples.
"""

from copy import deepcopy
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from audioldm2_pl.audio import AudioConfig
from audioldm2_pl.errors import UserError
from audioldm2_pl.fields import bounded, check_fields
from audioldm2_pl.models.istft import ISTFTConfig, ISTFTVocoder

Vocoder = SpeechT5HifiGan | ISTFTVocoder

RECORDED = ("num_fft", "window_length", "mel_min_hz", "mel_max_hz", "peak")  # of the front end, in a config.json


@dataclass
class VocoderConfig:
    """HiFi-GAN's generator; level i has upsample_initial_channel / 2^(i+1) channels. Defaults: the published model.

    The iSTFT vocoder reads the first three and the last three fields alone.
    """

    kind: Literal["hifigan", "istft"] = "hifigan"  # stock diffusers runs HiFi-GAN alone
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
    istft: ISTFTConfig = field(default_factory=ISTFTConfig)  # sizes where kind is istft

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
        return self.istft.hop_length if self.kind == "istft" else prod(self.upsample_rates)


def build_vocoder(config: VocoderConfig, audio: AudioConfig | None = None) -> Vocoder:
    """A freshly initialised vocoder without weight norm; `audio` tells an iSTFT vocoder which log-mels it will read."""
    if config.kind == "istft":
        vocoder = ISTFTVocoder(config.istft, config.num_mel_bins, config.input_mean, config.input_std)
        if audio is not None:
            vocoder.start_from(audio)
        return vocoder
    return build_hifigan(config)


def build_hifigan(config: VocoderConfig) -> SpeechT5HifiGan:
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


def hop_length_of(vocoder: Vocoder) -> int:
    """Samples that a vocoder makes of a frame."""
    return vocoder.config.hop_length if isinstance(vocoder, ISTFTVocoder) else prod(vocoder.config.upsample_rates)


def check_hop_length(vocoder: Vocoder, hop_length: int) -> None:
    """Raises UserError where a vocoder does not make `hop_length` samples of a frame."""
    if (own := hop_length_of(vocoder)) != hop_length:
        raise UserError(
            f"the vocoder makes {own} samples of a frame, but audio.hop_length is {hop_length}; make them equal"
        )


def note_front_end(vocoder: Vocoder, audio: AudioConfig) -> Vocoder:
    """Writes into the vocoder's config of which log-mels it makes sound."""
    noted = {name: getattr(audio, name) for name in RECORDED}
    if isinstance(vocoder, ISTFTVocoder):
        vocoder.front_end = noted | {"sample_rate": audio.sample_rate}
    else:
        vocoder.config.update(noted)
    return vocoder


def front_end_of(vocoder: Vocoder) -> dict[str, Any]:
    """The fields of AudioConfig that say of which log-mels a vocoder makes sound.

    The hub's folders do not note all of them: theirs look at 1,024 samples and 0 Hz to 8 kHz, the 48 kHz variants at
    2,048 samples and 20 Hz to 24 kHz.
    """
    if isinstance(vocoder, ISTFTVocoder):
        return vocoder.front_end | {"hop_length": vocoder.config.hop_length, "num_mel_bins": vocoder.num_mel_bins}
    config = vocoder.config
    top = config.sampling_rate / 2
    assumed = (2048, 2048, 20.0, top, 0.5) if config.sampling_rate > 16_000 else (1024, 1024, 0.0, top, 0.5)
    noted = {name: getattr(config, name, value) for name, value in zip(RECORDED, assumed)}
    return noted | {
        "sample_rate": config.sampling_rate,
        "hop_length": prod(config.upsample_rates),
        "num_mel_bins": config.model_in_dim,
    }


def audio_of(vae: Any, vocoder: Vocoder, unet: Any) -> AudioConfig:
    """The audio front end that a model folder's parts were trained with."""
    front_end = front_end_of(vocoder)
    frames = unet.config.sample_size * 2 ** (len(vae.config.block_out_channels) - 1)
    clip_seconds = frames * front_end["hop_length"] / front_end["sample_rate"]
    return AudioConfig(clip_seconds=clip_seconds, **front_end)


def check_front_end(vocoder: Vocoder, audio: AudioConfig) -> None:
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


def prepare_for_training(vocoder: Vocoder) -> Vocoder:
    """Puts weight norm on HiFi-GAN's convolutions, in place; the function that the network computes stays the same."""
    if isinstance(vocoder, SpeechT5HifiGan):
        for convolution in convolutions(vocoder):
            weight_norm(convolution)
    return vocoder


@torch.no_grad()
def finish_training(vocoder: Vocoder) -> Vocoder:
    """A copy on the CPU without weight norm: the names and sizes that a model folder holds.

    `SpeechT5HifiGan.remove_weight_norm` knows only torch's older weight norm, and today's, taken off a deep copy, is
    taken off the class that the original shares; so the weights go into a new network.
    """
    if isinstance(vocoder, ISTFTVocoder):
        return deepcopy(vocoder).cpu().eval()
    finished = SpeechT5HifiGan(deepcopy(vocoder.config))
    for new, old in zip(convolutions(finished), convolutions(vocoder)):
        new.weight.copy_(old.weight)
        new.bias.copy_(old.bias)
    for name in ("mean", "scale"):
        finished.get_buffer(name).copy_(vocoder.get_buffer(name))
    return finished.eval()


def vocode(vocoder: Vocoder, log_mel: Tensor) -> Tensor:
    """log-mel (B, 1, F, M) => waveform (B, F · hop), in [-1, 1] of HiFi-GAN alone.

    Kernels whose size and rate differ by an odd number make HiFi-GAN's own output a little longer (32 samples in the
    published model); the surplus at the end is cut.
    """
    num_samples = log_mel.shape[2] * hop_length_of(vocoder)
    return vocoder(log_mel.squeeze(1))[:, :num_samples].float()  # (B, T)
