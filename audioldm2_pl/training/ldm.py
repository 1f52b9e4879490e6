"""Stage `ldm`: the T-UNet learns to make latents from AudioMAE's LOA, without needing captions (paper §III-D2)."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from audioldm2_pl.audio import Fbank, LogMel
from audioldm2_pl.conditioners.condition import Condition
from audioldm2_pl.conditioners.t5 import T5
from audioldm2_pl.fields import bounded
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.models.audiomae import pool_loa
from audioldm2_pl.models.diffusion import build_scheduler, diffusion_loss, draw_dropped
from audioldm2_pl.models.unet import TUNet
from audioldm2_pl.models.vae import encode
from audioldm2_pl.seeds import draw_rows, noise_like
from audioldm2_pl.training.optimizer import OptimizerConfig
from audioldm2_pl.training.stage import Stage, StageConfig
from audioldm2_pl.training.words import WORDS, learning_words, take_words, words_parts


@dataclass
class LDMTrainingConfig(StageConfig):
    """AdamW 1e-4 with linear warm-up and no decay (paper §IV-D)."""

    batches: int = 800_000
    batch_size: int = 16
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-4, warmup_batches=10_000)
    )
    loss_weights: dict[str, float | None] = bounded(lambda: {"diffusion": 1.0}, keys=("diffusion",), ge=0)
    ema_decay: float | None = 0.9999
    poolings: list[int] = bounded(lambda: [1, 2, 4, 8], ge=1, le=4_096, min_length=1)  # λ, one drawn for each batch
    loa_dropout: float = bounded(0.0, ge=0, le=1)  # probability that a clip's LOA is left out: its words have to tell


def encode_latent(frozen: dict[str, Any], waveform: Tensor) -> dict[str, Tensor]:
    """Waveform (B, T) => the VAE's posterior "mean", "std" (B, C, H, W)."""
    posterior = encode(frozen["vae"], frozen["log_mel"](waveform))
    return {"mean": posterior.mean, "std": posterior.std}


def encode_audio(frozen: dict[str, Any], waveform: Tensor) -> dict[str, Tensor]:
    """Waveform (B, T) => the VAE's posterior, and AudioMAE's "grid" (B, T', F', D)."""
    return {**encode_latent(frozen, waveform), "grid": frozen["audiomae"].features(frozen["fbank"](waveform))}


def draw_latent(
    frozen: dict[str, Any], features: dict[str, Tensor], generator: torch.Generator | None = None
) -> Tensor:
    """A sample of the posterior, scaled to unit variance, (B, C, H, W)."""
    mean = features["mean"]
    latent = mean + features["std"] * noise_like(mean, generator)
    return latent * frozen["vae"].config.scaling_factor


def stored_words(features: dict[str, Tensor]) -> Condition | None:
    """T5's reading of the captions where it was stored with the clips."""
    return Condition(features["t5"], features["t5_mask"]) if "t5" in features else None


def with_dropped(words: Condition, t5: T5, dropped: Tensor) -> Condition:
    """Stored words of a batch, in a dropped clip's place those of the text ""."""
    if not dropped.any():
        return words
    rows = torch.arange(len(words), device=dropped.device).masked_fill(dropped, len(words))
    return Condition.cat([words, t5([""])])[rows.to(words.mask.device)]


def unet_conditions(
    loa: Tensor, texts: list[str], t5: T5 | None, dropped: Tensor, words: Condition | None = None
) -> list[Condition]:
    """[LOA, T5] of a batch, or for speech [LOA]; a dropped clip has zero LOA and the text "". `words`: stored ones."""
    keep = (~dropped).to(loa)[:, None, None]
    loa_mask = torch.ones(loa.shape[:2], dtype=torch.long, device=loa.device)
    conditions = [Condition(loa * keep, loa_mask)]
    if t5 is not None and words is not None:
        conditions.append(with_dropped(words, t5, dropped))
    elif t5 is not None:
        conditions.append(t5(["" if drop else text for text, drop in zip(texts, dropped.tolist())]))
    return conditions


