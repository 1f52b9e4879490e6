"""Where losses go: a CSV, and TensorBoard and wandb where they are asked for."""

import csv
import logging
import os
import secrets
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from audioldm2_pl.atomic import write_text
from audioldm2_pl.config import ExperimentConfig, to_plain
from audioldm2_pl.training.ranks import is_rank_zero


class CurveFile:
    """A CSV with the columns batch, name, value. A resumed run drops the rows that it repeats."""

    def __init__(self, path: Path):
        self.path = path

    def begin(self, first_batch: int) -> None:
        """Keeps the rows of batches before the first that is to come."""
        rows = []
        if self.path.is_file() and first_batch > 0:
            with self.path.open(newline="") as file:
                rows = [row for row in csv.reader(file) if row[0].isdigit() and int(row[0]) < first_batch]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", newline="") as file:
            csv.writer(file).writerows([["batch", "name", "value"], *rows])

    def write(self, batch_idx: int, values: Mapping[str, Any]) -> None:
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerows([batch_idx, name, f"{float(value):.6g}"] for name, value in values.items())


class LossCurves(L.Callback):
    """Losses to a CSV every so many batches, and at each validation."""

    def __init__(self, curves: CurveFile, every_batches: int):
        self.curves = curves
        self.every_batches = every_batches

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self.curves.begin(trainer.fit_loop.batch_idx + 1)

    def write(self, trainer: L.Trainer, split: str, batch_idx: int) -> None:
        if trainer.is_global_zero:
            losses = {k: v for k, v in trainer.callback_metrics.items() if k.startswith(split)}
            self.curves.write(batch_idx, losses)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if batch_idx % self.every_batches == 0:
            self.write(trainer, "train/", batch_idx)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.write(trainer, "val/", trainer.fit_loop.batch_idx)


def build_loggers(experiment: ExperimentConfig, stage: str, resumes: bool = False) -> list:
    """The loggers asked for beside the CSV; wandb writes offline where there is no account.

    A stage that `resumes` goes on in the wandb run that it began.
    """
    loggers: list = []
    folder = experiment.run_folder / "logs" / stage
    for name in experiment.trainer.loggers:
        folder.mkdir(parents=True, exist_ok=True)
        if name == "tensorboard":
            loggers.append(TensorBoardLogger(folder, name="", version="tensorboard"))
        else:
            loggers.append(
                WandbLogger(
                    name=f"{experiment.name}/{stage}",
                    project="audioldm2",
                    save_dir=folder,
                    offline=not has_wandb_account(),
                    id=wandb_id(folder / "wandb_id", resumes),
                    resume="allow",
                    config=to_plain(experiment),
                )
            )
    return loggers


def wandb_id(path: Path, resumes: bool) -> str | None:
    """The id of a stage's wandb run, which rank 0 keeps in a file; None on the others, which write no run."""
    if not is_rank_zero():
        return None
    if not (resumes and path.is_file()):
        write_text(path, secrets.token_hex(4))
    return path.read_text(encoding="utf-8").strip()


def has_wandb_account() -> bool:
    netrc = Path.home() / ".netrc"
    return "WANDB_API_KEY" in os.environ or (netrc.is_file() and "wandb" in netrc.read_text())


def quieten() -> None:
    """Keeps Lightning's tips and repeated warnings from burying the losses."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers.*",
        ".*IterableDataset.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*mid-epoch.*",
        ".*dataloader is not resumable.*",  # the data module is: it saves its position
    ):
        warnings.filterwarnings("ignore", text)
