"""What a stage is conditioned on: which conditioners it opens, which of them train, how a batch is encoded.

A conditioner that is pretrained, given by `from:`, or has a stage of its own is frozen. Any other trains in every
stage that reads it: the diffusion loss alone asks little of a text where AudioMAE's LOA tells the rest, and not the
order of events.

Letters: B batch, L vectors, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from audioldm2_pl.conditioners.condition import Condition, Conditioner
from audioldm2_pl.conditioners.config import ConditionersConfig, conditioner_class
from audioldm2_pl.conditioners.phonemes import BESIDE_T5
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.models.diffusion import DiffusionConfig
from audioldm2_pl.seeds import SharedRandom, draw_rows


def is_frozen(conditioners: ConditionersConfig, folder: ModelFolder, name: str) -> bool:
    """Whether a conditioner keeps its weights in the stages that read it."""
    pretrained = getattr(conditioners, name).pretrained is not None
    return pretrained or name in folder.given or conditioner_class(name).has_own_stage


def open_conditioners(
    experiment: Any, folder: ModelFolder, names: Iterable[str], afresh: bool = False
) -> dict[str, Conditioner]:
    """Name -> conditioner: the model folder's; one that trains is new where it has none there, or `afresh` and
    `start_from` names no weights of it."""
    opened = {}
    for name in names:
        config = getattr(experiment.conditioners, name)
        frozen = is_frozen(experiment.conditioners, folder, name)
        if frozen or (folder.has_conditioner(name) and (not afresh or name in folder.started)):
            conditioner: Any = folder.conditioner(name)
        else:
            conditioner = config.build()
            if name == "phonemes" and "t5" in experiment.condition_names:
                conditioner.subfolders = BESIDE_T5
        if name in ("clap", "image"):
            conditioner.reads, conditioner.empty_probability = config.hears, config.empty_probability
        opened[name] = conditioner.requires_grad_(False) if frozen else conditioner
    return opened


def condition_widths(experiment: Any, folder: ModelFolder) -> dict[str, int]:
    """Name -> channels of each condition of the experiment: the model folder's, or what its config will build."""
    widths = {"loa": experiment.audiomae.embed_dim}
    for name in experiment.condition_names:
        saved = folder.conditioner_config(name)
        widths[name] = saved.get(conditioner_class(name).width_key, getattr(experiment.conditioners, name).width)
    return widths


def encode_conditions(
    conditioners: Mapping[str, Any], batch: Mapping[str, Any], random: SharedRandom | None = None
) -> dict[str, Condition]:
    """Name -> condition (B, L, D) of a batch.

    With `random`, as in training, some clips' gives way to the conditioner's `empty` where its config asks for it.
    """
    encoded = {}
    for name, conditioner in conditioners.items():
        condition = conditioner.encode(batch)
        probability = getattr(conditioner, "empty_probability", 0.0)
        if random is not None and probability > 0:
            condition = condition.where(draw_events(probability, len(condition), random), conditioner.empty())
        encoded[name] = condition
    return encoded


def draw_events(probability: float, batch_size: int, random: SharedRandom) -> Tensor:
    """(B,) bool, each true with the probability."""
    generator = random.on("cpu")
    return draw_rows(lambda n: torch.rand(n, generator=generator), batch_size) < probability


def sound_features(conditioners: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Outputs (B, D) of the frozen conditioners that read the sound, by the names under which they are stored."""
    reading = [c for c in conditioners.values() if c.reads == "waveform"]
    return {conditioner.stored[0]: conditioner.encode(batch).embedding[:, 0] for conditioner in reading}


def sound_names(conditioners: dict[str, Any]) -> tuple[str, ...]:
    """Names of the stored features of the conditioners that read the sound."""
    return tuple(c.stored[0] for c in conditioners.values() if c.reads == "waveform")


def draw_dropped(
    config: DiffusionConfig, names: Iterable[str], batch_size: int, random: SharedRandom
) -> dict[str, Tensor]:
    """Condition's name -> (B,) bool: which clips are trained without it, for guidance (paper §III-D)."""
    dropped = draw_together(config, list(names), batch_size, random)
    for name, probability in config.dropout_alone.items():
        if name in dropped and probability > 0:
            dropped[name] = dropped[name] | draw_events(probability, batch_size, random)
    return dropped


def draw_together(
    config: DiffusionConfig, names: list[str], batch_size: int, random: SharedRandom
) -> dict[str, Tensor]:
    """As `draw_dropped`, by `condition_dropout` and its unit."""
    generator = random.on("cpu")
    if config.dropout_unit == "batch":
        draws = torch.rand(1, generator=generator).expand(batch_size)
        return dict.fromkeys(names, draws < config.condition_dropout)
    if config.dropout_unit == "sample":
        return dict.fromkeys(names, draw_events(config.condition_dropout, batch_size, random))
    return {name: draw_events(config.condition_dropout, batch_size, random) for name in names}


def drop_conditions(
    conditions: Mapping[str, Condition], dropped: Mapping[str, Tensor], conditioners: Mapping[str, Any]
) -> dict[str, Condition]:
    """Conditions (B, L, D) with each conditioner's `empty` in the place of dropped clips (B,); of "loa" zeros."""
    left = {}
    for name, condition in conditions.items():
        rows = dropped.get(name)
        if name == "loa" and rows is not None:
            embedding = condition.embedding.masked_fill(rows.to(condition.mask.device)[:, None, None], 0.0)
            left[name] = Condition(embedding, condition.mask, condition.is_full)
        elif rows is not None and rows.any():
            left[name] = condition.where(rows, conditioners[name].empty())
        else:
            left[name] = condition
    return left
