"""A loss that is no number: training stops and says with which clips, or leaves the batch out."""

import json
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor

from audioldm2_pl.errors import UserError

OnNaN = Literal["stop", "skip"]


class FiniteLoss(L.Callback):
    """Looks at every loss before its gradient is taken, on all ranks.

    "stop" raises UserError before a checkpoint holds the damage. "skip" takes no step of the optimisers, drops what
    gradients were accumulated, and writes the clips' keys to a file; the ranks stay in step.
    """

    def __init__(self, on_nan: OnNaN, path: Path):
        self.on_nan = on_nan
        self.path = path  # of the JSON lines of skipped batches
        self.keys: list[str] = []  # of the batch
        self.skips = False  # the batch

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        pl_module.guard = lambda loss: self.guarded(trainer, pl_module, loss)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.keys, self.skips = list(batch["key"]), False

    def guarded(self, trainer: Any, pl_module: Any, loss: Tensor) -> Tensor:
        """A scalar loss as it is where it is finite on all ranks."""
        own = not bool(torch.isfinite(loss.detach()).all())
        if not trainer.strategy.reduce_boolean_decision(own, all=False):
            return loss
        place = f"{pl_module.name}: batch {pl_module.batch_idx}"
        named = self.keys if len(self.keys) <= 8 else [*self.keys[:8], "…"]
        clips = f"clips {', '.join(named)}" if own else "another rank's clips"
        if self.on_nan == "stop":
            raise UserError(
                f"{place}: the loss is not finite ({clips}); lower the learning rate, set gradient_clip, or leave such "
                "batches out with trainer.on_nan=skip; the same command goes on from the last checkpoint"
            )
        if own and not self.skips:
            print(f"{place}: the loss is not finite; skipped {clips}", flush=True)
            line = json.dumps({"batch": pl_module.batch_idx, "rank": trainer.global_rank, "keys": self.keys})
            with self.path.open("a", encoding="utf-8") as file:  # which other ranks may append to as well
                file.write(f"{line}\n")
        self.skips = True
        trained = [parameter for parameter in pl_module.parameters() if parameter.requires_grad]
        return 0.0 * torch.stack([parameter.sum() for parameter in trained]).sum()  # a gradient for DDP to wait for

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        if self.skips:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None  # which every optimiser leaves alone
