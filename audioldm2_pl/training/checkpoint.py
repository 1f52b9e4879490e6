"""The checkpoint that a broken-off stage resumes from: when it is saved, and whether it still fits the experiment."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from audioldm2_pl.atomic import written_whole
from audioldm2_pl.config import ExperimentConfig, to_plain
from audioldm2_pl.errors import Interrupted, UserError, reason_of
from audioldm2_pl.training.interruption import Interruption
from audioldm2_pl.training.stage import Stage

Changes = dict[str, list[Any]]  # dotted key -> [value before, value now]
MAPPINGS = ("learning_rates", "loss_weights", "dropout_alone")  # fields whose keys the user chooses


class WholeCheckpoints(TorchCheckpointIO):
    """Writes beside the checkpoint, then renames; Lightning's own goes through the temporary folder."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with written_whole(Path(path)) as part:
            torch.save(checkpoint, part)


class Resumable(L.Callback):
    """Saves the checkpoint, with the stage's recipe and the time spent, and ends the stage where a signal asks for it.

    Only after a step of the optimisers: gradients that are being accumulated are in no checkpoint.
    """

    def __init__(self, path: Path, every_batches: int, recipe: dict[str, Any], interruption: Interruption):
        self.path = path
        self.every_batches = every_batches
        self.recipe = recipe
        self.interruption = interruption
        self.num_batches = 0  # trained
        self.ends = False  # whether a signal has come, to any rank
        self.seconds = 0.0  # spent by earlier runs of this stage
        self.started = time.perf_counter()
        self.changes: list[dict[str, Any]] = []  # settings that were others when the stage was resumed

    def elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self.started

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.interruption.install()  # Lightning has put handlers of its own there
        self.interruption.deferred = True

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not pl_module.steps_after(batch_idx):
            return
        due = self.num_batches // self.every_batches < (batch_idx + 1) // self.every_batches
        self.num_batches = batch_idx + 1
        self.ends = trainer.strategy.reduce_boolean_decision(self.interruption.signum is not None, all=False)
        is_last = self.num_batches == pl_module.config.batches
        if due or self.ends or is_last:
            trainer.save_checkpoint(self.path)
        if self.ends and is_last:
            self.end(pl_module.name)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.ends:  # only now: what the last batch is to log and to validate is done
            self.end(pl_module.name)

    def end(self, name: str) -> None:
        raise Interrupted(self.interruption.signum or signal.SIGTERM, f"{name}: batch {self.num_batches} is saved")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.interruption.deferred = False

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.interruption.deferred = False

    def state_dict(self) -> dict[str, Any]:
        names = ("num_batches", "recipe", "changes")
        return {"seconds": self.elapsed(), **{name: getattr(self, name) for name in names}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]
        self.num_batches = state_dict["num_batches"]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Raises UserError where a checkpoint is damaged, or none of ours."""
    try:
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        missing = {"state_dict", "optimizer_states", "loops", "callbacks", "AudioShards"} - checkpoint.keys()
    except Exception as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)}); delete it to train from the start") from None
    if missing:
        raise UserError(f"{path}: no checkpoint of a stage; delete it to train from the start")
    return checkpoint


def check_resumable(checkpoint: dict[str, Any], path: Path, stage: Stage, recipe: dict[str, Any]) -> Changes:
    """The settings that are others than when the checkpoint was saved; the stage goes on with those of the experiment.

    Raises UserError where it cannot.
    """
    changes = changed_settings(stage.name, checkpoint["callbacks"].get("Resumable", {}).get("recipe", {}), recipe)
    saved, own = checkpoint["state_dict"], stage.state_dict()
    sizes = [{name: list(tensor.shape) for name, tensor in weights.items()} for weights in (saved, own)]
    others = [name for name in {**saved, **own} if sizes[0].get(name) != sizes[1].get(name)]
    if others:
        because = f" since {describe_changes(changes)}" if changes else ""
        raise UserError(
            f"{path}: its networks are others ({others[0]}){because}; change the settings back, or delete it to train "
            f"{stage.name} from the start"
        )
    num_batches = checkpoint["AudioShards"]["batches"]
    if num_batches > stage.config.batches:
        raise UserError(
            f"{path}: has trained {num_batches} batches, more than training.{stage.name}.batches="
            f"{stage.config.batches}; raise that, or delete the file to train {stage.name} from the start"
        )
    return changes


def changed_settings(name: str, before: dict[str, Any], now: dict[str, Any]) -> Changes:
    """What differs between two recipes of a stage.

    A field that the earlier one lacks is of a later version of this program: it had the default. What the later one
    lacks says nothing any more.
    """
    defaults = to_plain(ExperimentConfig())
    return changed_fields(before, now, {**defaults, "training": defaults["training"][name]})


def changed_fields(before: dict[str, Any], now: dict[str, Any], defaults: Any, prefix: str = "") -> Changes:
    """`changed_settings` of one section; a whole section that the earlier recipe lacks is no change."""
    changes: Changes = {}
    known = defaults if isinstance(defaults, dict) else {}  # of an optional section there may be none
    for key, new in now.items():
        old = before.get(key, known.get(key, new) if prefix else new)
        if isinstance(old, dict) and isinstance(new, dict) and key not in MAPPINGS:
            changes |= changed_fields(old, new, known.get(key), f"{prefix}{key}.")
        elif old != new:
            changes[prefix + key] = [old, new]
    return changes


def describe_changes(changes: Changes) -> str:
    return ", ".join(f"{key} was {before} and is {now}" for key, (before, now) in changes.items())
