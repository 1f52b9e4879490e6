"""Discriminators of the two adversarial stages, and their losses.

`PatchGAN` classifies log-mels for the VAE; `MultiPeriodDiscriminator`, `MultiScaleDiscriminator` and
`MultiResolutionDiscriminator` classify waveforms for the vocoder. All return (logits, features): one tensor of logits
per sub-discriminator, and the activations of every layer of every sub-discriminator for feature matching.

Letters: B batch, T samples, F frames, M mel bins, C channels.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from audioldm2_pl.errors import UserError
from audioldm2_pl.fields import bounded, check_fields

SMALLEST_PATCHES = 3  # rows and columns that PatchGAN's strided layers have to leave for the two behind them

DiscriminatorOutput = tuple[list[Tensor], list[Tensor]]  # (logits, features)


def run_layers(layers: nn.ModuleList, output: nn.Module, x: Tensor, slope: float) -> tuple[Tensor, list[Tensor]]:
    """x (B, ...) through layers with a leaky ReLU behind each, and the output layer => (logits, features)."""
    features = []
    for layer in layers:
        x = F.leaky_relu(layer(x), slope)
        features.append(x)
    logits = output(x)
    return logits, [*features, logits]


@dataclass
class PatchGANConfig:
    """Defaults as the authors' VAE training code has them."""

    base_channels: int = bounded(64, ge=1, le=65_536)  # width of the first layer; doubled a layer, at most eightfold
    num_layers: int = bounded(3, ge=1, le=100)  # strided layers; each halves frames and mel bins


class PatchGAN(nn.Module):
    """log-mel (B, 1, F, M) => logits of overlapping patches (Isola et al. 2017, arXiv:1611.07004, §3.2.2)."""

    def __init__(self, config: PatchGANConfig):
        super().__init__()
        widths = [config.base_channels * min(2**i, 8) for i in range(config.num_layers + 1)]
        self.layers = nn.ModuleList([nn.Conv2d(1, widths[0], 4, stride=2, padding=1)])
        for i, (width_in, width_out) in enumerate(pairwise(widths)):
            stride = 2 if i < config.num_layers - 1 else 1
            convolution = nn.Conv2d(width_in, width_out, 4, stride, padding=1, bias=False)
            self.layers.append(nn.Sequential(convolution, nn.BatchNorm2d(width_out)))
        self.output = nn.Conv2d(widths[-1], 1, 4, stride=1, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, log_mel: Tensor) -> DiscriminatorOutput:
        logits, features = run_layers(self.layers, self.output, log_mel, 0.2)  # features (B, C, F / 2^i, M / 2^i)
        return [logits], features[:-1]


@dataclass
class MultiPeriodConfig:
    """Defaults: HiFi-GAN's, 41.1 M parameters."""

    periods: list[int] = bounded(lambda: [2, 3, 5, 7, 11], ge=1, le=1_000, min_length=1)  # samples, one network each
    channels: list[int] = bounded(lambda: [32, 128, 512, 1024, 1024], ge=1, le=65_536, min_length=1)  # of each layer


class PeriodDiscriminator(nn.Module):
    """Sees the waveform as a picture of `period` columns, convolved along the rows only (HiFi-GAN §2.3)."""

    def __init__(self, period: int, channels: list[int]):
        super().__init__()
        self.period = period
        self.layers = nn.ModuleList()
        for i, (width_in, width_out) in enumerate(zip([1, *channels], channels)):
            stride = 3 if i < len(channels) - 1 else 1
            convolution = nn.Conv2d(width_in, width_out, (5, 1), (stride, 1), padding=(2, 0))
            self.layers.append(weight_norm(convolution))
        self.output = weight_norm(nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, waveform: Tensor) -> tuple[Tensor, list[Tensor]]:
        waveform = F.pad(waveform, (0, -waveform.shape[1] % self.period), mode="reflect")
        x = waveform.unflatten(1, (-1, self.period)).unsqueeze(1)  # (B, 1, T / period, period)
        return run_layers(self.layers, self.output, x, 0.1)  # features (B, C, T / (period · 3^i), period)


