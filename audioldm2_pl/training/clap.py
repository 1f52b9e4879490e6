"""Stage `clap`: contrastive pretraining of CLAP on pairs of sound and caption.

For domains and sizes that LAION's weights do not serve; everyone else names those weights in `conditioners.clap`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed

from audioldm2_pl.conditioners.clap import CLAP
from audioldm2_pl.fields import bounded
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.seeds import seed_of
from audioldm2_pl.training.optimizer import OptimizerConfig
from audioldm2_pl.training.stage import Stage, StageConfig

MAX_LOGIT_SCALE = math.log(100.0)  # CLIP's limit (Radford et al. 2021, section 2.5), which CLAP keeps


@dataclass
class CLAPTrainingConfig(StageConfig):
    """LAION-CLAP's recipe: Adam with β₂ = 0.99, linear warm-up, cosine decay (Wu et al. 2023, section 4.1).

    Batch size and warm-up are those of the authors' script, which runs on eight devices.
    """

    batches: int = 45_000
    batch_size: int = 96
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            name="adam",
            betas=(0.9, 0.99),
            weight_decay=0.0,
            warmup_batches=3_200,
            decay="cosine",
        )
    )
    loss_weights: dict[str, float | None] = bounded(lambda: {"contrastive": 1.0}, keys=("contrastive",), ge=0)


def caption_ids(texts: Sequence[str], device: torch.device) -> Tensor:
    """A 63-bit number per caption (B,), equal for equal captions on every rank."""
    return torch.tensor([seed_of(text) for text in texts], device=device)


class CLAPPretraining(Stage):
    """Trains both encoders and the two temperatures; every rank's clips are each other's negatives."""

    name = "clap"
    makes = "clap"
    settings = ("conditioners",)
    networks = ("clap",)
    averaged = ("clap",)

    def __init__(self, config: CLAPTrainingConfig, clap: CLAP, sample_rate: int):
        """`sample_rate` in Hz, of the batches' waveforms."""
        super().__init__(config)
        self.clap = clap.requires_grad_(True).train()
        self.sample_rate = sample_rate

    @classmethod
    def build(cls, experiment: Any, folder: ModelFolder) -> Stage:
        started = folder.start("text_encoder") is not None
        clap: Any = folder.conditioner("clap") if started else CLAP.build(experiment.conditioners.clap)
        return cls(experiment.training.clap, clap, experiment.audio.sample_rate)

    @torch.no_grad()
    def clamp_logit_scales(self) -> None:
        for scale in (self.clap.model.logit_scale_a, self.clap.model.logit_scale_t):
            scale.clamp_(max=MAX_LOGIT_SCALE)

    def gather(self, value: Tensor) -> Tensor:
        """(B, ...) of this rank => (ranks * B, ...) of all in training; gradients flow back to their ranks."""
        if not (self.training and distributed.is_available() and distributed.is_initialized()):
            return value
        return self.all_gather(value, sync_grads=value.requires_grad).flatten(0, 1)  # type: ignore[union-attr]

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        # before the forward pass, not after the step: a checkpoint is written between the two
        self.clamp_logit_scales()
        audio = self.clap.encode_audio(batch["waveform"], self.sample_rate).embedding.squeeze(1)  # (B, D)
        text = self.clap.encode_text(batch["text"]).embedding.squeeze(1)  # (B, D)
        captions = self.gather(caption_ids(batch["text"], audio.device))  # (ranks * B,)
        same = captions[:, None] == captions[None, :]
        loss = self.clap.contrastive_loss(self.gather(audio), self.gather(text), same)
        return {"contrastive": loss}

    def parts(self) -> dict[str, Any]:
        self.clamp_logit_scales()
        return self.clap.parts()
