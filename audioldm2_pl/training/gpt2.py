"""Stage `gpt2`: GPT-2 learns to say a clip's LOA from its caption, teacher-forced (paper §III-C)."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm2_pl.audio import Fbank
from audioldm2_pl.models.audiomae import num_loa_vectors, pool_loa
from audioldm2_pl.models.condition import Condition
from audioldm2_pl.models.gpt2 import LOAGenerator, build_gpt2, build_projection
from audioldm2_pl.training.stage import OptimizerConfig, Stage, StageConfig

LOA_LOSSES = {"mse": F.mse_loss, "l1": F.l1_loss}  # the paper's, and the authors' code's


@dataclass
class GPT2TrainingConfig(StageConfig):
    """AdamW 1e-4 with linear warm-up and no decay (paper §IV-D)."""

    batches: int = 400_000
    batch_size: int = 16
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-4, warmup_batches=10_000)
    )
    loss_weights: dict[str, float] = field(default_factory=lambda: {"loa": 1.0})
    loss: str = "mse"  # distance to AudioMAE's LOA: mse as the paper, l1 as the authors' code


def prompt_conditions(frozen: dict[str, Any], texts: list[str]) -> list[Condition]:
    """[CLAP's text embedding, FLAN-T5's] for GPT-2, without gradient."""
    with torch.no_grad():
        return [frozen["clap"].encode_text(texts), frozen["t5"](texts)]


class GPT2Finetuning(Stage):
    name = "gpt2"
    averaged = ("loa_generator",)

    def __init__(self, experiment, folder):
        super().__init__(experiment, folder)
        clap, t5 = folder.clap(), folder.t5()
        gpt2 = folder.start("language_model") or build_gpt2(experiment.gpt2, num_loa_vectors(experiment.audiomae))
        projection = folder.start("projection_model") or build_projection(
            [clap.model.config.projection_dim, t5.model.config.d_model], experiment.gpt2
        )
        self.loa_generator = LOAGenerator(gpt2, projection)
        self.freeze(clap=clap, t5=t5, audiomae=folder.load("audiomae"), fbank=Fbank(experiment.audio))

    def features(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        audiomae = self.frozen["audiomae"]
        grid = audiomae.features(self.frozen["fbank"](batch["waveform"]))  # type: ignore[operator]
        return {"loa": pool_loa(grid, self.experiment.audiomae.pooling)}  # (B, L, D)

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        loa = self.features_of(batch)["loa"]
        predicted = self.loa_generator.teacher_forced(prompt_conditions(self.frozen, batch["text"]), loa)
        return {"loa": LOA_LOSSES[self.config.loss](predicted, loa)}

    def parts(self) -> dict[str, Any]:
        return {"language_model": self.loa_generator.gpt2, "projection_model": self.loa_generator.projection}
