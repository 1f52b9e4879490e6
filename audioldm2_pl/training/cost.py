"""What a stage costs: processor, GPU and energy, in runs/<name>/logs/<stage>/cost.csv, the loggers and its record.

cpu_cores         cores that this process has kept busy, without the loader's workers
gpu_utilization   share of the time in which the GPU ran something, as nvidia-smi has it
gpu_memory_gib    of the GPU in use, by whomever
gpu_power_watts   that the GPU draws
"""

import time
from typing import Any

import lightning as L
import torch

from audioldm2_pl.training.logging import CurveFile

SAMPLE_SECONDS = 1.0  # NVML's own period; more often gives the same numbers again
JOULES_PER_KWH = 3.6e6


def read_gpu(device: torch.device) -> dict[str, float]:
    """What NVML says of a CUDA device now; empty of another device, and where pynvml is not installed."""
    if device.type != "cuda":
        return {}
    try:
        return {
            "gpu_utilization": torch.cuda.utilization(device) / 100,
            "gpu_memory_gib": torch.cuda.device_memory_used(device) / 2**30,
            "gpu_power_watts": torch.cuda.power_draw(device) / 1000,
        }
    except (ImportError, RuntimeError):  # no pynvml, no driver; NVML's own errors are RuntimeErrors in torch
        return {}
    except Exception as error:
        if type(error).__module__.startswith("pynvml"):  # a virtual GPU that hides its power
            return {}
        raise


class Cost(L.Callback):
    """Writes a row of each name every so many batches; the GPU is asked once a second, its power added up."""

    def __init__(self, curves: CurveFile, every_batches: int):
        self.curves = curves
        self.every_batches = every_batches
        self.spent = dict.fromkeys(("seconds", "cpu_seconds", "gpu_seconds", "gpu_busy_seconds", "gpu_joules"), 0.0)
        self.row_began = dict(self.spent)
        self.gpu: dict[str, float] = {}  # of the last look
        self.wall = self.cpu = self.looked = 0.0  # times of the last batch's end, and of the last look
        self.num_ranks = 1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self.curves.begin(trainer.fit_loop.batch_idx + 1)
        self.num_ranks = trainer.world_size
        self.wall, self.cpu, self.looked = time.perf_counter(), time.process_time(), time.perf_counter()
        self.row_began = dict(self.spent)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        self.spent["seconds"] += wall - self.wall
        self.spent["cpu_seconds"] += cpu - self.cpu
        self.wall, self.cpu = wall, cpu
        due = batch_idx % self.every_batches == 0
        if due or wall - self.looked >= SAMPLE_SECONDS:
            self.look(pl_module.device, wall)
        if due and trainer.is_global_zero:
            self.write(trainer, batch_idx)

    def look(self, device: torch.device, now: float) -> None:
        """The GPU's state, which is taken for that of the time since the last look."""
        if found := read_gpu(device):
            seconds = now - self.looked
            self.spent["gpu_seconds"] += seconds
            self.spent["gpu_busy_seconds"] += seconds * found["gpu_utilization"]
            self.spent["gpu_joules"] += seconds * found["gpu_power_watts"]
        self.gpu, self.looked = found, now

    def write(self, trainer: L.Trainer, batch_idx: int) -> None:
        since = {name: value - self.row_began[name] for name, value in self.spent.items()}
        values = {"cpu_cores": since["cpu_seconds"] / max(since["seconds"], 1e-9), **self.gpu}
        self.row_began = dict(self.spent)
        self.curves.write(batch_idx, values)
        for logger in trainer.loggers:
            logger.log_metrics({f"cost/{name}": value for name, value in values.items()}, step=trainer.global_step)

    def summary(self) -> dict[str, float]:
        """Of the whole stage, resumed or not, for its record; of the GPU where one was asked.

        The energy is that of the first rank's GPU times the ranks.
        """
        if not self.spent["seconds"]:
            return {}
        found = {"cpu_cores": self.spent["cpu_seconds"] / self.spent["seconds"]}
        if seconds := self.spent["gpu_seconds"]:
            found["gpu_utilization"] = self.spent["gpu_busy_seconds"] / seconds
            found["gpu_power_watts"] = self.spent["gpu_joules"] / seconds
            found["gpu_energy_kwh"] = self.spent["gpu_joules"] * self.num_ranks / JOULES_PER_KWH
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"spent": dict(self.spent), "num_ranks": self.num_ranks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.spent.update(state_dict["spent"])
        self.num_ranks = state_dict["num_ranks"]
