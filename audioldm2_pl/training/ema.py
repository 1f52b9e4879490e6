"""Exponential moving average of a stage's weights: validated and saved instead of the last ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor

from audioldm2_pl.training.stage import Stage


class EMA(L.Callback):
    """Exponential moving average of a stage's `averaged` networks over the optimiser's steps n.

    The decay d warms up: min(d, (1 + n) / (10 + n)).
    """

    def __init__(self, decay: float):
        self.decay = decay
        self.num_updates = 0
        self.average: dict[str, Tensor] = {}
        self.pairs: list[list[Tensor]] = [[], []]  # the averages and the weights, in one order

    def weights(self, stage: Stage) -> dict[str, Tensor]:
        """The parameters (...) that learn, by network and name."""
        return {
            f"{name}.{key}": parameter
            for name in stage.averaged
            for key, parameter in getattr(stage, name).named_parameters()
            if parameter.requires_grad
        }

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        weights = self.weights(pl_module)  # type: ignore[arg-type]
        source = self.average or weights
        self.average = {name: source[name].detach().clone().to(w.device) for name, w in weights.items()}
        self.pairs = [[self.average[name] for name in weights], [w.detach() for w in weights.values()]]

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not pl_module.steps_after(batch_idx):
            return
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        torch._foreach_lerp_(self.pairs[0], self.pairs[1], 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def swap(self, stage: Stage) -> None:
        """Exchanges the averaged weights and the networks' own."""
        for name, weight in self.weights(stage).items():
            last = weight.detach().clone()
            weight.copy_(self.average[name])
            self.average[name].copy_(last)

    @contextmanager
    def applied(self, stage: Stage) -> Iterator[None]:
        """A context in which the networks have the averaged weights."""
        self.swap(stage)
        try:
            yield
        finally:
            self.swap(stage)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.swap(pl_module)  # type: ignore[arg-type]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.swap(pl_module)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        return {"num_updates": self.num_updates, "average": self.average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.num_updates, self.average = state_dict["num_updates"], state_dict["average"]
