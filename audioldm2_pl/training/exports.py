"""What a stage leaves: its parts in the model folder at the end, and whole model folders while it trains.

runs/<name>/exports/<stage>-<batch>/    the model folder as it would be if the stage had ended there
"""

import shutil
from contextlib import nullcontext
from copy import copy
from pathlib import Path
from typing import Any

import lightning as L
import torch

from audioldm2_pl.atomic import link_tree, remove_folder, replace_folder
from audioldm2_pl.errors import UserError, reason_of
from audioldm2_pl.generation import Sampling
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.shards.datamodule import AudioShards
from audioldm2_pl.training.checkpoint import numbered, numbered_name
from audioldm2_pl.training.ema import EMA
from audioldm2_pl.training.ranks import is_rank_zero
from audioldm2_pl.training.stage import Stage


class PartSaver(L.Callback):
    """Saves what the stage has made, its averaged weights where there are some, while it is still on its device."""

    def __init__(self, stage: Stage, data: AudioShards, ema: EMA | None, folder: ModelFolder, sampling: Sampling):
        self.sampling = sampling
        self.stage = stage
        self.data = data
        self.ema = ema
        self.folder = folder
        self.parts = folder.parts()  # that were there when the stage began

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save()

    def save(self) -> None:
        if not is_rank_zero():
            return
        if lost := sorted(self.parts - self.folder.parts()):
            raise UserError(f"{self.folder.path / lost[0]}: gone since {self.stage.name} began; put it back and go on")
        self.write(self.folder)

    def write(self, folder: ModelFolder) -> None:
        """Writes the stage's parts into a model folder."""
        with self.ema.applied(self.stage) if self.ema and self.ema.average else nullcontext():
            self.stage.finish(self.data)
            for part, content in self.stage.saved_parts().items():
                folder.save(part, content)
        folder.note_sampling(self.sampling)


class Exports(L.Callback):
    """Every so many batches a model folder: the stage's parts as `saver` would write them now, links to all others.

    Where an adapter is trained it is an adapter folder. What cannot be written is told; training goes on without it.
    """

    def __init__(self, saver: PartSaver, folder: Path, every_batches: int, keep: int | None = None):
        self.saver = saver
        self.folder = folder
        self.every_batches = every_batches
        self.keep = keep  # exports of the stage; None keeps all

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % self.every_batches or not trainer.is_global_zero:
            return
        path = self.folder / numbered_name(pl_module.name, batch_idx + 1)
        try:
            self.export(path)
            self.remove_older(batch_idx + 1)
        except (UserError, OSError) as error:
            print(f"{path}: not exported ({reason_of(error)}); training goes on", flush=True)

    @torch.no_grad()
    def export(self, path: Path) -> None:
        """Writes beside `path`, then renames; an export that is there from an earlier call is replaced."""
        new = path.with_name(f".{path.name}.part")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        try:
            folder = copy(self.saver.folder)
            for part in sorted(folder.parts() - self.saver.stage.saved_parts().keys()):
                link_part(folder.path / part, new / part)
            folder.path = new
            self.saver.write(folder)
            replace_folder(path, new)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def remove_older(self, num_batches: int) -> None:
        """Keeps the latest exports of the stage up to this one; later ones of an earlier call wait to be replaced."""
        exports = numbered(self.folder, self.saver.stage.name)
        upto = [path for number, path in exports.items() if number <= num_batches]
        for old in upto[: -self.keep] if self.keep else ():
            remove_folder(old)


def link_part(source: Path, target: Path) -> None:
    """Links a part's files, once more where the process of another stage has replaced the part meanwhile."""
    try:
        link_tree(source, target)
    except OSError:
        shutil.rmtree(target, ignore_errors=True)
        link_tree(source, target)
