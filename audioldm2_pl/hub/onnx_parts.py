"""The parts of a model as networks of plain tensors, which ONNX can hold.

Letters: B clips, L tokens or vectors of a condition, P vectors of LOA, D width, C × H × W latent, F frames, M mel bins,
N samples in a Fourier transform, K = N / 2 + 1 of its bins, T samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm2_pl.conditioners.condition import Condition
from audioldm2_pl.models.istft import MOMENTUM, ISTFTVocoder
from audioldm2_pl.models.vae import latent_of, log_mel_of
from audioldm2_pl.models.vocoder import vocode

Axes = tuple[int | str, ...]  # a size, or the name of one that may be any


@dataclass
class Part:
    """One ONNX file to be: a network, and its inputs and output by name."""

    network: nn.Module
    inputs: dict[str, Tensor]  # examples of them, in the order of `forward`
    axes: dict[str, Axes]  # of every input
    output: str
    output_axes: Axes


class CLAPEncoder(nn.Module):
    """CLAP's text half."""

    def __init__(self, clap: Any):
        super().__init__()
        self.clap = clap

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Tokens and mask (B, L) => embedding (B, 1, D)."""
        model = self.clap.model
        if hasattr(model, "get_text_features"):
            vector = model.get_text_features(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        else:
            vector = F.normalize(model(input_ids=input_ids, attention_mask=attention_mask).text_embeds, dim=-1)
        return vector[:, None]


class T5Encoder(nn.Module):
    """FLAN-T5's encoder."""

    def __init__(self, t5: Any):
        super().__init__()
        self.model = t5.model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Tokens and mask (B, L) => hidden states (B, L, D)."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


class NextLOA(nn.Module):
    """Projection and GPT-2, teacher-forced and without a cache."""

    def __init__(self, generator: Any):
        super().__init__()
        self.generator = generator

    def forward(self, loa: Tensor, *conditions: Tensor) -> Tensor:
        """LOA (B, P, D), of which the last vector is not read, then each condition (B, L, D') with its mask (B, L) =>
        each vector of LOA as predicted from those before it, (B, P, D)."""
        return self.generator.teacher_forced(pairs(conditions), loa)


class Denoiser(nn.Module):
    """T-UNet."""

    def __init__(self, unet: Any):
        super().__init__()
        self.unet = unet

    def forward(self, latent: Tensor, timestep: Tensor, *conditions: Tensor) -> Tensor:
        """Noisy latent (B, C, H, W), timestep (B,), then each condition (B, L, D) with its mask (B, L), then FiLM's
        vector (B, D) where there is one => prediction (B, C, H, W)."""
        film = conditions[-1] if self.unet.config.film is not None else None
        read = conditions if film is None else conditions[:-1]
        return self.unet(latent, timestep, pairs(read), film)


class Decoder(nn.Module):
    """The VAE's."""

    def __init__(self, vae: Any):
        super().__init__()
        self.vae = vae

    def forward(self, latent: Tensor) -> Tensor:
        """Scaled latent (B, C, H, W) => log-mel (B, 1, F, M)."""
        return log_mel_of(self.vae, latent)


class Encoder(nn.Module):
    """The VAE's."""

    def __init__(self, vae: Any):
        super().__init__()
        self.vae = vae

    def forward(self, log_mel: Tensor) -> Tensor:
        """log-mel (B, 1, F, M) => the posterior's mode, scaled, (B, C, H, W)."""
        return latent_of(self.vae, log_mel, sample=False)


class Wave(nn.Module):
    """The vocoder, of either kind."""

    def __init__(self, vocoder: Any):
        super().__init__()
        self.vocoder: Any = RealISTFT(vocoder) if isinstance(vocoder, ISTFTVocoder) else vocoder

    def forward(self, log_mel: Tensor) -> Tensor:
        """log-mel (B, 1, F, M) => waveform (B, T)."""
        real = isinstance(self.vocoder, RealISTFT)
        return self.vocoder(log_mel.squeeze(1)) if real else vocode(self.vocoder, log_mel)