def without_loa(loa: Tensor, probability: float, generator: torch.Generator | None = None) -> Tensor:
    """LOA (B, L, D), that of some clips zero; draws nothing where the probability is 0."""
    if probability == 0.0:
        return loa
    draws = draw_rows(lambda n: torch.rand(n, 1, 1, device=loa.device, generator=generator), len(loa))
    return loa.masked_fill(draws < probability, 0.0)


def dropped_clips(stage: Stage, batch_size: int) -> Tensor:
    """(B,) bool: which clips of a batch go without their conditions; none in validation."""
    if not stage.training:
        return torch.zeros(batch_size, dtype=torch.bool)
    return draw_dropped(stage.experiment.diffusion, batch_size, stage.shared.on("cpu"))


def film_of(clap: Any, sound: Tensor, dropped: Tensor) -> Tensor:
    """AudioLDM 1's condition: CLAP's embedding of each sound (B, D), of a dropped one that of the text ""."""
    nothing = clap.encode_text([""]).embedding[:, 0]
    return torch.where(dropped.to(sound.device)[:, None], nothing, sound)


def open_unet(folder: ModelFolder, num_heads: list[int]) -> TUNet:
    """The model folder's T-UNet with the heads of the experiment, which a hub's folder may have wrong."""
    unet: TUNet = folder.load("unet")
    if list(unet.config.num_heads) != list(num_heads):
        print(f"unet: its folder says {unet.config.num_heads} heads, the experiment {num_heads}, which are taken")
        unet.set_heads(num_heads)
    return unet


class LDMPretraining(Stage):
    name = "ldm"
    networks = ("unet", *WORDS, "vae", "audiomae", "clap")
    encoded = ("mean", "std", "grid")

    def __init__(self, experiment, folder):
        super().__init__(experiment, folder)
        self.unet = open_unet(folder, experiment.unet.num_heads) if "unet" in folder.started else TUNet(experiment.unet)
        self.freeze(vae=folder.load("vae"), log_mel=LogMel(experiment.audio))
        if self.is_audioldm1:
            self.encoded = ("mean", "std", "clap")
            self.freeze(clap=folder.clap())
        else:
            self.freeze(audiomae=folder.load("audiomae"), fbank=Fbank(experiment.audio))
        if not self.is_audioldm1 and not experiment.is_speech:  # whose T-UNet reads LOA alone
            take_words(self, anew=True)
        self.averaged = ("unet", *learning_words(self))

    @property
    def is_audioldm1(self) -> bool:
        """CLAP hears the clip in training and reads the prompt in generation; there is no LOA (Liu et al. 2023)."""
        return self.experiment.unet.film_dim is not None

    def features(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        if not self.is_audioldm1:
            return encode_audio(self.frozen, batch["waveform"])
        clap: Any = self.frozen["clap"]
        sound = clap.encode_audio(batch["waveform"], self.experiment.audio.sample_rate).embedding[:, 0]
        return {**encode_latent(self.frozen, batch["waveform"]), "clap": sound}

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        features = self.features_of(batch)
        generator = self.shared.on(features["mean"].device)
        latent = draw_latent(self.frozen, features, generator)
        dropped = dropped_clips(self, len(latent))
        if self.is_audioldm1:
            conditions, film = [], film_of(self.frozen["clap"], features["clap"], dropped)
        else:
            loa = pool_loa(features["grid"], self.shared.python.choice(self.config.poolings))
            loa = without_loa(loa, self.config.loa_dropout if self.training else 0.0, generator)
            words = stored_words(features)
            conditions, film = unet_conditions(loa, batch["text"], self.network("t5"), dropped, words), None
        diffusion = self.experiment.diffusion
        return {
            "diffusion": diffusion_loss(diffusion, lambda z, t: self.unet(z, t, conditions, film), latent, generator)
        }

    def parts(self) -> dict[str, Any]:
        return {"unet": self.unet, **words_parts(self), "scheduler": build_scheduler(self.experiment.diffusion)}
