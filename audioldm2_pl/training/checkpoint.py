"""The checkpoints of a stage: when they are saved, which it resumes from, and whether that still fits the experiment.

runs/<name>/checkpoints/<stage>.ckpt            the latest, which a broken-off stage goes on from
runs/<name>/checkpoints/<stage>-<batch>.ckpt    those before it, with trainer.keep_checkpoints
runs/<name>/checkpoints/set_aside/              those that the stage has gone back behind, until it is finished
"""

from __future__ import annotations

import re
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from audioldm2_pl.atomic import link_file, written_whole
from audioldm2_pl.config import ExperimentConfig, to_plain
from audioldm2_pl.errors import Interrupted, UserError, reason_of
from audioldm2_pl.training.interruption import Interruption
from audioldm2_pl.training.stage import Stage

Changes = dict[str, list[Any]]  # dotted key -> [value before, value now]
SET_ASIDE = "set_aside"  # folder of the checkpoints that no stage looks for
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

    def __init__(
        self, path: Path, every_batches: int, recipe: dict[str, Any], interruption: Interruption, keep: int = 1
    ):
        self.path = path
        self.keep = keep  # checkpoints
        self.every_batches = every_batches
        self.recipe = recipe
        self.interruption = interruption
        self.num_batches = 0  # trained
        self.saved = 0  # batches of the latest checkpoint
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
            self.save(trainer)
        if self.ends and is_last:
            self.end(pl_module.name)

    def save(self, trainer: L.Trainer) -> None:
        """Replaces the latest checkpoint, which stays under its number where more than one is kept."""
        if trainer.is_global_zero and self.keep > 1 and 0 < self.saved < self.num_batches and self.path.is_file():
            with written_whole(self.path.with_name(numbered_name(self.path.stem, self.saved, ".ckpt"))) as part:
                link_file(self.path, part)
        trainer.save_checkpoint(self.path)
        self.saved = self.num_batches
        if trainer.is_global_zero:
            older = list(older_checkpoints(self.path).values())
            for path in older[: max(0, len(older) - self.keep + 1)]:
                path.unlink()

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
        self.num_batches = self.saved = state_dict["num_batches"]


def numbered_name(stage: str, num_batches: int, suffix: str = "") -> str:
    return f"{stage}-{num_batches:07}{suffix}"


def numbered(folder: Path, stage: str, suffix: str = "") -> dict[int, Path]:
    """What a stage has left in a folder under numbers of batches, in their order."""
    pattern = rf"{re.escape(stage)}-(\d{{7,}}){re.escape(suffix)}"
    found = [(re.fullmatch(pattern, path.name), path) for path in folder.glob(f"{stage}-*")]
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def older_checkpoints(path: Path) -> dict[int, Path]:
    """Number of batches -> file of a stage's checkpoints before the latest, which is at `path`."""
    return numbered(path.parent, path.stem, ".ckpt")


def remove_checkpoints(path: Path) -> None:
    """Removes all of a stage whose latest is at `path`."""
    for old in (path, *older_checkpoints(path).values(), *(path.parent / SET_ASIDE).glob(f"{path.stem}-*.ckpt")):
        old.unlink(missing_ok=True)
    with suppress(OSError):  # others are there, or it never was
        (path.parent / SET_ASIDE).rmdir()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Raises UserError where a checkpoint is damaged, or none of ours."""
    try:
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        missing = {"state_dict", "optimizer_states", "loops", "callbacks", "AudioShards"} - checkpoint.keys()
    except Exception as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)}); {way_out(path)}") from None
    if missing:
        raise UserError(f"{path}: no checkpoint of a stage; {way_out(path)}")
    return checkpoint


def way_out(path: Path) -> str:
    """What to do about a checkpoint that is none."""
    older = older_checkpoints(path)
    back = f"go back with --resume {max(older)}, or " if older else ""
    return f"{back}delete it to train from the start"


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
