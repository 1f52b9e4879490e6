"""Stage `joint`: T-UNet and GPT-2 together; the diffusion loss reaches GPT-2 through its LOA (paper §III-D3)."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from audioldm2_pl.conditioners.condition import Condition
from audioldm2_pl.conditioners.config import CONDITIONS
from audioldm2_pl.fields import bounded
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.models.audiomae import loa_lengths, pool_loa
from audioldm2_pl.models.diffusion import DiffusionConfig
from audioldm2_pl.models.gpt2 import LOAGenerator
from audioldm2_pl.models.unet import TUNet
from audioldm2_pl.pipeline import AudioLDM2
from audioldm2_pl.training.audio_encoder import AudioEncoder
from audioldm2_pl.training.conditions import open_conditioners
from audioldm2_pl.training.gpt2 import by_task, loa_distance, loa_parts, prompts_of
from audioldm2_pl.training.ldm import (
    conditional_loss,
    draw_dropped_clips,
    generate_previews,
    open_audio_encoder,
    open_unet,
    unet_example,
)
from audioldm2_pl.training.optimizer import OptimizerConfig
from audioldm2_pl.training.stage import Stage, StageConfig


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
    p_gt: float = bounded(0.25, ge=0, le=1)  # probability that a batch's T-UNet reads AudioMAE's LOA, not GPT-2's
    skip_dropped_loa: bool = False  # leave clips without conditions out of the loa term, as the authors' code


class JointFinetuning(Stage):
    """Trains T-UNet, GPT-2, the projections, and the conditioners that are not frozen."""

    name = "joint"
    settings = ("conditioners", "audiomae", "vae", "unet", "gpt2", "diffusion")
    reads_features = True
    networks = ("unet", "loa_generator", *CONDITIONS, "vae", "audiomae")
    compiles = ("unet",)
    adapts: ClassVar = {"unet": "unet", "gpt2": "loa_generator.gpt2"}
    averaged = ("unet",)
    needs_whole_clips = True

    def __init__(
        self,
        config: JointTrainingConfig,
        unet: TUNet,
        loa_generator: LOAGenerator,
        audio_encoder: AudioEncoder,
        conditioners: dict[str, Any],
        diffusion: DiffusionConfig,
    ):
        super().__init__(config)
        self.unet = unet
        self.loa_generator = loa_generator
        self.diffusion = diffusion
        self.add_inputs(audio_encoder, conditioners)

    @classmethod
    def build(cls, experiment: Any, folder: ModelFolder) -> Stage:
        return cls(
            experiment.training.joint,
            open_unet(folder, experiment.unet.num_heads),
            LOAGenerator(
                folder.load("language_model"), folder.load("projection_model"), experiment.gpt2.condition_dropout
            ),
            open_audio_encoder(experiment, folder),
            open_conditioners(experiment, folder, experiment.condition_names),
            experiment.diffusion,
        )

    @classmethod
    def reads(cls, experiment: Any) -> tuple[str, ...]:
        return ("unet", "gpt2", *experiment.condition_names, "vae", "audiomae")

    @classmethod
    def writes(cls, experiment: Any) -> tuple[str, ...]:
        return ("unet", "gpt2", *experiment.trainable_conditioners(experiment.condition_names))

    def features(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return self.encode_sound(batch)  # (B, ...) each

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        features, encoder = self.features_of(batch), self.frozen["audio_encoder"]
        latent = encoder.draw_latent(features, self.shared.on(features["mean"].device))  # type: ignore[operator]
        conditions = self.encode(batch, features)
        prompts = [conditions[name] for name in self.loa_generator.conditions]
        reads_true = self.shared.python.random() < self.config.p_gt
        tasks = list(by_task(batch, encoder))
        true = [pool_loa(features["grid"][rows], pooling) for rows, pooling in tasks]  # (b, L, D) each
        read = true if reads_true else [
            self.loa_generator.generate([prompt[rows] for prompt in prompts], loa.shape[1])
            for (rows, _), loa in zip(tasks, true)
        ]  # fmt: skip
        order = torch.cat([rows for rows, _ in tasks]).argsort()  # (B,), back to that of the batch
        conditions["loa"] = Condition.cat([Condition.of(loa) for loa in read])[order]
        dropped = draw_dropped_clips(self, len(latent))
        diffusion = conditional_loss(self, latent, conditions, dropped)
        prompts = prompts_of(self, conditions)
        distances = [
            loa_distance(self.config.loss, self.loa_generator.teacher_forced([p[rows] for p in prompts], loa), loa)
            for (rows, _), loa in zip(tasks, true)
        ]  # (b,) each
        return {"diffusion": diffusion, "loa": self.loa_term(torch.cat(distances)[order], dropped.get("loa"))}

    def loa_term(self, distances: Tensor, dropped: Tensor | None) -> Tensor:
        """Mean of distances (B,) of GPT-2's LOA to AudioMAE's; `skip_dropped_loa` leaves out dropped clips (B,)."""
        if not self.config.skip_dropped_loa or dropped is None or not dropped.any():
            return distances.mean()
        weight = (~dropped).to(distances)
        return (distances * weight).sum() / torch.clamp(weight.sum(), min=1.0)

    def parts(self) -> dict[str, Any]:
        return {"unet": self.unet, **loa_parts(self)}

    def preview(self, folder: ModelFolder, batch: dict[str, Any], experiment: Any) -> Tensor | None:
        return generate_previews(AudioLDM2(folder, self.device), batch, experiment)

    def example(self, experiment: Any) -> tuple[Any, ...] | None:
        return unet_example(self, experiment, max(loa_lengths(experiment.audiomae)))
