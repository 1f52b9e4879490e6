"""Stage `clap`: contrastive pretraining of CLAP on pairs of sound and caption.

For domains and sizes that LAION's weights do not serve; everyone else names those weights in `conditioners.clap`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

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


def contrastive_loss(
    audio: Tensor, other: Tensor, scale_a: Tensor, scale_b: Tensor, same: Tensor | None = None
) -> Tensor:
    """Symmetric cross-entropy over the similarities of paired embeddings (B, D), and a scalar scale for each direction.

    Wu et al. 2023, Eq. 2. Pairs that `same` (B, B) marks, clips with one caption, are no negatives of each other.
    """
    target = torch.arange(len(audio), device=audio.device)
    with torch.autocast(audio.device.type, enabled=False):  # bfloat16 rounds a scaled logit by up to 0.25
        similarity = audio.float() @ other.float().T  # (B, B), a row per sound
        by_audio, by_other = scale_a.exp() * similarity, scale_b.exp() * similarity.T
        if same is not None:
            ignored = same & (target[:, None] != target[None, :])
            # after the scaling: the gradient of a scale times infinity is not a number
            by_audio = by_audio.masked_fill(ignored, float("-inf"))
            by_other = by_other.masked_fill(ignored.T, float("-inf"))
        return (F.cross_entropy(by_audio, target) + F.cross_entropy(by_other, target)) / 2


class CLAPPretraining(Stage):
    """Trains both encoders and the two temperatures; every rank's clips are each other's negatives."""

    name = "clap"
    makes = "clap"
    settings = ("conditioners",)
    networks = ("clap",)
    compiles = ("clap.model.text_model", "clap.model.audio_model")
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

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        # before the forward pass, not after the step: a checkpoint is written between the two
        self.clamp_logit_scales()
        audio = self.clap.encode_audio(batch["waveform"], self.sample_rate).embedding.squeeze(1)  # (B, D)
        text = self.clap.encode_text(batch["text"]).embedding.squeeze(1)  # (B, D)
        captions = self.gather(caption_ids(batch["text"], audio.device))  # (ranks * B,)
        same, model = captions[:, None] == captions[None, :], self.clap.model
        pairs = self.gather(audio), self.gather(text)  # (ranks * B, D) each
        return {"contrastive": contrastive_loss(*pairs, model.logit_scale_a, model.logit_scale_t, same)}

    def parts(self) -> dict[str, Any]:
        self.clamp_logit_scales()
        return self.clap.parts()