class MultiPeriodDiscriminator(nn.Module):
    """waveform (B, T) => outputs of one sub-discriminator per period (HiFi-GAN §2.3)."""

    def __init__(self, config: MultiPeriodConfig):
        super().__init__()
        channels = list(config.channels)
        self.discriminators = nn.ModuleList(PeriodDiscriminator(p, channels) for p in config.periods)

    def forward(self, waveform: Tensor) -> DiscriminatorOutput:
        return gather([discriminator(waveform) for discriminator in self.discriminators])


@dataclass
class MultiScaleConfig:
    """Defaults: HiFi-GAN's, 29.6 M parameters. The lists have one entry per layer."""

    num_scales: int = bounded(3, ge=1, le=100)  # sub-discriminators; each reads half the rate of the one before
    channels: list[int] = bounded(lambda: [128, 128, 256, 512, 1024, 1024, 1024], ge=1, le=65_536, min_length=1)
    kernel_sizes: list[int] = bounded(lambda: [15, 41, 41, 41, 41, 41, 5], ge=1, le=1_000, min_length=1)
    strides: list[int] = bounded(lambda: [1, 2, 2, 4, 4, 1, 1], ge=1, le=1_000, min_length=1)
    groups: list[int] = bounded(lambda: [1, 4, 16, 16, 16, 16, 1], ge=1, min_length=1)  # divide both widths

    def __post_init__(self) -> None:
        name = "training.vocoder.scale_discriminator"
        check_fields(self, f"{name}.")
        lists = (self.channels, self.kernel_sizes, self.strides, self.groups)
        widths = zip([1, *self.channels], self.channels, self.groups)
        if len({len(values) for values in lists}) > 1 or any(a % g or b % g for a, b, g in widths):
            raise UserError(
                f"{name}: channels, kernel_sizes, strides and groups must be of one length, and each layer's groups "
                "divide its widths"
            )


