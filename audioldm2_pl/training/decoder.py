"""Stage `decoder`: the VAE's decoder goes on learning, for latents that are not quite those of its encoder.

A T-UNet's latents are off by some error. Noise on the encoder's latents stands for it. Nearer to it are the T-UNet's
own: a real clip's latent, noised a good way and sampled back as in generation, still belongs to that clip's log-mel.
The encoder rests, so that latents stay what they were: a T-UNet that was trained on them before goes on to fit.

Letters: B batch, T samples, F frames, M mel bins.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm2_pl.audio import LogMel
from audioldm2_pl.editing import Edit
from audioldm2_pl.errors import UserError
from audioldm2_pl.fields import bounded
from audioldm2_pl.generation import Generation, Sampling
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.models.diffusion import begin_at, build_scheduler, draw_noise
from audioldm2_pl.models.vae import encode, log_mel_of
from audioldm2_pl.pipeline import AudioLDM2
from audioldm2_pl.seeds import draw_rows, noise_like, seed_of
from audioldm2_pl.training.optimizer import OptimizerConfig
from audioldm2_pl.training.stage import Stage, StageConfig
from audioldm2_pl.training.vae import reconstruct_waveform
from audioldm2_pl.transcripts import transcript_for

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
    max_clips: int | None = bounded(None, ge=1)  # train on so many clips; sampling a latent of each takes long

    @property
    def read_seconds(self) -> float | None:
        """Whole clips where the T-UNet samples their latents."""
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
    settings = ("vae",)
    optional = True
    networks = ("decoder", "vae")
    compiles = ("decoder.1",)
    averaged = ("decoder",)

    def __init__(
        self,
        config: DecoderTrainingConfig,
        vae: Any,
        log_mel: LogMel,
        model: AudioLDM2 | None = None,
        sampling: Sampling | None = None,
    ):
        """`model` samples the latents that `sampled_from` asks for, as `sampling` says."""
        super().__init__(config)
        if config.sampled_from and model is None:
            raise ValueError("sampled_from asks for latents of a T-UNet: give the stage a model")
        self.freeze(vae=vae)
        self.decoder = nn.ModuleList([vae.post_quant_conv, vae.decoder]).requires_grad_(True)
        self.log_mel = log_mel
        self.model = model
        self.sampling = replace(sampling or Sampling(), candidates=1)

    @classmethod
    def build(cls, experiment: Any, folder: ModelFolder) -> Stage:
        config = experiment.training.decoder
        model = AudioLDM2(folder, folder.device) if config.sampled_from else None
        return cls(config, folder.load("vae"), LogMel(experiment.audio), model, experiment.sampling)

    @classmethod
    def reads(cls, experiment: Any) -> tuple[str, ...]:
        if not experiment.training.decoder.sampled_from:
            return ("vae",)
        needed = ("gpt2",) if experiment.uses_loa else ()
        return ("vae", "unet", "vocoder", *needed, *experiment.condition_names)

    @classmethod
    def writes(cls, experiment: Any) -> tuple[str, ...]:
        return ("vae",)

    @classmethod
    def check(cls, experiment: Any) -> None:
        super().check(experiment)
        config, unit = experiment.training.decoder, experiment.vae.downsampling
        num_frames = experiment.audio.num_frames_of(config.crop_seconds) // unit * unit
        if min(num_frames, experiment.audio.num_mel_bins) < CELL + max(LAGS):
            raise UserError(
                f"decoder: its roughness takes {CELL + max(LAGS)} frames and mel bins; lengthen "
                f"training.decoder.crop_seconds={config.crop_seconds}"
            )
        if config.sampled_from:
            num_solver_steps = experiment.training.distill.num_solver_steps
            scheduler = build_scheduler(experiment.diffusion, experiment.sampling.sampler, num_solver_steps)
            scheduler.set_timesteps(experiment.sampling.num_steps)
            try:
                begin_at(scheduler, min(config.sampled_from))
            except UserError as error:
                raise UserError(f"training.decoder.sampled_from: {error}") from None

    def frozen_networks(self) -> list[nn.Module]:
        return [*super().frozen_networks(), *(self.model.networks if self.model is not None else ())]

    def on_fit_start(self) -> None:
        if self.model is not None:
            self.model.to(self.device)
        super().on_fit_start()

    @torch.no_grad()
    def features(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """A batch's "log_mel" (B, 1, F, M), posterior "mean", "std" (B, C, H, W), and the T-UNet's "sampled" latent."""
        log_mel = self.log_mel(batch["waveform"])
        posterior = encode(self.frozen["vae"], log_mel)  # type: ignore[arg-type]
        features = {"log_mel": log_mel, "mean": posterior.mean, "std": posterior.std}
        if self.model is not None:
            features["sampled"] = self.sampled(batch, posterior)
        return features

    def sampled(self, batch: dict[str, Any], posterior: Any) -> Tensor:
        """What T-UNet and GPT-2 make of each clip's latent, noised to one of `sampled_from`, (B, C, H, W).

        All draws follow from the clip's id: the other clips of a batch do not matter.
        """
        model, choices = self.model, self.config.sampled_from
        assert model is not None
        seeds = [seed_of(self.seed, self.name, clip) for clip in batch["id"]]
        noise = draw_noise(posterior.mean.shape[1:], [torch.Generator().manual_seed(seed) for seed in seeds])
        latent = (posterior.mean + posterior.std * noise.to(posterior.mean)) * model.vae.config.scaling_factor
        picked = [seed_of(seed, "timestep") % len(choices) for seed in seeds]
        sampled = torch.empty_like(latent)
        for choice in set(picked):
            rows = [row for row, pick in enumerate(picked) if pick == choice]
            requests = [
                Generation(
                    batch["text"][row],
                    transcript=transcript_for(model, batch["transcript"][row]),
                    seed=seed_of(seeds[row], "sample"),
                )
                for row in rows
            ]
            edit = Edit(latent[rows], start_timestep=choices[choice])
            sampled[rows] = model.generate_latent(requests, self.sampling, edit)
        return sampled

    def cropped(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """One random crop of each clip, (B, C, frames, bins): the same of its log-mel and its latents."""
        num_latent_frames = features["mean"].shape[2]
        unit = features["log_mel"].shape[2] // num_latent_frames  # frames under one latent position
        seconds = self.config.crop_seconds
        length = num_latent_frames if seconds is None else self.log_mel.config.num_frames_of(seconds) // unit
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
        scaling_factor = self.frozen["vae"].config["scaling_factor"]  # type: ignore[index]
        latent = (features["mean"] + features["std"] * noise_like(features["mean"], generator)) * scaling_factor
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
        log_mel = features["log_mel"]  # (B, 1, F, M)
        reconstruction = log_mel_of(self.frozen["vae"], self.latent_to_decode(features))  # type: ignore[arg-type]
        return {
            "reconstruction": F.l1_loss(reconstruction, log_mel),
            "roughness": F.l1_loss(roughness(reconstruction), roughness(log_mel)),
        }

    def parts(self) -> dict[str, Any]:
        return {"vae": self.frozen["vae"]}

    def preview(self, folder: ModelFolder, batch: dict[str, Any], experiment: Any) -> Tensor | None:
        return reconstruct_waveform(folder, batch["waveform"], self.log_mel)

    def example(self, experiment: Any) -> tuple[Any, ...] | None:
        r = experiment.vae.downsampling
        num_frames = experiment.audio.num_frames_of(self.config.crop_seconds)
        sizes = (experiment.vae.latent_channels, num_frames // r, experiment.audio.num_mel_bins // r)
        return self.decoder[1], torch.empty(self.config.batch_size, *sizes)
