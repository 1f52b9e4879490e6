"""What all stages share: named losses, seeds, EMA, checkpoints.

Budgets are counted in batches: an "epoch" of the trainer is the stage's whole budget, and the batch index is
the one clock. Every random draw of a batch follows from (seed, stage, batch index), so a stage that was broken off
and resumed goes through the same draws as one that was not. Ranks are seeded alike: what is drawn for each clip is
drawn for the global batch (`seeds.draw_rows`), what is drawn once for a batch is the same on all.
"""

from __future__ import annotations

import csv
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from audioldm2_pl.fields import bounded
from audioldm2_pl.seeds import seed_of
from audioldm2_pl.training.optimizer import OptimizerConfig, by_learning_rate, learning_rate_factor, make_optimizer

if TYPE_CHECKING:
    from audioldm2_pl.checkpoints import ModelFolder
    from audioldm2_pl.config import ExperimentConfig


@dataclass
class StageConfig:
    """One stage's recipe; each stage adds its own fields."""

    batches: int = bounded(100_000, ge=1)  # the budget
    batch_size: int = bounded(16, ge=1)  # clips per device and batch
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss_weights: dict[str, float | None] = bounded(dict, ge=0)  # term -> weight; null leaves a term out
    crop_seconds: float | None = bounded(None, gt=0, le=600)  # of random crops to train on; null takes whole clips
    ema_decay: float | None = bounded(
        None, ge=0, lt=1
    )  # of the averaged weights that are saved; null saves the last ones
    gradient_clip: float | None = bounded(None, gt=0)  # largest gradient norm; null does not clip
    accumulate_batches: int = bounded(1, ge=1)  # batches per optimiser step
    save_every_batches: int = bounded(1_000, ge=1)  # a checkpoint to resume from this often
    cache_features: bool = False  # compute frozen networks' outputs once, before the first batch, and keep them

    def __post_init__(self) -> None:
        self.loss_weights = {term: weight for term, weight in self.loss_weights.items() if weight is not None}


