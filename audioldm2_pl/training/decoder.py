"""Stage `decoder`: the VAE's decoder goes on learning, for latents that are not quite those of its encoder.

A T-UNet's latents are off by some error, which noise on the encoder's stands for here. The encoder rests, so that
latents stay what they were: a T-UNet that was trained on them before goes on to fit.

Letters: B batch, T samples, F frames, M mel bins.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm2_pl.audio import LogMel
from audioldm2_pl.models.vae import encode, log_mel_of
from audioldm2_pl.seeds import draw_rows, noise_like
from audioldm2_pl.training.ldm import draw_latent
from audioldm2_pl.training.optimizer import OptimizerConfig
from audioldm2_pl.training.stage import Stage, StageConfig

CELL = 8  # frames and mel bins over which roughness is averaged
LAGS = (1, 2, 3, 4, 6, 8)  # frames or mel bins between the two that roughness compares


@dataclass
class DecoderTrainingConfig(StageConfig):
    """Ours, not measured at full size; the authors decode with the VAE as its stage left it."""

    batches: int = 20_000
    batch_size: int = 4
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(name="adam", learning_rate=1e-4, betas=(0.5, 0.9), decay="cosine")
    )
    loss_weights: dict[str, float] = field(default_factory=lambda: {"reconstruction": 1.0, "roughness": 0.5})
    latent_noise: float = 0.6  # each clip's latents, of unit std, get noise of a std drawn from [0, this]


def roughness(log_mel: Tensor) -> Tensor:
    """log-mel (B, 1, F, M) => how much those LAGS apart differ, in time, then in frequency, each cell's mean (B, N).

    The likeliest log-mel of rain is smooth, as all averages are; its roughness tells it from a hum. Neighbours alone
    would not: a pattern that repeats with every latent is as rough, and buzzes at that rate.
    """
    in_time = [log_mel[:, :, lag:] - log_mel[:, :, :-lag] for lag in LAGS]  # (B, 1, F - lag, M) each
    in_frequency = [log_mel[..., lag:] - log_mel[..., :-lag] for lag in LAGS]  # (B, 1, F, M - lag) each
    return torch.cat([F.avg_pool2d(x.abs(), CELL).flatten(1) for x in in_time + in_frequency], dim=1)


class DecoderFinetuning(Stage):
    """Trains the VAE's decoder alone, with noise on the latents."""

    name = "decoder"
    averaged = ("decoder",)

    def __init__(self, experiment, folder):
        super().__init__(experiment, folder)
        vae = folder.load("vae")
        self.freeze(vae=vae)
        self.decoder = nn.ModuleList([vae.post_quant_conv, vae.decoder]).requires_grad_(True)
        self.log_mel = LogMel(experiment.audio)

    def noisy_latent(self, log_mel: Tensor) -> Tensor:
        """log-mel (B, 1, F, M) => scaled latent (B, C, F / r, M / r): a posterior sample, and noise on it."""
        posterior = encode(self.frozen["vae"], log_mel)  # type: ignore[arg-type]
        latent = draw_latent(self.frozen, {"mean": posterior.mean, "std": posterior.std})
        noise = noise_like(latent)
        strength = draw_rows(lambda n: torch.rand(n, 1, 1, 1, device=latent.device), len(latent))
        return latent + self.config.latent_noise * strength * noise

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        log_mel = self.log_mel(batch["waveform"])
        reconstruction = log_mel_of(self.frozen["vae"], self.noisy_latent(log_mel))  # type: ignore[arg-type]
        return {
            "reconstruction": F.l1_loss(reconstruction, log_mel),
            "roughness": F.l1_loss(roughness(reconstruction), roughness(log_mel)),
        }

    def parts(self) -> dict[str, Any]:
        return {"vae": self.frozen["vae"]}
