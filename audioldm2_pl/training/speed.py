"""What a training step takes and how large it is: runs/<name>/logs/<stage>/speed.csv, and the loggers.

clips_per_second           of all ranks, since the row before
data_wait                  share of that time in which the networks waited for the next batch
learning_rate/<optimizer>  of its first group
gradient_norm/<optimizer>  before clipping
memory_gib                 the most that the process has held so far; on a GPU, of the GPU's
peak_share                 of a GPU's peak operations a second: those of the stage's main network, both ways
"""

import time
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.throughput import get_available_flops

from audioldm2_pl.training.logging import CurveFile
from audioldm2_pl.training.records import peak_memory


class Speed(L.Callback):
    """Writes a row of each name every so many batches; gradients are measured of those batches alone."""

    def __init__(self, curves: CurveFile, every_batches: int, count_flops: Callable[[], int] = int):
        """`count_flops` gives the floating-point operations of a batch on one device, 0 where they are not known."""
        self.curves = curves
        self.every_batches = every_batches
        self.count_flops = count_flops
        self.seconds_at_peak = 0.0  # that a batch would take
        self.num_batches = 0  # since the last row
        self.norms: dict[str, float] = {}
        self.num_clips, self.waited = 0, 0.0  # since the last row
        self.since = self.last = 0.0  # time of the last row, of the last batch's end

    def is_due(self, batch_idx: int) -> bool:
        return batch_idx % self.every_batches == 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self.curves.begin(trainer.fit_loop.batch_idx + 1)
        if (peak := peak_flops(pl_module.device, trainer.precision)) is not None:
            self.seconds_at_peak = self.count_flops() / peak
        self.since = self.last = time.perf_counter()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.waited += time.perf_counter() - self.last
        self.num_clips += len(batch["key"]) * trainer.world_size
        self.num_batches += 1

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        if self.is_due(pl_module.batch_idx):
            name = self.name_of(trainer, pl_module, optimizer)
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            self.norms[f"gradient_norm/{name}"] = float(torch.nn.utils.get_total_norm(gradients))

    @staticmethod
    def name_of(trainer: L.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> str:
        plain = getattr(optimizer, "optimizer", optimizer)  # of Lightning's wrapper
        return dict(zip(map(id, trainer.optimizers), pl_module.optimized()))[id(plain)]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.last = time.perf_counter()
        if not self.is_due(batch_idx):
            return
        seconds = max(self.last - self.since, 1e-9)
        rates = {
            f"learning_rate/{name}": optimizer.param_groups[0]["lr"]
            for name, optimizer in zip(pl_module.optimized(), trainer.optimizers)
        }
        memory = peak_memory()
        values = {
            "clips_per_second": self.num_clips / seconds,
            "data_wait": self.waited / seconds,
            "memory_gib": memory.get("peak_gpu_memory_gib", memory["peak_memory_gib"]),
            **rates,
            **self.norms,
        }
        if self.seconds_at_peak:
            values["peak_share"] = self.num_batches * self.seconds_at_peak / seconds
        self.norms, self.num_clips, self.num_batches, self.waited, self.since = {}, 0, 0, 0.0, self.last
        if trainer.is_global_zero:
            self.curves.write(batch_idx, values)
            for logger in trainer.loggers:
                logger.log_metrics({f"speed/{name}": value for name, value in values.items()}, step=trainer.global_step)


def peak_flops(device: torch.device, precision: str) -> int | None:
    """Floating-point operations a second of a GPU at a precision, as its maker states them; None where not known."""
    if device.type != "cuda":
        return None
    return get_available_flops(device, torch.float32 if precision.startswith("32") else torch.bfloat16)
