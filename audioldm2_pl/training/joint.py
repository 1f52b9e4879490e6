"""Stage `joint`: T-UNet and GPT-2 together; the diffusion loss reaches GPT-2 through its LOA (paper §III-D3)."""

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from audioldm2_pl.audio import Fbank, LogMel
from audioldm2_pl.fields import bounded
from audioldm2_pl.models.audiomae import pool_loa
from audioldm2_pl.models.diffusion import diffusion_loss
from audioldm2_pl.models.gpt2 import LOAGenerator
from audioldm2_pl.training.gpt2 import LOA_LOSSES, clap_features, loa_parts, prompt_conditions
from audioldm2_pl.training.ldm import (
    draw_latent,
    dropped_clips,
    encode_audio,
    open_unet,
    stored_words,
    unet_conditions,
)
from audioldm2_pl.training.optimizer import OptimizerConfig
from audioldm2_pl.training.stage import Stage, StageConfig
from audioldm2_pl.training.words import WORDS, take_words


@dataclass
class JointTrainingConfig(StageConfig):
    """AdamW 1e-4; P_gt 0.25 and P_pred 0.75 (paper §IV-D)."""

    batches: int = 200_000
    batch_size: int = 16
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-4, warmup_batches=10_000)
    )
    loss_weights: dict[str, float | None] = bounded(
        lambda: {"diffusion": 1.0, "loa": 1.0}, keys=("diffusion", "loa"), ge=0
    )
    ema_decay: float | None = 0.9999
    loss: Literal["mse", "l1"] = "mse"  # distance to AudioMAE's LOA: mse as the paper, l1 as the authors' code
    p_gt: float = bounded(0.25, ge=0, le=1)  # probability that a batch's T-UNet hears AudioMAE's LOA, not GPT-2's


class JointFinetuning(Stage):
    name = "joint"
    averaged = ("unet",)
    networks = ("unet", "loa_generator", *WORDS, "vae", "audiomae", "clap")

    def __init__(self, experiment, folder):
        super().__init__(experiment, folder)
        self.unet = open_unet(folder, experiment.unet.num_heads)
        self.loa_generator = LOAGenerator(folder.load("language_model"), folder.load("projection_model"))
        take_words(self)
        self.encoded = ("mean", "std", "grid", "clap") if experiment.is_speech else ("mean", "std", "grid")
        self.freeze(clap=folder.clap(), vae=folder.load("vae"), audiomae=folder.load("audiomae"))
        self.freeze(log_mel=LogMel(experiment.audio), fbank=Fbank(experiment.audio))

    def features(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return encode_audio(self.frozen, batch["waveform"]) | clap_features(self, batch["waveform"])

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        features = self.features_of(batch)
        generator = self.shared.on(features["mean"].device)
        latent = draw_latent(self.frozen, features, generator)
        true_loa = pool_loa(features["grid"], self.experiment.audiomae.pooling)
        prompts = prompt_conditions(self, batch, features)
        takes_true = self.shared.python.random() < self.config.p_gt
        loa = true_loa if takes_true else self.loa_generator.generate(prompts)
        dropped = dropped_clips(self, len(latent))
        conditions = unet_conditions(loa, batch["text"], self.network("t5"), dropped, stored_words(features))
        diffusion = self.experiment.diffusion
        loss = diffusion_loss(diffusion, lambda z, t: self.unet(z, t, conditions), latent, generator)
        said = self.loa_generator.teacher_forced(prompts, true_loa)
        return {"diffusion": loss, "loa": LOA_LOSSES[self.config.loss](said, true_loa)}

    def parts(self) -> dict[str, Any]:
        return {"unet": self.unet, **loa_parts(self)}
