"""Previews of a stage while it trains: WAV files, and TensorBoard's and wandb's players.

A sample is what the model folder would give if the stage ended there, averaged weights and all. CLAP and AudioMAE
make no sound and have none.
"""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from audioldm2_pl.audio import save_waveform
from audioldm2_pl.config import ExperimentConfig
from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.seeds import seed_of
from audioldm2_pl.shards.datamodule import AudioShards
from audioldm2_pl.training.ema import EMA
from audioldm2_pl.training.stage import Stage


class LiveFolder(ModelFolder):
    """The model folder as it would be if the stage ended now: copies of what it writes, all else from the disk."""

    def __init__(self, stage: Stage, folder: ModelFolder):
        super().__init__(folder.path)
        self.live = {part: deepcopy(content) for part, content in stage.parts().items()}

    def has(self, part: str) -> bool:
        return part in self.live or super().has(part)

    def load(self, part: str) -> Any:
        return self.live[part] if part in self.live else super().load(part)


class Samples(L.Callback):
    """Every so many batches, and at the end, the sound of a few clips of the test split, or of the training split where
    there is no other. Training draws no other numbers for it. What cannot be previewed yet is named once and skipped.
    """

    def __init__(self, experiment: ExperimentConfig, folder: Path, every_batches: int, ema: EMA | None):
        self.experiment = experiment
        self.model_folder = ModelFolder(experiment.model_folder)
        data = experiment.data
        splits = replace(data, train=[data.test] if data.test else data.train, weights=[], encoded=[], num_workers=0)
        seed = seed_of(experiment.seed, "samples")
        shards = AudioShards(splits, experiment.audio, seed, experiment.trainer.sample_clips)
        self.batch = next(iter(shards.train_dataloader()))  # the same clips every time
        self.sample_rate = experiment.audio.sample_rate
        self.folder = folder
        self.every_batches = every_batches
        self.ema = ema
        self.disabled = False

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        due = (batch_idx + 1) % self.every_batches == 0 or batch_idx + 1 == pl_module.config.batches
        if due and trainer.is_global_zero and not self.disabled:
            self.write(trainer, pl_module, batch_idx + 1)

    def write(self, trainer: L.Trainer, stage: Stage, num_batches: int) -> None:
        batch = {**self.batch, "waveform": self.batch["waveform"].to(stage.device)}
        try:
            with torch.inference_mode():
                with self.ema.applied(stage) if self.ema else nullcontext():
                    folder = LiveFolder(stage, self.model_folder)
                waveforms = stage.preview(folder, batch, self.experiment)  # (B, T)
            if waveforms is not None:
                self.save(trainer, batch["text"], waveforms.float().cpu(), num_batches)
        except UserError as error:
            print(f"{stage.name}: no samples ({error})", flush=True)
            self.disabled = True

    def save(self, trainer: L.Trainer, texts: list[str], waveforms: Tensor, num_batches: int) -> None:
        for number, (text, waveform) in enumerate(zip(texts, waveforms)):
            reference = self.folder / f"{number}_reference.wav"
            if not reference.is_file():
                save_waveform(reference, self.batch["waveform"][number], self.sample_rate)
            save_waveform(self.folder / f"{number}_{num_batches:07}.wav", waveform, self.sample_rate)
            self.play(trainer, f"sample/{number}", waveform, text, num_batches)

    def play(self, trainer: L.Trainer, name: str, waveform: Tensor, text: str, num_batches: int) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_audio(name, waveform[None].clamp(-1, 1), num_batches, self.sample_rate)
                logger.experiment.add_text(name, text, num_batches)
            elif isinstance(logger, WandbLogger):
                logger.log_audio(name, [waveform.numpy()], sample_rate=[self.sample_rate], caption=[text])
