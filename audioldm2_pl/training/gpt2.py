"""Stage `gpt2`: GPT-2 learns to say a clip's LOA from its caption, teacher-forced (paper §III-C)."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm2_pl.audio import Fbank
from audioldm2_pl.conditioners.clap import single
from audioldm2_pl.conditioners.condition import Condition
from audioldm2_pl.conditioners.phonemes import PhonemeEncoder
from audioldm2_pl.fields import bounded
from audioldm2_pl.models.audiomae import num_loa_vectors, pool_loa
from audioldm2_pl.models.gpt2 import LOAGenerator, build_gpt2, build_projection
from audioldm2_pl.training.ldm import stored_words
from audioldm2_pl.training.optimizer import OptimizerConfig
from audioldm2_pl.training.stage import Stage, StageConfig
from audioldm2_pl.training.words import WORDS, learning_words, take_words, words_parts

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


def prompt_conditions(stage: Any, batch: dict[str, Any], features: dict[str, Tensor]) -> list[Condition]:
    """GPT-2's two conditions: CLAP and T5 of the captions, or for speech CLAP of the sound and phonemes, which learn.

    Speech corpora have transcripts but no captions: in training CLAP hears the clip, in generation it reads a prompt.
    """
    if stage.experiment.is_speech:
        return [single(features["clap"]), stage.phonemes(batch["transcript"])]
    with torch.no_grad():
        stored = "clap_text" in features
        clap = single(features["clap_text"]) if stored else stage.frozen["clap"].encode_text(batch["text"])
    words = stored_words(features)
    return [clap, stage.network("t5")(batch["text"]) if words is None else words]


def clap_features(stage: Any, waveform: Tensor) -> dict[str, Tensor]:
    """CLAP's embedding of the sound (B, D) where speech is trained, nothing elsewhere."""
    if not stage.experiment.is_speech:
        return {}
    sound = stage.frozen["clap"].encode_audio(waveform, stage.experiment.audio.sample_rate)
    return {"clap": sound.embedding[:, 0]}


def loa_parts(stage: Any) -> dict[str, Any]:
    """What the gpt2 and joint stages write of GPT-2 and of what it reads."""
    generator = stage.loa_generator
    return {"language_model": generator.gpt2, "projection_model": generator.projection, **words_parts(stage)}


class GPT2Finetuning(Stage):
    name = "gpt2"
    networks = (*WORDS, "loa_generator", "audiomae", "clap")

    def __init__(self, experiment, folder):
        super().__init__(experiment, folder)
        clap, words = folder.clap(), take_words(self)
        gpt2 = folder.start("language_model") or build_gpt2(experiment.gpt2, num_loa_vectors(experiment.audiomae))
        projection = folder.start("projection_model") or build_projection(
            [clap.embedding_dim, words.embedding_dim],
            experiment.gpt2,
            words.max_length if isinstance(words, PhonemeEncoder) else None,
        )
        self.loa_generator = LOAGenerator(gpt2, projection)
        self.freeze(clap=clap, audiomae=folder.load("audiomae"), fbank=Fbank(experiment.audio))
        self.averaged = ("loa_generator", *learning_words(self))
        self.encoded = ("grid", "clap") if experiment.is_speech else ("grid",)

    def features(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        audiomae = self.frozen["audiomae"]
        grid = audiomae.features(self.frozen["fbank"](batch["waveform"]))  # type: ignore[operator]
        return self.of_stored({"grid": grid, **clap_features(self, batch["waveform"])})

    def of_stored(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        loa = pool_loa(features["grid"], self.experiment.audiomae.pooling)  # (B, L, D)
        return {"loa": loa, **{name: value for name, value in features.items() if name != "grid"}}

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        features = self.features_of(batch)
        predicted = self.loa_generator.teacher_forced(prompt_conditions(self, batch, features), features["loa"])
        return {"loa": LOA_LOSSES[self.config.loss](predicted, features["loa"])}

    def parts(self) -> dict[str, Any]:
        return loa_parts(self)
