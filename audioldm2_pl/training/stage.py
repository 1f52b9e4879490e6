"""What all stages share: named losses, seeds, optimisers, cached features.

Budgets are counted in batches: an "epoch" of the trainer is the stage's whole budget, and the batch index is
the one clock. Every random draw of a batch follows from (seed, stage, batch index), so a stage that was broken off
and resumed goes through the same draws as one that was not. What is drawn for each clip is drawn for the global batch
(`seeds.draw_rows`), and what is drawn once for a batch is the same on all ranks, both out of `Stage.shared`; torch's
own generator, of which dropout makes its masks, differs from rank to rank.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, ClassVar

import lightning as L
import numpy as np
import torch
from torch import Tensor, distributed, nn

from audioldm2_pl.conditioners.condition import Condition
from audioldm2_pl.fields import bounded
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.seeds import SharedRandom, seed_of
from audioldm2_pl.shards.datamodule import AudioShards
from audioldm2_pl.training.audio_encoder import AudioEncoder
from audioldm2_pl.training.conditions import encode_conditions, sound_features, sound_names
from audioldm2_pl.training.lengths import check_lengths
from audioldm2_pl.training.optimizer import OptimizerConfig, by_learning_rate, learning_rate_factor, make_optimizer


@dataclass
class StageConfig:
    """One stage's recipe; each stage adds its own fields."""

    batches: int = bounded(100_000, ge=1)  # the budget
    batch_size: int = bounded(16, ge=1)  # clips per device and batch
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss_weights: dict[str, float | None] = bounded(dict, ge=0)  # term -> weight; null leaves a term out
    crop_seconds: float | None = bounded(None, gt=0, le=600)  # of random crops to train on; null takes whole clips
    ema_decay: float | None = bounded(None, ge=0, lt=1)  # of averaged weights, which are saved; null saves the last
    gradient_clip: float | None = bounded(None, gt=0)  # largest gradient norm; null does not clip
    accumulate_batches: int = bounded(1, ge=1)  # batches per optimiser step
    save_every_batches: int = bounded(1_000, ge=1)  # a checkpoint to resume from this often
    delayed_terms: ClassVar = ("adversarial", "feature_matching")  # losses that begin with the discriminators
    cache_features: bool = False  # compute frozen networks' outputs once, before the first batch, and keep them

    @property
    def read_seconds(self) -> float | None:
        """The length that clips are read with; None reads them whole."""
        return self.crop_seconds

    def __post_init__(self) -> None:
        self.loss_weights = {term: weight for term, weight in self.loss_weights.items() if weight is not None}


