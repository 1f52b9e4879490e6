"""Stage `audiomae`: AudioMAE learns to reconstruct masked patches of sound (paper §III-B1)."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from audioldm2_pl.audio import Fbank
from audioldm2_pl.fields import bounded
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.models.audiomae import AudioMAE
from audioldm2_pl.training.optimizer import OptimizerConfig
from audioldm2_pl.training.stage import Stage, StageConfig


@dataclass
class AudioMAETrainingConfig(StageConfig):
    """AdamW with MAE's betas; the batch sizes and rates of AudioMAE's pretraining on AudioSet."""

    batches: int = 126_000
    batch_size: int = 64
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=2e-4, betas=(0.9, 0.95), weight_decay=1e-4, warmup_batches=12_000, decay="cosine"
        )
    )
    loss_weights: dict[str, float | None] = bounded(lambda: {"reconstruction": 1.0}, keys=("reconstruction",), ge=0)


class AudioMAEPretraining(Stage):
    """Trains AudioMAE on the log filter banks of whole clips."""

    name = "audiomae"
    makes = "audiomae"
    settings = ("audiomae",)
    networks = ("audiomae",)
    compiles = ("audiomae",)
    averaged = ("audiomae",)
    needs_whole_clips = True

    def __init__(self, config: AudioMAETrainingConfig, audiomae: AudioMAE, fbank: Fbank):
        super().__init__(config)
        self.audiomae = audiomae
        self.freeze(fbank=fbank)

    @classmethod
    def build(cls, experiment: Any, folder: ModelFolder) -> Stage:
        audiomae = folder.start("audiomae") or AudioMAE(experiment.audiomae)
        return cls(experiment.training.audiomae, audiomae, Fbank(experiment.audio))

    def features(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"fbank": self.frozen["fbank"](batch["waveform"])}  # (B, 1, frames, bins)

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        fbank = self.features_of(batch)["fbank"]  # (B, 1, frames, bins)
        return {"reconstruction": self.audiomae(fbank, self.shared.on(fbank.device))}

    def parts(self) -> dict[str, Any]:
        return {"audiomae": self.audiomae}

    def example(self, experiment: Any) -> tuple[Any, ...] | None:
        audiomae = experiment.audiomae
        return self.audiomae, torch.empty(self.config.batch_size, 1, audiomae.num_frames, audiomae.num_bins)