class ScaleDiscriminator(nn.Module):
    """One scale of `MultiScaleDiscriminator`: grouped strided convolutions, as MelGAN's (arXiv:1910.06711)."""

    def __init__(self, config: MultiScaleConfig, spectral: bool):
        super().__init__()
        normalise = spectral_norm if spectral else weight_norm
        rows = zip([1, *config.channels], config.channels, config.kernel_sizes, config.strides, config.groups)
        self.layers = nn.ModuleList(
            normalise(nn.Conv1d(w_in, w_out, kernel, stride, padding=kernel // 2, groups=groups))
            for w_in, w_out, kernel, stride, groups in rows
        )
        self.output = normalise(nn.Conv1d(config.channels[-1], 1, 3, padding=1))

    def forward(self, waveform: Tensor) -> tuple[Tensor, list[Tensor]]:
        return run_layers(self.layers, self.output, waveform.unsqueeze(1), 0.1)  # features (B, C, T / strides)


class MultiScaleDiscriminator(nn.Module):
    """waveform (B, T) => outputs at the full rate, a half, a quarter, ... (HiFi-GAN §2.3).

    The first scale has spectral norm, the others weight norm.
    """

    def __init__(self, config: MultiScaleConfig):
        super().__init__()
        self.discriminators = nn.ModuleList(
            ScaleDiscriminator(config, spectral=i == 0) for i in range(config.num_scales)
        )

    def forward(self, waveform: Tensor) -> DiscriminatorOutput:
        outputs = []
        for i, discriminator in enumerate(self.discriminators):
            if i:
                waveform = F.avg_pool1d(waveform.unsqueeze(1), 4, 2, padding=2).squeeze(1)  # half the rate
            outputs.append(discriminator(waveform))
        return gather(outputs)


@dataclass
class MultiResolutionConfig:
    """Defaults: UnivNet's windows, five layers of 32 channels."""

    num_ffts: list[int] = bounded(lambda: [512, 1024, 2048], ge=16, le=65_536, min_length=1)  # samples, a network each
    channels: int = bounded(32, ge=1, le=65_536)  # of each layer


class ResolutionDiscriminator(nn.Module):
    """Sees the magnitudes of a short-time Fourier transform, with a hop of a quarter (arXiv:2106.07889, §2.3)."""

    def __init__(self, num_fft: int, channels: int):
        super().__init__()
        self.num_fft = num_fft
        self.layers = nn.ModuleList()
        for i, width_in in enumerate([1, *[channels] * 4]):
            kernel, stride = ((9, 3), (2, 1)) if 0 < i < 4 else ((9, 3) if i == 0 else (3, 3), (1, 1))
            padding = (kernel[0] // 2, kernel[1] // 2)
            self.layers.append(weight_norm(nn.Conv2d(width_in, channels, kernel, stride, padding)))
        self.output = weight_norm(nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, waveform: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = stft_magnitude(waveform, self.num_fft).unsqueeze(1)  # (B, 1, num_fft / 2 + 1, F)
        return run_layers(self.layers, self.output, x, 0.1)  # features (B, C, bins / 2^i, F)


class MultiResolutionDiscriminator(nn.Module):
    """waveform (B, T) => outputs of one sub-discriminator per window size (UnivNet, Jang et al. 2021; Vocos §3.2)."""

    def __init__(self, config: MultiResolutionConfig):
        super().__init__()
        self.discriminators = nn.ModuleList(ResolutionDiscriminator(n, config.channels) for n in config.num_ffts)

    def forward(self, waveform: Tensor) -> DiscriminatorOutput:
        return gather([discriminator(waveform) for discriminator in self.discriminators])


def stft_magnitude(waveform: Tensor, size: int) -> Tensor:
    """waveform (B, T) => magnitude spectrogram (B, size / 2 + 1, frames), above 3e-5 so that silence has a gradient."""
    with torch.autocast(waveform.device.type, enabled=False):
        window = torch.hann_window(size, device=waveform.device)
        spectrum = torch.stft(waveform.float(), size, size // 4, window=window, return_complex=True)
        return (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()


def gather(outputs: list[tuple[Tensor, list[Tensor]]]) -> DiscriminatorOutput:
    """The (logits, features) of several sub-discriminators in one pair of lists."""
    return [logits for logits, _ in outputs], [f for _, features in outputs for f in features]


def hinge_discriminator_loss(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Hinge loss () of the discriminator's logits (B, ...) for real and fake, halved as the authors' code has it."""
    losses = [0.5 * (F.relu(1.0 - r).mean() + F.relu(1.0 + f).mean()) for r, f in zip(real, fake)]
    return torch.stack(losses).sum()


def hinge_generator_loss(fake: list[Tensor]) -> Tensor:
    """Loss () of the generator against a hinge discriminator with logits (B, ...)."""
    return torch.stack([-logits.mean() for logits in fake]).sum()


def least_squares_discriminator_loss(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Loss () of logits (B, ...), summed over sub-discriminators (HiFi-GAN eq. 1)."""
    losses = [(1.0 - r).square().mean() + f.square().mean() for r, f in zip(real, fake)]
    return torch.stack(losses).sum()


def least_squares_generator_loss(fake: list[Tensor]) -> Tensor:
    """Loss () of logits (B, ...), summed over sub-discriminators (HiFi-GAN eq. 2)."""
    return torch.stack([(1.0 - logits).square().mean() for logits in fake]).sum()


def feature_matching_loss(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """L1 () between activations (B, ...) for real and generated sound, summed over layers (HiFi-GAN eq. 4)."""
    return torch.stack([F.l1_loss(f, r.detach()) for r, f in zip(real, fake)]).sum()