class Stage(L.LightningModule):
    """Base of all stages. A stage's constructor takes networks and its own recipe; `build` does the wiring.

    >>> stage = LDMPretraining.build(load_experiment("experiments/demo.yaml"), ModelFolder("runs/demo/model"))
    >>> stage.losses(batch)["diffusion"].backward()

    A stage registers what it trains as attributes; frozen networks go to the plain dict `self.frozen`, so that
    they are neither in the checkpoint nor under DDP.
    """

    name: str  # in YAMLs
    makes: str | None = None  # the group of parts that `from:` can give in the stage's place
    settings: tuple[str, ...] = ()  # sections of the experiment, beside the recipe, that decide the stage's result
    optional = False  # trained only where `stages` names it
    needs_whole_clips = False  # AudioMAE reads clips of one length
    needs_images = False  # trained on the clips' pictures
    reads_features = False  # encoded features may stand for its waveforms
    averaged: tuple[str, ...] = ()  # attributes whose weights the EMA follows
    networks: tuple[str, ...] = ()  # that it trains or runs, in some experiments at least, and that may have own rates
    encoded: tuple[str, ...] = ()  # stored features that may stand for the waveform (see `shards.encoded`)
    adapts: ClassVar[dict[str, str]] = {}  # network that an adapter may change -> attribute
    compiles: tuple[str, ...] = ()  # networks that `trainer.compile` compiles, by path: vae.decoder
    saved: tuple[str, ...] | None = None  # those of `parts` that are written; None: all
    seed = 0  # of every random draw; the experiment's, where `run_stage` trains the stage

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.conditioners: dict[str, Any] = {}  # name -> conditioner, trained or frozen
        self.frozen: dict[str, nn.Module] = {}
        self.cache: dict[str, dict[str, Tensor]] = {}  # clip's id -> frozen networks' outputs
        self.shared_cache: dict[str, dict[str, Tensor]] = {}  # that of the last stage in this run that filled its cache
        self.model_folder: ModelFolder | None = None  # that encoded features have to be of
        self.rates: list[list[float]] = []  # of each optimiser's groups, after the warm-up
        self.batch_idx = 0  # of the training batch
        self.shared = SharedRandom(seed_of(self.seed, self.name))  # seeded anew for each batch
        # what looks at a loss, and at the number of its optimiser, before the gradient is taken
        self.guard: Callable[..., Tensor] = lambda loss, optimizer=0: loss
        self.saved_optimizers: list[dict[str, Any]] = []  # of the checkpoint that the stage resumes from

    @classmethod
    def build(cls, experiment: Any, folder: ModelFolder) -> Stage:
        """The stage of an ExperimentConfig, on networks of the model folder and new ones."""
        raise NotImplementedError

    @classmethod
    def reads(cls, experiment: Any) -> tuple[str, ...]:
        """Groups of parts that it takes from the model folder."""
        return ()

    @classmethod
    def writes(cls, experiment: Any) -> tuple[str, ...]:
        """Groups of parts that it saves; a later stage that saves one of them too starts from the earlier's."""
        return () if cls.makes is None else (cls.makes,)

    @classmethod
    def check(cls, experiment: Any) -> None:
        """UserError for sizes of an ExperimentConfig that the stage cannot be trained with."""
        check_lengths(cls, experiment)

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Named scalar loss terms of a batch."""
        raise NotImplementedError

    def parts(self) -> dict[str, Any]:
        """What the stage writes into the model folder: sub-folder -> object with save_pretrained."""
        raise NotImplementedError

    def saved_parts(self) -> dict[str, Any]:
        """Those of `parts` that are written: an adapter leaves the rest as it is."""
        return {part: content for part, content in self.parts().items() if self.saved is None or part in self.saved}

    def preview(self, folder: ModelFolder, batch: dict[str, Any], experiment: Any) -> Tensor | None:
        """Waveforms (B, T) of a few clips, out of the model folder as the stage would leave it; None has no sound."""
        return None

    def example(self, experiment: Any) -> tuple[Any, ...] | None:
        """A network and its inputs, at the size of one batch, of which `describe` counts the activations."""
        return None

    def features(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Frozen networks' outputs for a batch, each (B, ...); what `cache_features` keeps."""
        return {}

    def from_stored(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """What `features` would have given, (B, ...) each, out of features that were read from encoded shards."""
        return features

    def optimized(self) -> dict[str, nn.Module]:
        """Optimiser's name -> what it trains; `<name>_optimizer` in the recipe may give it settings of its own."""
        return {"main": self}

    def finish(self, data: AudioShards) -> None:
        """Last measurements before the parts are saved."""

    def freeze(self, **networks: nn.Module) -> None:
        self.frozen.update({name: net.eval().requires_grad_(False) for name, net in networks.items()})

    def frozen_networks(self) -> list[nn.Module]:
        """Networks that it runs and does not train."""
        return list(self.frozen.values())

    def add_conditioners(self, conditioners: dict[str, Any]) -> None:
        """Takes conditioners by name: those with a parameter that trains as attributes, the others as frozen."""
        self.conditioners = dict(conditioners)
        for name, conditioner in conditioners.items():
            if any(parameter.requires_grad for parameter in conditioner.parameters()):
                setattr(self, name, conditioner)
            else:
                self.freeze(**{name: conditioner})

    def add_inputs(self, audio_encoder: AudioEncoder, conditioners: dict[str, Any]) -> None:
        """Takes what turns a batch into latents, LOA and conditions."""
        self.freeze(audio_encoder=audio_encoder)
        self.add_conditioners(conditioners)
        self.encoded = (*audio_encoder.names, *sound_names(conditioners))

    def encode_sound(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """What `AudioEncoder.features` gives, and (B, D) of each frozen conditioner that reads the sound."""
        sound = self.frozen["audio_encoder"].features(batch["waveform"])  # type: ignore[operator]
        return sound | sound_features(self.conditioners, self.inputs(batch))

    def inputs(self, batch: dict[str, Any], features: dict[str, Tensor] | None = None) -> dict[str, Any]:
        """The batch as conditioners read it; features are (B, ...)."""
        rate = self.frozen["audio_encoder"].audio.sample_rate  # type: ignore[union-attr]
        return {**batch, "sample_rate": rate, "features": features or {}}

    def encode(self, batch: dict[str, Any], features: dict[str, Tensor]) -> dict[str, Condition]:
        """Name -> condition (B, L, D) of each conditioner."""
        random = self.shared if self.training else None
        return encode_conditions(self.conditioners, self.inputs(batch, features), random)

    @property
    def trained_conditioners(self) -> tuple[str, ...]:
        return tuple(name for name in self.conditioners if name not in self.frozen)

    def conditioner_parts(self) -> dict[str, Any]:
        """What the stage writes of the conditioners that it trains."""
        return {k: v for name in self.trained_conditioners for k, v in self.conditioners[name].parts().items()}

    def stored_texts(self) -> tuple[str, ...]:
        """Names of the stored features that stand for frozen conditioners of text."""
        reading = [c for name, c in self.conditioners.items() if name in self.frozen and c.reads == "text"]
        return tuple(name for conditioner in reading for name in conditioner.stored)

    def gather(self, value: Tensor) -> Tensor:
        """(B, ...) of this rank => (ranks * B, ...) of all in training; gradients flow back to their ranks."""
        if not (self.training and distributed.is_available() and distributed.is_initialized()):
            return value
        return self.all_gather(value, sync_grads=value.requires_grad).flatten(0, 1)  # type: ignore[union-attr]

    def network(self, name: str) -> Any:
        """A network by name, whether it is frozen or trained; None where the stage has none."""
        if name in self.frozen or hasattr(self, name):
            return self.frozen.get(name, getattr(self, name, None))
        return getattr(self.frozen.get("audio_encoder"), name, None)

    def optimizer_config(self, name: str) -> OptimizerConfig:
        return getattr(self.config, f"{name}_optimizer", self.config.optimizer)

    def configure_optimizers(self):
        optimizers, self.rates = [], []
        scales_gradients = getattr(self.trainer.precision_plugin, "scaler", None) is not None  # type: ignore
        for name, network in self.optimized().items():
            config = self.optimizer_config(name)
            groups = by_learning_rate(self, network, config)
            optimizers.append(make_optimizer(groups, config, scales_gradients))
            self.rates.append(list(groups))
        return optimizers

    def on_fit_start(self) -> None:
        for network in self.frozen.values():
            network.to(self.device)
        self.train()  # parts come out of their folders in eval mode
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.needs_images or any(conditioner.reads == "image" for conditioner in self.conditioners.values()):
            data.images = True
        makers = (getattr(conditioner, "phonemize", None) for conditioner in self.conditioners.values())
        phonemize = next(filter(None, makers), None)
        if phonemize is not None and hasattr(data, "phonemize"):  # a plain loader leaves it to the training step
            data.phonemize = phonemize
        if self.encoded and data.data.encoded and self.model_folder is not None:
            data.read_encoded(self.encoded, self.stored_texts(), self.model_folder.path)
        elif self.config.cache_features:
            self.fill_cache()
            data.skip_sound(set(self.cache))

    @torch.no_grad()
    def fill_cache(self) -> None:
        """One pass over the training clips in storage order: the same batches, so the same bits, in every run.

        None where a stage before has cached what this one needs.
        """
        self.cache = {}
        if self.encoded and self.shared_cache and set(self.encoded) <= set(next(iter(self.shared_cache.values()))):
            for clip, row in self.shared_cache.items():
                features = self.from_stored({name: row[name][None] for name in self.encoded})
                self.cache[clip] = {name: value[0] for name, value in features.items()}
            return
        for batch in self.trainer.datamodule.storage_order():  # type: ignore[attr-defined]
            waveform = batch["waveform"].to(self.device)
            features = self.features({**batch, "waveform": waveform})
            for row, clip in enumerate(batch["id"]):
                self.cache[clip] = {name: value[row].clone() for name, value in features.items()}
        if self.encoded:
            self.shared_cache.clear()
            self.shared_cache.update(self.cache)

    @torch.no_grad()
    def features_of(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`features`, (B, ...) each: read from encoded shards, cached, or computed now."""
        if "features" in batch:
            stored = batch["features"]
            return self.from_stored({k: v.float() if v.is_floating_point() else v for k, v in stored.items()})
        if not self.cache or not all(clip in self.cache for clip in batch["id"]):
            return self.features(batch)
        rows = [self.cache[clip] for clip in batch["id"]]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.batch_idx = batch_idx
        self.shared = SharedRandom(seed_of(self.seed, self.name, batch_idx))
        own = seed_of(self.seed, self.name, batch_idx, self.global_rank)
        torch.manual_seed(own)
        random.seed(own)
        np.random.seed(own % 2**32)
        for name, optimizer, rates in zip(self.optimized(), self.trainer.optimizers, self.rates):
            factor = learning_rate_factor(self.optimizer_config(name), batch_idx, self.config.batches)
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * factor

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The sum of the terms that have a weight, each times it; scalars."""
        weights = self.config.loss_weights
        return sum(weights[name] * term for name, term in terms.items() if name in weights)  # type: ignore[return-value]

    def log_terms(self, terms: dict[str, Tensor], batch_size: int, split: str = "train") -> None:
        values = {f"{split}/{name}": term.detach() for name, term in terms.items()}
        # the mean of all ranks where it is written; in between each shows its own, which costs nothing
        every = max(1, self.trainer.log_every_n_steps)  # type: ignore[attr-defined]
        written = split != "train" or self.trainer.fit_loop.batch_idx % every == 0
        self.log_dict(values, prog_bar=split == "train", batch_size=batch_size, sync_dist=written)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The scalar that Lightning's automatic optimisation takes the gradient of."""
        terms = self.losses(batch)
        self.log_terms(terms, len(batch["key"]))
        return self.guard(self.total(terms))

    def steps_after(self, batch_idx: int) -> bool:
        """Whether the optimisers step after this batch: the last of `accumulate_batches`, or of the budget."""
        num_batches = batch_idx + 1
        return num_batches % self.config.accumulate_batches == 0 or num_batches == self.config.batches

    def update(self, optimizer: Any, loss: Tensor, batch_idx: int) -> None:
        """Backward, and at the last of `accumulate_batches` a step: what a stage with manual optimisation calls."""
        number = self.optimizers().index(optimizer)  # type: ignore[union-attr]
        self.manual_backward(self.guard(loss, number) / self.config.accumulate_batches)
        if self.steps_after(batch_idx):
            optimizer.step()
            optimizer.zero_grad()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if not self.automatic_optimization:
            self.clip_gradients(optimizer, self.config.gradient_clip, "norm")

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Losses with the averaged weights and all conditions; a batch's draws are the same in every validation."""
        self.shared = SharedRandom(seed_of(self.seed, self.name, "validation", batch_idx))
        self.log_terms(self.losses(batch), len(batch["key"]), "val")

    def parameter_names(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """The optimiser's parameters in its own order."""
        names = {parameter: name for name, parameter in self.named_parameters()}
        return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["parameter_names"] = [self.parameter_names(optimizer) for optimizer in self.trainer.optimizers]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the optimisers' states to itself: Lightning's way puts the checkpoint's settings over the recipe's."""
        states, names = checkpoint["optimizer_states"], checkpoint.get("parameter_names") or repeat(None)
        self.saved_optimizers = [{"state": state["state"], "names": own} for state, own in zip(states, names)]
        checkpoint["optimizer_states"] = []

    def on_train_start(self) -> None:
        for optimizer, saved in zip(self.trainer.optimizers, self.saved_optimizers):
            names = self.parameter_names(optimizer)
            by_name = {(saved["names"] or names)[index]: state for index, state in saved["state"].items()}
            states = {index: by_name[name] for index, name in enumerate(names) if name in by_name}
            optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
        self.saved_optimizers = []
