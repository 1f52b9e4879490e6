"""A loss that is no number: training stops and says with which clips, or leaves the batch out."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning as L
import torch
from torch import Tensor

from audioldm2_pl.errors import UserError

OnNaN = Literal["stop", "skip"]


@dataclass
class Pending:
    """A batch whose loss nobody has looked at yet."""

    batch_idx: int
    keys: list[str]
    is_finite: Tensor  # a scalar on the loss's device


class FiniteLoss(L.Callback):
    """Looks at every loss before its gradient is taken, on all ranks.

    "stop" raises UserError before a checkpoint holds the damage. "skip" takes no step of the optimisers, drops what
    gradients were accumulated, and writes the clips' keys to a file; the ranks stay in step.

    A look at a loss waits for the GPU. There "stop" looks at those of `every_batches` together, and before a
    checkpoint is saved.
    """

    at_once: ClassVar = ("cpu",)  # devices on which a look costs nothing

    def __init__(self, on_nan: OnNaN, path: Path, every_batches: int = 1):
        self.on_nan = on_nan
        self.path = path  # of the JSON lines of skipped batches
        self.every_batches = every_batches
        self.pending: list[Pending] = []
        self.keys: list[str] = []  # of the batch
        self.skips = False  # the batch

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        pl_module.guard = lambda loss: self.guarded(trainer, pl_module, loss)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.keys, self.skips = list(batch["key"]), False

    def guarded(self, trainer: Any, pl_module: Any, loss: Tensor) -> Tensor:
        """A scalar loss as it is where it is finite on all ranks."""
        self.pending.append(Pending(pl_module.batch_idx, self.keys, torch.isfinite(loss.detach()).all()))
        if self.on_nan == "stop":
            if loss.device.type in self.at_once:
                self.look(trainer, pl_module)
            return loss
        own = not bool(self.pending.pop().is_finite)
        if not trainer.strategy.reduce_boolean_decision(own, all=False):
            return loss
        if own and not self.skips:
            clips = f"clips {', '.join(shortened(self.keys))}"
            print(f"{pl_module.name}: batch {pl_module.batch_idx}: the loss is not finite; skipped {clips}", flush=True)
            line = json.dumps({"batch": pl_module.batch_idx, "rank": trainer.global_rank, "keys": self.keys})
            with self.path.open("a", encoding="utf-8") as file:  # which other ranks may append to as well
                file.write(f"{line}\n")
        self.skips = True
        trained = [parameter for parameter in pl_module.parameters() if parameter.requires_grad]
        return 0.0 * torch.stack([parameter.sum() for parameter in trained]).sum()  # a gradient for DDP to wait for

    def look(self, trainer: Any, pl_module: Any) -> None:
        """Raises UserError, on all ranks, where one of the pending losses is not finite on any."""
        pending, self.pending = self.pending, []
        bad = [one for one, is_finite in zip(pending, all_read(pending)) if not is_finite]
        if not trainer.strategy.reduce_boolean_decision(bool(bad), all=False):
            return
        batch_idx = bad[0].batch_idx if bad else pl_module.batch_idx
        clips = f"clips {', '.join(shortened(bad[0].keys))}" if bad else "another rank's clips"
        raise UserError(
            f"{pl_module.name}: batch {batch_idx}: the loss is not finite ({clips}); lower the learning rate, set "
            "gradient_clip, or leave such batches out with trainer.on_nan=skip; the same command goes on from the last "
            "checkpoint"
        )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.pending and (batch_idx + 1) % self.every_batches == 0:
            self.look(trainer, pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.pending:
            self.look(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        if self.skips:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None  # which every optimiser leaves alone


def all_read(pending: list[Pending]) -> list[bool]:
    """Their flags, which come from the device in one copy."""
    return torch.stack([one.is_finite for one in pending]).tolist() if pending else []


def shortened(keys: list[str]) -> list[str]:
    return keys if len(keys) <= 8 else [*keys[:8], "…"]
