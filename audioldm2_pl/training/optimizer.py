"""Optimisers, and the learning rates of networks over a stage's batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from audioldm2_pl.fields import bounded


@dataclass
class OptimizerConfig:
    """An optimiser and the schedule of its learning rate."""

    name: Literal["adamw", "adam"] = "adamw"
    learning_rate: float = bounded(1e-4, ge=0, le=1)  # after the warm-up
    learning_rates: dict[str, float | None] = bounded(dict, ge=0, le=1)  # of networks by name, such as vae.encoder
    betas: tuple[float, float] = bounded((0.9, 0.999), ge=0, lt=1)  # of Adam's two averages
    weight_decay: float = bounded(1e-2, ge=0)  # adamw only
    warmup_batches: int = bounded(0, ge=0)  # the rate rises linearly from 0 over these
    decay: Literal["none", "linear", "cosine"] = "none"  # to 0 at the end of the budget

    def __post_init__(self) -> None:
        self.learning_rates = {name: rate for name, rate in self.learning_rates.items() if rate is not None}


def by_learning_rate(stage: nn.Module, network: nn.Module, config: OptimizerConfig) -> dict[float, list[nn.Parameter]]:
    """The parameters of a stage's network that learn, by the rate after the warm-up.

    The rate of a network that is frozen, or that the experiment does without, has no effect.
    """
    own: dict[nn.Parameter, Any] = {}
    for name, rate in config.learning_rates.items():
        if hasattr(stage, name.partition(".")[0]):
            own |= dict.fromkeys(stage.get_submodule(name).parameters(), rate)
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in network.parameters():
        if parameter.requires_grad:
            groups.setdefault(own.get(parameter, config.learning_rate), []).append(parameter)
    return groups


def make_optimizer(
    parameters: dict[float, list[nn.Parameter]], config: OptimizerConfig, scales_gradients: bool = False
) -> torch.optim.Optimizer:
    """The optimiser of a config, for parameters by learning rate; `learning_rate_factor` is the schedule.

    It is torch's fused one, but for precision 16-mixed, whose scaled gradients (`scales_gradients`) Lightning clips
    only of the others.
    """
    devices = {parameter.device.type for group in parameters.values() for parameter in group}
    fused = not scales_gradients and devices <= {"cpu", "cuda"}
    groups = [{"params": group, "lr": rate} for rate, group in parameters.items()]
    common: dict[str, Any] = {"lr": config.learning_rate, "betas": tuple(config.betas), "fused": fused or None}
    if config.name == "adamw":
        optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, **common)
    else:
        optimizer = torch.optim.Adam(groups, **common)
    if fused:  # without a gradient scaler there is nothing for it to unscale, and Lightning may clip
        optimizer._step_supports_amp_scaling = False
    return optimizer


def learning_rate_factor(config: OptimizerConfig, batch_idx: int, batches: int) -> float:
    """Share of the learning rate at a batch: linear warm-up, then constant, linear or cosine decay."""
    warmup = min(1.0, (batch_idx + 1) / config.warmup_batches) if config.warmup_batches else 1.0
    if config.decay == "none":
        return warmup
    progress = max(0, batch_idx - config.warmup_batches) / max(1, batches - config.warmup_batches)
    if config.decay == "linear":
        return warmup * (1.0 - min(1.0, progress))
    return warmup * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
