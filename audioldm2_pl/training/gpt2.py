"""Stage `gpt2`: GPT-2 learns to generate a clip's LOA from its conditions, teacher-forced (paper §III-C)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm2_pl.conditioners.condition import Condition
from audioldm2_pl.conditioners.config import CONDITIONS, conditioner_class
from audioldm2_pl.fields import bounded
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.models.audiomae import loa_lengths, pool_loa
from audioldm2_pl.models.gpt2 import LOAGenerator, build_gpt2
from audioldm2_pl.models.projection import ConditionProjection
from audioldm2_pl.pipeline import AudioLDM2
from audioldm2_pl.training.audio_encoder import AudioEncoder
from audioldm2_pl.training.conditions import condition_widths, draw_events, drop_conditions, open_conditioners
from audioldm2_pl.training.ldm import generate_previews
from audioldm2_pl.training.optimizer import OptimizerConfig
from audioldm2_pl.training.stage import Stage, StageConfig

LOA_LOSSES = {"mse": F.mse_loss, "l1": F.l1_loss}  # the paper's, and the authors' code's


@dataclass
class GPT2TrainingConfig(StageConfig):
    """AdamW 1e-4 with linear warm-up and no decay (paper §IV-D)."""

    batches: int = 400_000
    batch_size: int = 16
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-4, warmup_batches=10_000)
    )
    loss_weights: dict[str, float | None] = bounded(lambda: {"loa": 1.0}, keys=("loa",), ge=0)
    loss: Literal["mse", "l1"] = "mse"  # distance to AudioMAE's LOA: mse as the paper, l1 as the authors' code


def build_loa_generator(experiment: Any, folder: ModelFolder) -> LOAGenerator:
    """GPT-2 and the projections of its conditions: new, or what the experiment starts from."""
    gpt2 = folder.start("language_model") or build_gpt2(experiment.gpt2, *loa_lengths(experiment.audiomae))
    projection = folder.start("projection_model")
    if projection is None:
        widths = condition_widths(experiment, folder)
        phonemes = experiment.conditioners.phonemes
        projection = ConditionProjection(
            {name: widths[name] for name in experiment.gpt2.conditions},
            experiment.gpt2.hidden_size,
            None if phonemes is None else phonemes.max_length,
        )
    return LOAGenerator(gpt2, projection, experiment.gpt2.condition_dropout)


def prompts_of(stage: Any, conditions: dict[str, Condition]) -> list[Condition]:
    """What GPT-2 reads of named conditions (B, L, D); in training some clips' are all empty, LOA alone goes on."""
    generator = stage.loa_generator
    read = {name: conditions[name] for name in generator.conditions}
    if stage.training and generator.condition_dropout > 0:
        rows = draw_events(generator.condition_dropout, len(next(iter(read.values()))), stage.shared)  # (B,)
        read = drop_conditions(read, dict.fromkeys(read, rows), stage.conditioners)
    return list(read.values())


def by_task(batch: dict[str, Any], encoder: Any) -> Iterator[tuple[Tensor, int]]:
    """Rows (b,) of a batch whose LOA has one length, and its λ: all, or clips without a transcript, then those with."""
    if encoder.speech_pooling is None:
        yield torch.arange(len(batch["transcript"])), encoder.pooling
        return
    speaks = torch.tensor([bool(transcript) for transcript in batch["transcript"]])
    for said in (False, True):
        rows = (speaks == said).nonzero()[:, 0]
        if len(rows):
            yield rows, encoder.speech_pooling if said else encoder.pooling


def loa_distance(loss: str, predicted: Tensor, loa: Tensor) -> Tensor:
    """Distance of LOA (B, L, D) of each clip, a mean over its vectors, so that long LOA weighs no more, (B,)."""
    return LOA_LOSSES[loss](predicted, loa, reduction="none").mean(dim=(1, 2))


class GPT2Finetuning(Stage):
    """Trains GPT-2, the projections, and the conditioners that GPT-2 reads and that are not frozen."""

    name = "gpt2"
    makes = "gpt2"
    settings = ("conditioners", "audiomae", "gpt2")
    reads_features = True
    networks = (*CONDITIONS, "loa_generator", "audiomae")
    compiles = ("loa_generator.gpt2.transformer",)
    adapts: ClassVar = {"gpt2": "loa_generator.gpt2"}
    needs_whole_clips = True

    def __init__(
        self,
        config: GPT2TrainingConfig,
        loa_generator: LOAGenerator,
        audio_encoder: AudioEncoder,
        conditioners: dict[str, Any],
    ):
        super().__init__(config)
        self.loa_generator = loa_generator
        self.add_inputs(audio_encoder, conditioners)
        self.averaged = ("loa_generator", *self.trained_conditioners)

    @classmethod
    def build(cls, experiment: Any, folder: ModelFolder) -> Stage:
        conditioners = open_conditioners(experiment, folder, experiment.gpt2.conditions)
        loa = experiment.audiomae
        audio_encoder = AudioEncoder(experiment.audio, None, folder.load("audiomae"), loa.pooling, loa.speech_pooling)
        loa_generator = build_loa_generator(experiment, folder)
        return cls(experiment.training.gpt2, loa_generator, audio_encoder, conditioners)

    @classmethod
    def reads(cls, experiment: Any) -> tuple[str, ...]:
        return (*(n for n in experiment.gpt2.conditions if conditioner_class(n).has_own_stage), "audiomae")

    @classmethod
    def writes(cls, experiment: Any) -> tuple[str, ...]:
        return ("gpt2", *experiment.trainable_conditioners(experiment.gpt2.conditions))

    def features(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """A batch's "loa" (B, L, D), or where speech has another λ "grid", and (B, D) of each conditioner of sound."""
        return self.from_stored(self.encode_sound(batch))

    def from_stored(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        encoder: Any = self.frozen["audio_encoder"]
        if encoder.speech_pooling is not None:
            return features
        loa = pool_loa(features["grid"], encoder.pooling)  # (B, L, D)
        return {"loa": loa, **{name: value for name, value in features.items() if name != "grid"}}

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        features, encoder = self.features_of(batch), self.frozen["audio_encoder"]
        prompts = prompts_of(self, self.encode(batch, features))
        found = []
        for rows, pooling in by_task(batch, encoder):
            loa = features["loa"] if "loa" in features else pool_loa(features["grid"][rows], pooling)
            predicted = self.loa_generator.teacher_forced([prompt[rows] for prompt in prompts], loa)  # (b, L, D)
            found.append(loa_distance(self.config.loss, predicted, loa))
        return {"loa": torch.cat(found).mean()}

    def parts(self) -> dict[str, Any]:
        return loa_parts(self)

    def preview(self, folder: ModelFolder, batch: dict[str, Any], experiment: Any) -> Tensor | None:
        return generate_previews(AudioLDM2(folder, self.device), batch, experiment)


def loa_parts(stage: Any) -> dict[str, Any]:
    """What the gpt2 and joint stages write of GPT-2 and of what it reads."""
    generator = stage.loa_generator
    return {"language_model": generator.gpt2, "projection_model": generator.projection, **stage.conditioner_parts()}
