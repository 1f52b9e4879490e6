"""Optimisers, the rates at which networks learn, and how these go over a stage's batches."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from audioldm2_pl.training.stage import Stage


@dataclass
class OptimizerConfig:
    """An optimiser and how its learning rate goes."""

    name: str = "adamw"  # adamw or adam
    learning_rate: float = 1e-4  # after the warm-up
    learning_rates: dict[str, float] = field(default_factory=dict)  # of networks by name, such as t5 or vae.encoder
    betas: tuple[float, float] = (0.9, 0.999)  # of Adam's two averages
    weight_decay: float = 1e-2  # adamw only
    warmup_batches: int = 0  # the rate rises linearly from 0 over these
    decay: str = "none"  # none, or cosine to 0 at the end of the budget


def by_learning_rate(stage: Stage, network: nn.Module, config: OptimizerConfig) -> dict[float, list[nn.Parameter]]:
    """What learns of a stage's network, by the rate after the warm-up.

    The rate of a network that is frozen, or that the experiment does without, has no effect.
    """
    own: dict[nn.Parameter, float] = {}
    for name, rate in config.learning_rates.items():
        if hasattr(stage, name.partition(".")[0]):
            own |= dict.fromkeys(stage.get_submodule(name).parameters(), rate)
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in network.parameters():
        if parameter.requires_grad:
            groups.setdefault(own.get(parameter, config.learning_rate), []).append(parameter)
    return groups


def make_optimizer(parameters: dict[float, list[nn.Parameter]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimiser that a config names, of parameters by learning rate; see `learning_rate_factor` for its course."""
    groups = [{"params": group, "lr": rate} for rate, group in parameters.items()]
    # else torch's choice, which goes with every precision
    fused = all(p.device.type == "cpu" for group in parameters.values() for p in group)
    common: dict[str, Any] = {"lr": config.learning_rate, "betas": tuple(config.betas), "fused": fused or None}
    if config.name == "adamw":
        return torch.optim.AdamW(groups, weight_decay=config.weight_decay, **common)
    if config.name == "adam":
        return torch.optim.Adam(groups, **common)
    raise ValueError(f"no optimizer {config.name!r}; there are adamw and adam")


def learning_rate_factor(config: OptimizerConfig, batch_idx: int, batches: int) -> float:
    """Share of the learning rate at a batch: linear warm-up, then constant or cosine decay."""
    warmup = min(1.0, (batch_idx + 1) / config.warmup_batches) if config.warmup_batches else 1.0
    if config.decay == "none":
        return warmup
    progress = max(0, batch_idx - config.warmup_batches) / max(1, batches - config.warmup_batches)
    return warmup * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
