"""The processes of one run, as torchrun or SLURM starts them: they share a file system, and rank 0 decides."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed

from audioldm2_pl.config import TrainerConfig


def start_ranks(config: TrainerConfig) -> None:
    """Joins the group of torchrun's processes, if it has started this one; Lightning goes on with the same group."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ or distributed.is_initialized():
        return
    on_gpu = config.accelerator in ("auto", "gpu") and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("nccl" if on_gpu else "gloo")


def is_rank_zero() -> bool:
    return not distributed.is_initialized() or distributed.get_rank() == 0


def first_on_rank_zero(work: Callable[[], Any]) -> None:
    """Rank 0 does it while the others wait; they then find it done and do what is left."""
    if is_rank_zero():
        work()
    if distributed.is_initialized():
        distributed.barrier()
        if not is_rank_zero():
            work()


def said_by_rank_zero(value: Any) -> Any:
    """Rank 0's value, on every rank: ranks whose file systems lag behind must not part ways."""
    if not distributed.is_initialized():
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]
