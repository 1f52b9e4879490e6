"""A loss that is no number, or a spike: training stops and says with which clips, or leaves the batch out."""

import json
import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, Literal

import lightning as L
import torch
from torch import Tensor

from audioldm2_pl.errors import UserError

OnNaN = Literal["stop", "skip"]
NUM_LOSSES, MIN_LOSSES = 100, 20  # whose median a spike is measured against; with fewer there is none


@dataclass
class Pending:
    """A batch whose loss nobody has looked at yet."""

    batch_idx: int
    keys: list[str]
    loss: Tensor  # a scalar
    optimizer: int  # number of the one that lowers it


class FiniteLoss(L.Callback):
    """Looks at every loss before its gradient is taken, on all ranks.

    "stop" raises UserError before a checkpoint holds the damage. "skip" takes no step of the optimisers, drops what
    gradients were accumulated, and writes the clips' keys to a file; the ranks stay in step. Both are for losses that
    are not finite and, with `spike_factor`, for those above so many times the median of the losses before.

    A look at a loss waits for the GPU. There "stop" looks at those of `every_batches` together, and before a
    checkpoint is saved.
    """

    at_once: ClassVar = ("cpu",)  # devices on which a look costs nothing

    def __init__(self, on_nan: OnNaN, path: Path, every_batches: int = 1, spike_factor: float | None = None):
        self.on_nan = on_nan
        self.path = path  # of the JSON lines of skipped batches
        self.every_batches = every_batches
        self.spike_factor = spike_factor
        self.losses: dict[int, deque[float]] = {}  # optimiser's number -> the latest of this rank
        self.pending: list[Pending] = []
        self.keys: list[str] = []  # of the batch
        self.skips = False  # the batch

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        pl_module.guard = lambda loss, optimizer=0: self.guarded(trainer, pl_module, loss, optimizer)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.keys, self.skips = list(batch["key"]), False

    def guarded(self, trainer: Any, pl_module: Any, loss: Tensor, optimizer: int) -> Tensor:
        """A scalar loss as it is where nothing is wrong with it on any rank."""
        self.pending.append(Pending(pl_module.batch_idx, self.keys, loss.detach(), optimizer))
        if self.on_nan == "stop":
            if loss.device.type in self.at_once:
                self.look(trainer, pl_module)
            return loss
        reason = self.fault(self.pending.pop(), float(loss.detach()))
        if not trainer.strategy.reduce_boolean_decision(reason is not None, all=False):
            return loss
        if reason and not self.skips:
            clips = f"clips {', '.join(shortened(self.keys))}"
            print(f"{pl_module.name}: batch {pl_module.batch_idx}: {reason}; skipped {clips}", flush=True)
            line = json.dumps({"batch": pl_module.batch_idx, "rank": trainer.global_rank, "keys": self.keys})
            with self.path.open("a", encoding="utf-8") as file:  # which other ranks may append to as well
                file.write(f"{line}\n")
        self.skips = True
        trained = [parameter for parameter in pl_module.parameters() if parameter.requires_grad]
        return 0.0 * torch.stack([parameter.sum() for parameter in trained]).sum()  # a gradient for DDP to wait for

    def fault(self, pending: Pending, loss: float) -> str | None:
        """What is wrong with a loss; None for one that is right, and is then one of those that others compare with."""
        if not math.isfinite(loss):
            return "the loss is not finite"
        before = self.losses.setdefault(pending.optimizer, deque(maxlen=NUM_LOSSES))
        if self.spike_factor is not None and len(before) >= MIN_LOSSES:
            usual = median(before)
            if abs(loss - usual) > (self.spike_factor - 1) * abs(usual):
                return f"the loss is {loss:.4g}, {usual:.4g} before (trainer.spike_factor={self.spike_factor:g})"
        before.append(loss)
        return None

    def look(self, trainer: Any, pl_module: Any) -> None:
        """Raises UserError, on all ranks, where something is wrong with one of the pending losses on any."""
        pending, self.pending = self.pending, []
        values = torch.stack([one.loss.float() for one in pending]).tolist() if pending else []  # in one copy
        found = [(one, reason) for one, loss in zip(pending, values) if (reason := self.fault(one, loss))]
        if not trainer.strategy.reduce_boolean_decision(bool(found), all=False):
            return
        batch_idx, clips, reason = pl_module.batch_idx, "another rank's clips", "the loss is not finite, or a spike"
        if found:
            batch_idx, reason = found[0][0].batch_idx, found[0][1]
            clips = f"clips {', '.join(shortened(found[0][0].keys))}"
        raise UserError(
            f"{pl_module.name}: batch {batch_idx}: {reason} ({clips}); lower the learning rate, set gradient_clip, or "
            "leave such batches out with trainer.on_nan=skip; the same command goes on from the last checkpoint"
        )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.pending and (batch_idx + 1) % self.every_batches == 0:
            self.look(trainer, pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.pending:
            self.look(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"losses": {number: list(losses) for number, losses in self.losses.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses = {number: deque(losses, NUM_LOSSES) for number, losses in state_dict["losses"].items()}

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        if self.skips:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None  # which every optimiser leaves alone


def shortened(keys: list[str]) -> list[str]:
    return keys if len(keys) <= 8 else [*keys[:8], "…"]
