"""Stage `ldm`: the T-UNet learns to make latents from AudioMAE's LOA, without needing captions (paper §III-D2)."""

import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from audioldm2_pl.audio import Fbank, LogMel
from audioldm2_pl.checkpoints import ModelFolder
from audioldm2_pl.conditioners import T5
from audioldm2_pl.models.audiomae import pool_loa
from audioldm2_pl.models.condition import Condition
from audioldm2_pl.models.diffusion import build_scheduler, diffusion_loss, draw_dropped
from audioldm2_pl.models.unet import TUNet
from audioldm2_pl.models.vae import encode
from audioldm2_pl.seeds import draw_rows
from audioldm2_pl.training.stage import OptimizerConfig, Stage, StageConfig


@dataclass
class LDMTrainingConfig(StageConfig):
    """AdamW 1e-4 with linear warm-up and no decay (paper §IV-D)."""

    batches: int = 800_000
    batch_size: int = 16
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-4, warmup_batches=10_000)
    )
    loss_weights: dict[str, float] = field(default_factory=lambda: {"diffusion": 1.0})
    ema_decay: float | None = 0.9999
    poolings: list[int] = field(default_factory=lambda: [1, 2, 4, 8])  # λ, one drawn for each batch


def encode_audio(frozen: dict[str, Any], waveform: Tensor) -> dict[str, Tensor]:
    """Waveform (B, T) => the VAE's posterior "mean", "std" (B, C, H, W) and AudioMAE's "grid" (B, T', F', D)."""
    posterior = encode(frozen["vae"], frozen["log_mel"](waveform))
    return {
        "mean": posterior.mean,
        "std": posterior.std,
        "grid": frozen["audiomae"].features(frozen["fbank"](waveform)),
    }


def draw_latent(frozen: dict[str, Any], features: dict[str, Tensor]) -> Tensor:
    """A sample of the posterior, scaled to unit variance, (B, C, H, W)."""
    mean = features["mean"]
    # not randn_like, which fills in the order of memory: that may differ between a cached latent and a fresh one
    noise = draw_rows(lambda n: torch.randn(n, *mean.shape[1:], device=mean.device), len(mean))
    latent = mean + features["std"] * noise
    return latent * frozen["vae"].config.scaling_factor


def unet_conditions(loa: Tensor, texts: list[str], t5: T5 | None, dropped: Tensor) -> list[Condition]:
    """[LOA, T5] of a batch, or for speech [LOA]; a dropped clip has zero LOA and the text ""."""
    keep = (~dropped).to(loa)[:, None, None]
    loa_mask = torch.ones(loa.shape[:2], dtype=torch.long, device=loa.device)
    conditions = [Condition(loa * keep, loa_mask)]
    if t5 is not None:
        conditions.append(t5(["" if drop else text for text, drop in zip(texts, dropped.tolist())]))
    return conditions


def open_unet(folder: ModelFolder, num_heads: list[int]) -> TUNet:
    """The model folder's T-UNet with the heads of the experiment, which a hub's folder may have wrong."""
    unet: TUNet = folder.load("unet")
    if list(unet.config.num_heads) != list(num_heads):
        print(f"unet: its folder says {unet.config.num_heads} heads, the experiment {num_heads}, which are taken")
        unet.set_heads(num_heads)
    return unet


class LDMPretraining(Stage):
    name = "ldm"
    averaged = ("unet",)

    def __init__(self, experiment, folder):
        super().__init__(experiment, folder)
        self.unet = open_unet(folder, experiment.unet.num_heads) if "unet" in folder.started else TUNet(experiment.unet)
        if experiment.is_speech:
            pass  # the T-UNet of speech reads LOA alone
        elif experiment.conditioners.t5.pretrained is None and not folder.is_given("t5"):
            self.t5 = T5.build(experiment.conditioners.t5)  # a text encoder without a past learns here
        else:
            self.freeze(t5=folder.words())
        self.freeze(vae=folder.load("vae"), audiomae=folder.load("audiomae"))
        self.freeze(log_mel=LogMel(experiment.audio), fbank=Fbank(experiment.audio))
        self.poolings = experiment.training.ldm.poolings

    def text_encoder(self) -> T5 | None:
        return self.frozen.get("t5", getattr(self, "t5", None))  # type: ignore[return-value]

    def features(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return encode_audio(self.frozen, batch["waveform"])

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        features = self.features_of(batch)
        latent = draw_latent(self.frozen, features)
        loa = pool_loa(features["grid"], random.choice(self.poolings))
        dropped = draw_dropped(self.experiment.diffusion, len(latent))
        conditions = unet_conditions(loa, batch["text"], self.text_encoder(), dropped)
        loss = diffusion_loss(self.experiment.diffusion, lambda z, t: self.unet(z, t, conditions), latent)
        return {"diffusion": loss}

    def parts(self) -> dict[str, Any]:
        t5 = self.text_encoder()
        texts = {} if t5 is None else {"text_encoder_2": t5.model, "tokenizer_2": t5.tokenizer}
        return {"unet": self.unet, **texts, "scheduler": build_scheduler(self.experiment.diffusion)}
