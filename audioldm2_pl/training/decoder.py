"""Stage `decoder`: the VAE's decoder goes on learning, for latents that are not quite those of its encoder.

A T-UNet's latents are off by some error. Noise on the encoder's latents stands for it. Nearer to it are the T-UNet's
own: a real clip's latent, noised a good way and sampled back as in generation, still belongs to that clip's log-mel.
The encoder rests, so that latents stay what they were: a T-UNet that was trained on them before goes on to fit.

Letters: B batch, T samples, F frames, M mel bins.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm2_pl.audio import LogMel
from audioldm2_pl.fields import bounded
from audioldm2_pl.models.diffusion import draw_noise
from audioldm2_pl.models.vae import encode, log_mel_of
from audioldm2_pl.pipeline import AudioLDM2
from audioldm2_pl.seeds import draw_rows, noise_like, seed_of
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
    loss_weights: dict[str, float | None] = bounded(
        lambda: {"reconstruction": 1.0, "roughness": 0.5}, keys=("reconstruction", "roughness"), ge=0
    )
    latent_noise: float = bounded(0.6, ge=0)  # latents, of unit std, get noise of a std drawn from [0, this]
    sampled_from: list[int] = bounded(list, ge=1)  # timesteps to noise latents to, for the T-UNet to go on from
    sampled_share: float = bounded(0.7, ge=0, le=1)  # of the clips, with `sampled_from`: their latents are the T-UNet's
    max_clips: int | None = bounded(None, ge=1)  # learn from so many clips; the T-UNet takes long to hear all

    @property
    def read_seconds(self) -> float | None:
        """Whole clips where the T-UNet hears them."""
        return None if self.sampled_from else self.crop_seconds


def roughness(log_mel: Tensor) -> Tensor:
    """log-mel (B, 1, F, M) => how much those LAGS apart differ, in time, then in frequency, each cell's mean (B, N).

    The likeliest log-mel of rain is smooth, as all averages are; its roughness tells it from a hum. Neighbours alone
    would not: a pattern that repeats with every latent is as rough, and buzzes at that rate.
    """
    in_time = [log_mel[:, :, lag:] - log_mel[:, :, :-lag] for lag in LAGS]  # (B, 1, F - lag, M) each
    in_frequency = [log_mel[..., lag:] - log_mel[..., :-lag] for lag in LAGS]  # (B, 1, F, M - lag) each
    return torch.cat([F.avg_pool2d(x.abs(), CELL).flatten(1) for x in in_time + in_frequency], dim=1)


class DecoderFinetuning(Stage):
    """Trains the VAE's decoder alone, on latents with noise and, with `sampled_from`, on the T-UNet's."""

    name = "decoder"
    networks = ("decoder", "vae")
    averaged = ("decoder",)

    def __init__(self, experiment, folder):
        super().__init__(experiment, folder)
        vae = folder.load("vae")
        self.freeze(vae=vae)
        self.decoder = nn.ModuleList([vae.post_quant_conv, vae.decoder]).requires_grad_(True)
        self.log_mel = LogMel(experiment.audio)
        # opened here, so that a missing part is told at once
        self.generator = AudioLDM2(folder) if self.config.sampled_from else None

    def on_fit_start(self) -> None:
        if self.generator is not None and self.generator.device != self.device:
            self.generator = AudioLDM2(self.folder, self.device)
        super().on_fit_start()

    @torch.no_grad()
    def features(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """A batch's "log_mel" (B, 1, F, M), posterior "mean", "std" (B, C, H, W), and the T-UNet's "sampled" latent."""
        log_mel = self.log_mel(batch["waveform"])
        posterior = encode(self.frozen["vae"], log_mel)  # type: ignore[arg-type]
        features = {"log_mel": log_mel, "mean": posterior.mean, "std": posterior.std}
        if self.generator is not None:
            features["sampled"] = self.sampled(batch, posterior)
        return features

    def sampled(self, batch: dict[str, Any], posterior: Any) -> Tensor:
        """What T-UNet and GPT-2 make of each clip's latent, noised to one of `sampled_from`, (B, C, H, W).

        All draws follow from the clip's id: the other clips of a batch do not matter.
        """
        generator: Any = self.generator
        diffusion, choices = self.experiment.diffusion, self.config.sampled_from
        seeds = [seed_of(self.experiment.seed, self.name, clip) for clip in batch["id"]]
        noise = draw_noise(posterior.mean.shape[1:], [torch.Generator().manual_seed(seed) for seed in seeds])
        latent = (posterior.mean + posterior.std * noise.to(posterior.mean)) * generator.vae.config.scaling_factor
        picked = [seed_of(seed, "timestep") % len(choices) for seed in seeds]
        sampled = torch.empty_like(latent)
        for choice in set(picked):
            rows = [row for row, pick in enumerate(picked) if pick == choice]
            sampled[rows] = generator.generate_latent(
                [batch["text"][row] for row in rows],
                [seed_of(seeds[row], "sample") for row in rows],
                latent.shape[2],
                diffusion.num_steps,
                diffusion.guidance_scale,
                diffusion.eta,
                unconditional=diffusion.unconditional,
                transcripts=[batch["transcript"][row] for row in rows] if generator.is_speech else None,
                start=(latent[rows], choices[choice]),
            )
        return sampled

    def cropped(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """One random stretch of `crop_seconds` of each clip, the same of its log-mel and its latents."""
        num_latent_frames = features["mean"].shape[2]
        seconds = self.config.crop_seconds or self.experiment.audio.clip_seconds
        num_frames = round(seconds * self.experiment.audio.frames_per_second)
        length = num_frames // self.experiment.vae.downsampling
        if length >= num_latent_frames:
            return features
        cpu = self.shared.on("cpu")
        starts = draw_rows(
            lambda n: torch.randint(num_latent_frames - length + 1, (n,), generator=cpu), len(features["mean"])
        )
        crops = {}
        for name, value in features.items():
            unit = value.shape[2] // num_latent_frames
            rows = [row[:, s * unit : (s + length) * unit] for row, s in zip(value, starts.tolist())]
            crops[name] = torch.stack(rows)
        return crops

    def latent_to_decode(self, features: dict[str, Tensor]) -> Tensor:
        """Scaled latent (B, C, H, W): a posterior sample and noise on it or, of a share of the clips, the T-UNet's."""
        generator = self.shared.on(features["mean"].device)
        latent = draw_latent(self.frozen, features, generator)
        noise = noise_like(latent, generator)

        def draw(n: int) -> Tensor:
            return torch.rand(n, 1, 1, 1, device=latent.device, generator=generator)

        latent = latent + self.config.latent_noise * draw_rows(draw, len(latent)) * noise
        if "sampled" not in features:
            return latent
        share = draw_rows(draw, len(latent))  # (B, 1, 1, 1)
        return torch.where(share < self.config.sampled_share, features["sampled"], latent)

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        features = self.cropped(self.features_of(batch))
        log_mel = features["log_mel"]
        reconstruction = log_mel_of(self.frozen["vae"], self.latent_to_decode(features))  # type: ignore[arg-type]
        return {
            "reconstruction": F.l1_loss(reconstruction, log_mel),
            "roughness": F.l1_loss(roughness(reconstruction), roughness(log_mel)),
        }

    def parts(self) -> dict[str, Any]:
        return {"vae": self.frozen["vae"]}
