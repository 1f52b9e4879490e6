"""Where a run is computed: its devices and its processes, as torchrun, srun or Lightning starts them.

The processes share a file system, and rank 0 decides.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import distributed

from audioldm2_pl.errors import UserError
from audioldm2_pl.training.checkpoint import WholeCheckpoints
from audioldm2_pl.training.trainer import TrainerConfig

# what gloo, NCCL and the store of addresses say of a process that no longer answers
GONE = re.compile(r"gloo|NCCL|TCPStore|Broken pipe|Connection (reset|refused|closed|was likely closed)|Socket Timeout")


def cluster_environment() -> ClusterEnvironment | None:
    """Torchrun's or srun's environment; None where neither has started this process.

    Raises UserError where the job's settings do not go together.
    """
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    try:
        # a job that SLURM requeues resumes from our own checkpoint; Lightning's would be taken for any stage's
        return SLURMEnvironment(auto_requeue=False) if SLURMEnvironment.detect() else None
    except RuntimeError as error:
        raise UserError(f"SLURM: {error}") from None


def start_ranks(config: TrainerConfig) -> None:
    """Joins the group of processes that torchrun or srun has started; Lightning uses the same group."""
    environment = cluster_environment()
    if environment is None or environment.world_size() == 1 or distributed.is_initialized():
        return
    on_gpu = config.accelerator in ("auto", "gpu") and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(environment.local_rank())
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
    backend = "nccl" if on_gpu else "gloo"
    distributed.init_process_group(backend, rank=environment.global_rank(), world_size=environment.world_size())


@contextmanager
def lost_ranks_told() -> Iterator[None]:
    """UserError in the place of a backend's traceback where another rank has ended without a word."""
    try:
        yield
    except RuntimeError as error:
        if not (distributed.is_initialized() and GONE.search(str(error))):
            raise
        raise UserError(
            "another rank has ended, killed or without memory perhaps; start all ranks again with the same command, "
            "which goes on from the last checkpoint"
        ) from None


def build_trainer(config: TrainerConfig, **settings: Any) -> L.Trainer:
    """Lightning's trainer on the config's devices, without what the stages do themselves.

    Raises UserError where this machine or job has no such devices.
    """
    environment = cluster_environment()
    try:
        trainer = L.Trainer(
            accelerator=config.accelerator,
            devices=int(config.devices) if config.devices.isdigit() else config.devices,
            num_nodes=config.num_nodes,
            precision=config.precision,  # type: ignore[arg-type]
            plugins=[*([environment] if environment else []), WholeCheckpoints()],
            enable_progress_bar=False,  # StageProgress is there
            enable_checkpointing=False,
            use_distributed_sampler=False,
            **{"enable_model_summary": False, **settings, **config.lightning},
        )
        if environment:
            environment.validate_settings(trainer.num_devices, trainer.num_nodes)
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from None
    return trainer


def is_rank_zero() -> bool:
    if distributed.is_initialized():
        return distributed.get_rank() == 0
    return int(os.environ.get("LOCAL_RANK", "0")) == 0  # of the processes that Lightning starts, before they join


def rank_zero_first(work: Callable[[], Any]) -> None:
    """Rank 0 does the work while the others wait; they then find it done and do the rest."""
    if is_rank_zero():
        work()
    if distributed.is_initialized():
        distributed.barrier()
        if not is_rank_zero():
            work()


def broadcast_from_rank_zero(value: Any) -> Any:
    """Rank 0's value, on every rank: ranks whose file systems lag behind must not diverge."""
    if not distributed.is_initialized():
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]
