"""The frozen networks through which the latent diffusion stages see a clip.

Letters: B batch, T samples, C × H × W latent, T' × F' patches of AudioMAE, D width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from audioldm2_pl.audio import AudioConfig, Fbank, LogMel
from audioldm2_pl.models.audiomae import AudioMAE
from audioldm2_pl.models.vae import encode
from audioldm2_pl.seeds import noise_like


class AudioEncoder(nn.Module):
    """waveform (B, T) => the VAE's posterior and AudioMAE's patches; either network may be None."""

    def __init__(self, audio: AudioConfig, vae: Any = None, audiomae: AudioMAE | None = None, pooling: int = 8,
                 speech_pooling: int | None = None):  # fmt: skip
        """`pooling`: λ of the LOA that GPT-2 generates, `speech_pooling` that of clips with a transcript."""
        super().__init__()
        self.audio = audio
        self.pooling = pooling
        self.speech_pooling = speech_pooling
        self.vae = vae
        self.audiomae = audiomae
        self.log_mel = LogMel(audio)
        self.fbank = Fbank(audio)
        self.eval().requires_grad_(False)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the features."""
        return (*(("mean", "std") if self.vae is not None else ()), *(("grid",) if self.audiomae is not None else ()))

    @torch.no_grad()
    def features(self, waveform: Tensor) -> dict[str, Tensor]:
        """waveform (B, T) => posterior "mean", "std" (B, C, H, W), and "grid" (B, T', F', D)."""
        features = {}
        if self.vae is not None:
            posterior = encode(self.vae, self.log_mel(waveform))
            features = {"mean": posterior.mean, "std": posterior.std}
        if self.audiomae is not None:
            features["grid"] = self.audiomae.features(self.fbank(waveform))
        return features

    def draw_latent(self, features: dict[str, Tensor], generator: torch.Generator | None = None) -> Tensor:
        """A sample of the posterior, scaled to unit variance, (B, C, H, W)."""
        latent = features["mean"] + features["std"] * noise_like(features["mean"], generator)
        return latent * self.vae.config["scaling_factor"]