class Features(nn.Module):
    """AudioMAE without its masks and decoder."""

    def __init__(self, audiomae: Any):
        super().__init__()
        self.audiomae = audiomae

    def forward(self, fbank: Tensor) -> Tensor:
        """fbank (B, 1, frames, bins) => features (B, T', F', D), of which pooling makes LOA."""
        return self.audiomae.features(fbank)


class RealISTFT(nn.Module):
    """`ISTFTVocoder` without complex numbers: both Fourier transforms are convolutions, which stride over the hops."""

    window: Tensor
    analysis: Tensor
    synthesis: Tensor

    def __init__(self, vocoder: ISTFTVocoder):
        super().__init__()
        self.vocoder = vocoder
        num_fft = vocoder.config.num_fft
        bins, samples = torch.arange(num_fft // 2 + 1)[:, None], torch.arange(num_fft)
        phase = (bins * samples % num_fft).double() * (2 * math.pi / num_fft)  # (K, N)
        waves = torch.cat([phase.cos(), -phase.sin()])  # (2 K, N): real and imaginary parts
        window = torch.hann_window(num_fft, dtype=torch.float64)
        # of a real signal's spectrum each bin but the first and an even N's last stands for two
        counts = torch.full((num_fft // 2 + 1, 1), 2.0, dtype=torch.float64)
        counts[0] = 1.0
        if num_fft % 2 == 0:
            counts[-1] = 1.0
        self.register_buffer("window", window.square().float()[None, None], persistent=False)  # (1, 1, N)
        self.register_buffer("analysis", (waves * window).float()[:, None], persistent=False)  # (2 K, 1, N)
        synthesis = waves * window * counts.repeat(2, 1) / num_fft
        self.register_buffer("synthesis", synthesis.float()[:, None], persistent=False)  # (2 K, 1, N)

    def forward(self, log_mel: Tensor) -> Tensor:
        """log-mel (B, F, M) => waveform (B, T)."""
        magnitude, phase = self.vocoder.spectrum(log_mel)  # (B, F, K) each
        magnitude, phase = magnitude.transpose(1, 2), phase.transpose(1, 2)
        spectrum = torch.cat([magnitude * phase.cos(), magnitude * phase.sin()], dim=1)  # (B, 2 K, F)
        before = None
        for _ in range(self.vocoder.config.griffin_lim_rounds):
            rebuilt = self.analyse(self.synthesise(spectrum))  # (B, 2 K, F)
            ahead = rebuilt if before is None else rebuilt + MOMENTUM * (rebuilt - before)
            real, imaginary = ahead.chunk(2, dim=1)
            scale = magnitude / ((real.square() + imaginary.square()).sqrt() + 1e-7)
            spectrum, before = torch.cat([scale * real, scale * imaginary], dim=1), rebuilt
        return self.synthesise(spectrum).squeeze(1)

    def synthesise(self, spectrum: Tensor) -> Tensor:
        """Real and imaginary parts (B, 2 K, F) => waveform (B, 1, T)."""
        hop, num_fft = self.vocoder.config.hop_length, self.vocoder.config.num_fft
        overhang = (num_fft - hop) // 2  # of the first and of the last frame
        waveform = F.conv_transpose1d(spectrum, self.synthesis, stride=hop, padding=overhang)
        weight = F.conv_transpose1d(torch.ones_like(spectrum[:1, :1]), self.window, stride=hop, padding=overhang)
        return waveform / weight.clamp(min=1e-3)

    def analyse(self, waveform: Tensor) -> Tensor:
        """Waveform (B, 1, T) => real and imaginary parts (B, 2 K, F)."""
        hop, num_fft = self.vocoder.config.hop_length, self.vocoder.config.num_fft
        return F.conv1d(waveform, self.analysis, stride=hop, padding=(num_fft - hop) // 2)


def pairs(tensors: tuple[Tensor, ...]) -> list[Condition]:
    """Embeddings (B, L, D) and masks (B, L), by turns, as conditions."""
    return [Condition(embedding, mask) for embedding, mask in zip(tensors[::2], tensors[1::2])]


def parts_of(model: Any) -> dict[str, Part]:
    """The parts of an open AudioLDM2, by the names of their files."""
    audio, unet = model.audio, model.unet.config
    latent = torch.randn(2, unet.in_channels, 4 * model.smallest_latent, model.num_latent_bins)
    log_mel = torch.randn(2, 1, latent.shape[2] * model.downsampling, audio.num_mel_bins)
    latent_axes: Axes = ("batch", unet.in_channels, "latent_frames", model.num_latent_bins)
    mel_axes: Axes = ("batch", 1, "frames", audio.num_mel_bins)
    parts = {f"conditioner_{name}": text_part(c) for name, c in model.conditioners.items() if name in TEXT_ENCODERS}
    widths = {name: conditioner.width for name, conditioner in model.conditioners.items()}
    if model.loa_generator is not None:
        width = model.loa_generator.projection.width
        inputs, axes = condition_inputs(model.loa_generator.conditions, widths)
        loa = {"loa": torch.randn(2, 3, width)}
        axes = {"loa": ("batch", "num_vectors", width), **axes}
        parts["gpt2"] = Part(NextLOA(model.loa_generator), loa | inputs, axes, "predicted", axes["loa"])
        widths["loa"] = width
    inputs, axes = condition_inputs(unet.conditions, model.unet.condition_widths)
    if unet.film is not None:
        inputs["film"] = torch.randn(2, model.unet.condition_widths[unet.film])
        axes["film"] = ("batch", inputs["film"].shape[1])
    noisy = {"latent": latent, "timestep": torch.tensor([3, 900])}
    axes = {"latent": latent_axes, "timestep": ("batch",), **axes}
    parts["unet"] = Part(Denoiser(model.unet), noisy | inputs, axes, "prediction", latent_axes)
    parts["vae_decoder"] = Part(Decoder(model.vae), {"latent": latent}, {"latent": latent_axes}, "log_mel", mel_axes)
    parts["vae_encoder"] = Part(Encoder(model.vae), {"log_mel": log_mel}, {"log_mel": mel_axes}, "latent", latent_axes)
    samples: Axes = ("batch", "samples")
    parts["vocoder"] = Part(Wave(model.vocoder), {"log_mel": log_mel}, {"log_mel": mel_axes}, "waveform", samples)
    if model.audiomae is not None:
        config = model.audiomae.config
        fbank = torch.randn(2, 1, config.num_frames, config.num_bins)
        axes = {"fbank": ("batch", *fbank.shape[1:])}
        grid = ("batch", *model.audiomae.grid, config.embed_dim)
        parts["audiomae"] = Part(Features(model.audiomae), {"fbank": fbank}, axes, "features", grid)
    return parts


TEXT_ENCODERS = {"clap": CLAPEncoder, "t5": T5Encoder}


def text_part(conditioner: Any) -> Part:
    """A text encoder, of tokens and their mask (B, L)."""
    tokens = {"input_ids": torch.randint(4, 90, (2, 7)), "attention_mask": torch.ones(2, 7, dtype=torch.long)}
    tokens["attention_mask"][1, 4:] = 0
    axes: dict[str, Axes] = {name: ("batch", "tokens") for name in tokens}
    num_vectors = 1 if conditioner.name == "clap" else "tokens"
    network = TEXT_ENCODERS[conditioner.name](conditioner)
    return Part(network, tokens, axes, "condition", ("batch", num_vectors, conditioner.width))


def condition_inputs(names: list[str], widths: dict[str, int]) -> tuple[dict[str, Tensor], dict[str, Axes]]:
    """Examples of conditions (B, L, D) and their masks (B, L), and their axes."""
    inputs: dict[str, Tensor] = {}
    axes: dict[str, Axes] = {}
    for number, name in enumerate(names):
        length = 5 + 2 * number
        inputs |= {name: torch.randn(2, length, widths[name]), f"{name}_mask": torch.ones(2, length, dtype=torch.bool)}
        inputs[f"{name}_mask"][1, 3:] = False
        axes |= {name: ("batch", f"{name}_length", widths[name]), f"{name}_mask": ("batch", f"{name}_length")}
    return inputs, axes