class Stage(L.LightningModule):
    """Base of all stages.

    A stage registers what it trains as attributes; frozen networks go to the plain dict `self.frozen`, so that
    they are neither in the checkpoint nor under DDP.
    """

    name: str  # the stage's name in YAMLs
    averaged: tuple[str, ...] = ()  # attributes whose weights the EMA follows
    sometimes: tuple[str, ...] = ()  # networks that it has in some experiments only
    encoded: tuple[str, ...] = ()  # stored features that may stand for the waveform (see `encoded_shards`)

    def __init__(self, experiment: ExperimentConfig, folder: ModelFolder):
        super().__init__()
        self.experiment = experiment
        self.config: Any = getattr(experiment.training, self.name)
        self.folder = folder
        self.frozen: dict[str, nn.Module] = {}
        self.cache: dict[str, dict[str, Tensor]] = {}  # clip's key -> frozen networks' outputs
        self.kept: dict[str, dict[str, Tensor]] = {}  # the same of the last stage that filled its cache in this run
        self.rates: list[list[float]] = []  # of each optimiser's groups, after the warm-up

    # ---- what a stage says of itself

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Named scalar loss terms of a batch."""
        raise NotImplementedError

    def parts(self) -> dict[str, Any]:
        """What the stage writes into the model folder: sub-folder -> object with save_pretrained."""
        raise NotImplementedError

    def features(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Frozen networks' outputs for a batch, each (B, ...); what `cache_features` keeps."""
        return {}

    def of_stored(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """What `features` would have said, out of features that were read from encoded shards."""
        return features

    def optimized(self) -> dict[str, nn.Module]:
        """Optimiser's name -> what it trains; `<name>_optimizer` in the recipe may give it settings of its own."""
        return {"main": self}

    def finish(self) -> None:
        """Last measurements before the parts are saved."""

    @property
    def crop_seconds(self) -> float | None:
        """The length that clips are read with; None reads them whole."""
        return self.config.crop_seconds

    @property
    def max_clips(self) -> int | None:
        """How many of the training clips are dealt to it; None deals all."""
        return None

    # ---- what the base does with it

    def freeze(self, **networks: nn.Module) -> None:
        self.frozen.update({name: net.eval().requires_grad_(False) for name, net in networks.items()})

    def network(self, name: str) -> Any:
        """A network by name, whether it is frozen or learns; None where the stage has none."""
        return self.frozen.get(name, getattr(self, name, None))

    def optimizer_config(self, name: str) -> OptimizerConfig:
        return getattr(self.config, f"{name}_optimizer", self.config.optimizer)

    def configure_optimizers(self):
        optimizers, self.rates = [], []
        for name, network in self.optimized().items():
            config = self.optimizer_config(name)
            groups = by_learning_rate(self, network, config)
            optimizers.append(make_optimizer(groups, config))
            self.rates.append(list(groups))
        return optimizers

    def on_fit_start(self) -> None:
        for network in self.frozen.values():
            network.to(self.device)
        self.train()  # parts come out of their folders in eval mode
        if self.encoded and self.experiment.data.encoded:
            texts = ("clap_text", "t5", "t5_length") if "t5" in self.frozen else ("clap_text",)
            self.trainer.datamodule.read_encoded(self.encoded, texts, self.folder.path)  # type: ignore[attr-defined]
        elif self.config.cache_features:
            self.fill_cache()
            self.trainer.datamodule.leave_out_sound(set(self.cache))  # type: ignore[attr-defined]

    @torch.no_grad()
    def fill_cache(self) -> None:
        """One pass over the training clips in storage order: the same batches, so the same bits, in every run.

        None where a stage before has kept what this one needs.
        """
        self.cache = {}
        if self.encoded and self.kept and set(self.encoded) <= set(next(iter(self.kept.values()))):
            for key, row in self.kept.items():
                features = self.of_stored({name: row[name][None] for name in self.encoded})
                self.cache[key] = {name: value[0] for name, value in features.items()}
            return
        for batch in self.trainer.datamodule.storage_order():  # type: ignore[attr-defined]
            waveform = batch["waveform"].to(self.device)
            features = self.features({**batch, "waveform": waveform})
            for row, key in enumerate(batch["key"]):
                self.cache[key] = {name: value[row].clone() for name, value in features.items()}
        if self.encoded:
            self.kept.clear()
            self.kept.update(self.cache)

    @torch.no_grad()
    def features_of(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`features`: the batch's own if it was read from encoded shards, or those of the cache if it holds them."""
        if "features" in batch:
            stored = batch["features"]
            return self.of_stored({k: v.float() if v.is_floating_point() else v for k, v in stored.items()})
        if not all(key in self.cache for key in batch["key"]):
            return self.features(batch)
        rows = [self.cache[key] for key in batch["key"]]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        seed = seed_of(self.experiment.seed, self.name, batch_idx)
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        optimizers: Any = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        for name, optimizer, rates in zip(self.optimized(), optimizers, self.rates):
            factor = learning_rate_factor(self.optimizer_config(name), batch_idx, self.config.batches)
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * factor

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The sum of the terms that have a weight, each times it."""
        weights = self.config.loss_weights
        return sum(weights[name] * term for name, term in terms.items() if name in weights)  # type: ignore[return-value]

    def log_terms(self, terms: dict[str, Tensor], batch_size: int, split: str = "train") -> None:
        values = {f"{split}/{name}": term.detach() for name, term in terms.items()}
        # the mean of all ranks where it is written; in between each shows its own, which costs nothing
        every = max(1, self.trainer.log_every_n_steps)  # type: ignore[attr-defined]
        written = split != "train" or self.trainer.fit_loop.batch_idx % every == 0
        self.log_dict(values, prog_bar=split == "train", batch_size=batch_size, sync_dist=written)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        terms = self.losses(batch)
        self.log_terms(terms, len(batch["key"]))
        return self.total(terms)

    def update(self, optimizer: Any, loss: Tensor, batch_idx: int) -> None:
        """Backward, and at the last of `accumulate_batches` a step: what a stage with manual optimisation calls."""
        count = self.config.accumulate_batches
        self.manual_backward(loss / count)
        if (batch_idx + 1) % count == 0:
            self.clip_gradients(optimizer, self.config.gradient_clip, "norm")
            optimizer.step()
            optimizer.zero_grad()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self.experiment.seed, self.name, "validation", batch_idx, self.global_rank))
            self.log_terms(self.losses(batch), len(batch["key"]), "val")


class EMA(L.Callback):
    """Exponential moving average of a stage's `averaged` networks, with decay warm-up min(d, (1 + n) / (10 + n))."""

    def __init__(self, decay: float):
        self.decay = decay
        self.num_updates = 0
        self.average: dict[str, Tensor] = {}

    def weights(self, stage: Stage) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": parameter
            for name in stage.averaged
            for key, parameter in getattr(stage, name).named_parameters()
            if parameter.requires_grad
        }

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        weights = self.weights(pl_module)  # type: ignore[arg-type]
        source = self.average or weights
        self.average = {name: source[name].detach().clone().to(w.device) for name, w in weights.items()}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        weights = self.weights(pl_module)
        for name, weight in weights.items():
            self.average[name].lerp_(weight.detach(), 1 - decay)

    @contextmanager
    def applied(self, stage: Stage) -> Iterator[None]:
        """The averaged weights in the networks' place."""
        weights = self.weights(stage)
        last = {name: w.detach().clone() for name, w in weights.items()}
        try:
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.copy_(self.average[name])
            yield
        finally:
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.copy_(last[name])

    def state_dict(self) -> dict[str, Any]:
        return {"num_updates": self.num_updates, "average": self.average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.num_updates, self.average = state_dict["num_updates"], state_dict["average"]


class Resumable(L.Callback):
    """Saves the one checkpoint that a broken-off stage resumes from, and the time spent so far."""

    def __init__(self, path: Path, every_batches: int):
        self.path = path
        self.every_batches = every_batches
        self.seconds = 0.0  # spent by earlier runs of this stage
        self.started = time.perf_counter()

    def elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self.started

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if (batch_idx + 1) % self.every_batches == 0:
            part = self.path.with_suffix(".part")
            trainer.save_checkpoint(part)
            trainer.strategy.barrier()
            if trainer.is_global_zero:  # renamed whole: a kill while writing leaves the one before
                os.replace(part, self.path)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.elapsed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]


class LossCurves(L.Callback):
    """Losses to a CSV with the columns batch, name, value. A resumed run drops the rows that it repeats."""

    def __init__(self, path: Path, every_batches: int):
        self.path = path
        self.every_batches = every_batches

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        first = trainer.fit_loop.batch_idx + 1
        kept = []
        if self.path.is_file() and first > 0:
            with self.path.open(newline="") as file:
                kept = [row for row in csv.reader(file) if row[0].isdigit() and int(row[0]) < first]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", newline="") as file:
            csv.writer(file).writerows([["batch", "name", "value"], *kept])

    def write(self, trainer: L.Trainer, split: str, batch_idx: int) -> None:
        if not trainer.is_global_zero:
            return
        metrics = {k: v for k, v in trainer.callback_metrics.items() if k.startswith(split)}
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerows([batch_idx, name, f"{float(value):.6g}"] for name, value in metrics.items())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if batch_idx % self.every_batches == 0:
            self.write(trainer, "train/", batch_idx)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.write(trainer, "val/", trainer.fit_loop.batch_idx)
