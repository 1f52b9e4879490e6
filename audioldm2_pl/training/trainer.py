"""What of Lightning's trainer an experiment chooses."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from torch import distributed

from audioldm2_pl.fields import bounded
from audioldm2_pl.training.finite import OnNaN
from audioldm2_pl.training.stage import Stage

# Settings of Lightning's Trainer that an experiment may give. The others are ours, for a stage that ends early or reads
# other batches would be taken for a finished one. A strategy that splits weights (FSDP, DeepSpeed) is not tested.
LIGHTNING = (
    "benchmark",
    "detect_anomaly",
    "deterministic",
    "enable_model_summary",
    "inference_mode",
    "strategy",
    "sync_batchnorm",
)


@dataclass
class TrainerConfig:
    """Where and how loudly the stages run; `precision`, `on_nan`, `spike_factor` and `lightning` alone change
    what they compute.

    `compile` changes the order of its sums, as another number of threads does.
    """

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"] = "auto"
    devices: str = "auto"  # a count, ids as in 0,1, or auto for all that are there
    num_nodes: int = bounded(1, ge=1)  # machines of a torchrun or SLURM job
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"  # Lightning's names
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None = None  # torch.compile's mode; null: eager
    num_threads: int | None = bounded(None, ge=1, le=65_536)  # of the CPU; null leaves torch's choice
    parallel_stages: int = bounded(1, ge=1)  # of clap, audiomae, vae, vocoder at a time, on a CPU of several cores
    loggers: list[Literal["tensorboard", "wandb"]] = field(default_factory=list)  # beside the CSV
    log_every_batches: int = bounded(20, ge=1)  # losses, speed and gradients go to the logs this often
    on_nan: OnNaN = "stop"  # at a loss that is not finite, or "skip" the batch
    spike_factor: float | None = bounded(None, gt=1, le=1e9)  # a loss so many times the last 100's median counts, too
    validate_every_batches: int | None = bounded(None, ge=1)  # null never validates
    validation_batches: int = bounded(8, ge=1)  # batches of the test split in one validation
    sample_every_batches: int | None = bounded(None, ge=1)  # sounds of `sample_clips` clips this often; null never
    sample_clips: int = bounded(4, ge=1)  # of the test split, to runs/<name>/samples and to the loggers
    export_every_batches: int | None = bounded(None, ge=1)  # a model folder in runs/<name>/exports this often; or never
    keep_exports: int | None = bounded(None, ge=1)  # the latest of each stage; null keeps all
    keep_checkpoints: int = bounded(1, ge=1)  # the latest of a stage in training, for `train --resume N`
    progress_bar: bool = True  # a bar a stage on the terminal, elsewhere a line now and then
    profiler: Literal["simple", "advanced", "pytorch"] | None = None  # where time goes, to logs/<stage>/profile
    # besides, of Lightning's Trainer, as it calls them: {benchmark: true}, {strategy: fsdp}
    lightning: dict[str, Any] = bounded(dict, keys=LIGHTNING)


def profiler_of(config: TrainerConfig, folder: Path) -> Profiler | None:
    """Lightning's profiler, which writes to a folder: a table of its hooks, of all functions, or a trace of torch's."""
    kinds = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
    return None if config.profiler is None else kinds[config.profiler](dirpath=folder, filename="profile")


def strategy_of(config: TrainerConfig, manual: bool) -> str:
    """Lightning's choice, but for adversarial stages in several processes: each of two losses reaches other weights."""
    num_gpus = torch.cuda.device_count() if config.accelerator in ("auto", "gpu") else 0
    num_devices = int(config.devices) if config.devices.isdigit() else num_gpus
    several = num_devices > 1 or config.num_nodes > 1 or distributed.is_initialized()
    return "ddp_find_unused_parameters_true" if several and manual else "auto"


def compile_networks(stage: Stage, mode: str) -> None:
    """Compiles the stage's `compiles` in place, in one of torch.compile's modes; the weights keep their names.

    LOA of another λ, and so of another length, is another graph at first, then one graph of any length.
    """
    for path in stage.compiles:
        stage.get_submodule(path).compile(mode=mode)
