"""One experiment: the dataclasses of all parts under one roof, and the YAML that fills them.

Every part's config stands directly above the part itself; this file only nests them.
"""

import ast
import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from audioldm2_pl.audio import AudioConfig
from audioldm2_pl.conditioners.config import CONDITIONS, ConditionersConfig, conditioner_class
from audioldm2_pl.errors import UserError
from audioldm2_pl.experiment_file import read_yaml, value_of
from audioldm2_pl.fields import bounded, check_fields, nearest
from audioldm2_pl.generation import Sampling
from audioldm2_pl.models.adapters import AdapterConfig
from audioldm2_pl.models.audiomae import AudioMAEConfig, loa_lengths
from audioldm2_pl.models.diffusion import DiffusionConfig
from audioldm2_pl.models.gpt2 import LOAGPT2Config
from audioldm2_pl.models.unet import TUNetConfig
from audioldm2_pl.models.vae import VAEConfig
from audioldm2_pl.models.vocoder import VocoderConfig
from audioldm2_pl.shards.datamodule import DataConfig
from audioldm2_pl.training.adapter import check_adapter
from audioldm2_pl.training.audiomae import AudioMAETrainingConfig
from audioldm2_pl.training.clap import CLAPTrainingConfig
from audioldm2_pl.training.decoder import DecoderTrainingConfig
from audioldm2_pl.training.distill import DistillTrainingConfig
from audioldm2_pl.training.gpt2 import GPT2TrainingConfig
from audioldm2_pl.training.image import ImageTrainingConfig
from audioldm2_pl.training.joint import JointTrainingConfig
from audioldm2_pl.training.ldm import LDMTrainingConfig
from audioldm2_pl.training.stage import Stage, StageConfig
from audioldm2_pl.training.trainer import TrainerConfig
from audioldm2_pl.training.vae import VAETrainingConfig
from audioldm2_pl.training.vocoder import VocoderTrainingConfig


@dataclass
class TrainingConfig:
    """One recipe a stage."""

    clap: CLAPTrainingConfig = field(default_factory=CLAPTrainingConfig)
    image: ImageTrainingConfig = field(default_factory=ImageTrainingConfig)
    audiomae: AudioMAETrainingConfig = field(default_factory=AudioMAETrainingConfig)
    vae: VAETrainingConfig = field(default_factory=VAETrainingConfig)
    vocoder: VocoderTrainingConfig = field(default_factory=VocoderTrainingConfig)
    decoder: DecoderTrainingConfig = field(default_factory=DecoderTrainingConfig)
    ldm: LDMTrainingConfig = field(default_factory=LDMTrainingConfig)
    gpt2: GPT2TrainingConfig = field(default_factory=GPT2TrainingConfig)
    joint: JointTrainingConfig = field(default_factory=JointTrainingConfig)
    distill: DistillTrainingConfig = field(default_factory=DistillTrainingConfig)


def stage_class(recipe: type) -> type[Stage]:
    """The stage that stands below its recipe, in the same file."""
    module = vars(sys.modules[recipe.__module__]).values()
    return next(c for c in module if isinstance(c, type) and issubclass(c, Stage) and c.__module__ == recipe.__module__)


# Stages by name, in their order of training.
STAGES = {name: stage_class(recipe) for name, recipe in get_type_hints(TrainingConfig).items()}


@dataclass
class ExperimentConfig:
    """The whole recipe of one system: one row of a table."""

    name: str = "experiment"  # names runs/<name>/
    description: str = ""  # which row of which table, and the number to expect
    seed: int = bounded(0, ge=0, lt=2**63)  # every random draw follows from it
    runs: str = "runs"  # folder of all runs
    stages: list[str] = field(  # those to train, in order
        default_factory=lambda: [name for name, stage in STAGES.items() if not stage.optional]
    )
    from_: dict[str, str | None] = field(default_factory=dict)  # `from:` part -> model folder or hub id to take it from
    start_from: dict[str, str | None] = field(default_factory=dict)  # part -> where its first weights come from
    adapter: AdapterConfig | None = None  # train low-rank changes of what `start_from` names, not the networks
    audio: AudioConfig = field(default_factory=AudioConfig)
    data: DataConfig = field(default_factory=DataConfig)
    conditioners: ConditionersConfig = field(default_factory=ConditionersConfig)
    audiomae: AudioMAEConfig = field(default_factory=AudioMAEConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    vocoder: VocoderConfig = field(default_factory=VocoderConfig)
    unet: TUNetConfig = field(default_factory=TUNetConfig)
    gpt2: LOAGPT2Config = field(default_factory=LOAGPT2Config)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    sampling: Sampling = field(default_factory=Sampling)  # of previews, reports, `decoder`, and in the model folder
    training: TrainingConfig = field(default_factory=TrainingConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    @property
    def uses_loa(self) -> bool:
        """Whether there is a language of audio: AudioMAE, GPT-2 and a T-UNet that reads it."""
        return "loa" in self.unet.conditions

    @property
    def unet_conditioners(self) -> list[str]:
        """Conditioners that the T-UNet reads."""
        return [name for name in CONDITIONS if name in (*self.unet.conditions, self.unet.film)]

    @property
    def condition_names(self) -> list[str]:
        """Conditioners that any network reads."""
        used = {*self.unet_conditioners, *(self.gpt2.conditions if self.uses_loa else ())}
        return [name for name in CONDITIONS if name in used]

    def trainable_conditioners(self, names: Sequence[str]) -> list[str]:
        """Those of `names` that train in the stages that read them."""
        free = [name for name in names if not conditioner_class(name).has_own_stage]
        own = [name for name in free if getattr(self.conditioners, name).pretrained is None]
        return [name for name in own if name not in self.from_]

    def training_of(self, stage: str) -> StageConfig:
        """A stage's recipe."""
        return getattr(self.training, stage)

    @property
    def run_folder(self) -> Path:
        return Path(self.runs) / self.name

    @property
    def model_folder(self) -> Path:
        return self.run_folder / "model"

    @property
    def adapter_folder(self) -> Path:
        return self.run_folder / "adapter"

    def __post_init__(self) -> None:
        check_fields(self)
        check_name(self.name)
        if not re.fullmatch(r"auto|-1|[1-9]\d*|\d+,(\d+(,\d+)*)?", self.trainer.devices):
            raise UserError(f"trainer.devices={self.trainer.devices!r} has to be auto, a count, or ids as in 0,1")
        self.from_ = {part: source for part, source in self.from_.items() if source is not None}
        self.start_from = {part: source for part, source in self.start_from.items() if source is not None}
        self.check_conditions()
        for stage in self.stages:
            self.check_stage(stage)
        if self.adapter is not None:  # the base model is used as it is, so that `from` says the same
            self.start_from |= {name: self.from_.pop(name) for name in self.adapter.networks if name in self.from_}
            check_adapter(self, [STAGES[name] for name in self.stages])
        if self.training.decoder.sampled_from and "decoder" in self.stages:
            later = self.stages[self.stages.index("decoder") + 1 :]
            if changed := [stage for stage in later if stage in ("ldm", "gpt2", "joint", "distill")]:
                raise UserError(
                    f"stages: with training.decoder.sampled_from decoder reads the T-UNet; put it after {changed[-1]}"
                )
        self.check_fit()
        for stage in self.stages:
            STAGES[stage].check(self)

    def check_stage(self, name: str) -> None:
        """Raises UserError for a stage that is not there or has nothing to train."""
        if name not in STAGES:
            raise UserError(f"stages: {name}: {nearest(name, list(STAGES))}")
        recipe = self.training_of(name)
        if not any(weight and term not in recipe.delayed_terms for term, weight in recipe.loss_weights.items()):
            raise UserError(f"training.{name}.loss_weights: no term that is there from the first batch has a weight")
        if (made := STAGES[name].makes) in CONDITIONS and getattr(self.conditioners, str(made)) is None:
            raise UserError(f"stages: {name} trains conditioners.{made}, which is null; {{}} takes its defaults")
        if name == "image" and self.conditioners.image.pretrained is not None:  # type: ignore[union-attr]
            raise UserError("stages: image trains a small pair; set conditioners.image.pretrained=null or leave it out")
        if "gpt2" in STAGES[name].writes(self) and not self.uses_loa:
            raise UserError(f"stages: {name} trains GPT-2, but unet.conditions={self.unet.conditions} reads no loa")

    def check_conditions(self) -> None:
        """Raises UserError where a network is to read a condition that is not there."""
        film = [self.unet.film] if self.unet.film is not None else []
        for key, names in (
            ("unet.conditions", [name for name in self.unet.conditions if name != "loa"]),
            ("unet.film", film),
            ("gpt2.conditions", self.gpt2.conditions if self.uses_loa else []),
        ):
            for name in names:
                if name not in CONDITIONS:
                    also = ["loa"] if key == "unet.conditions" else []
                    raise UserError(f"{key}: {name}: {nearest(name, [*also, *CONDITIONS])}")
                if getattr(self.conditioners, name) is None:
                    raise UserError(f"{key} names {name}, but conditioners.{name} is null; {{}} takes its defaults")
        chosen = [f.name for f in dataclasses.fields(self.conditioners) if f.default is None]  # null unless asked for
        for name in chosen:
            if getattr(self.conditioners, name) is not None and name not in self.condition_names:
                raise UserError(f"conditioners.{name}: no network reads it; name it in gpt2.conditions")
        for name in self.diffusion.dropout_alone:
            if name not in ("loa", *CONDITIONS):
                raise UserError(f"diffusion.dropout_alone.{name}: {nearest(name, ['loa', *CONDITIONS])}")
        if len(set(self.gpt2.conditions)) != len(self.gpt2.conditions):
            raise UserError(f"gpt2.conditions={self.gpt2.conditions}: name each condition once")
        if film and getattr(self.conditioners, film[0]).num_tokens != 1:
            raise UserError(f"unet.film={film[0]}: joins one vector to the time embedding, and this has several")
        if self.uses_loa and not self.gpt2.conditions and "gpt2" in self.stages:
            raise UserError("gpt2.conditions is empty; name one condition or more")
        if self.uses_loa:
            self.check_positions()

    def check_positions(self) -> None:
        """Raises UserError where the longest prefix and LOA do not fit into GPT-2's positions."""
        prefix = sum(getattr(self.conditioners, name).num_tokens + 2 for name in self.gpt2.conditions)
        needed = prefix + max(loa_lengths(self.audiomae)) - 1
        if needed > self.gpt2.sizes[1]:
            raise UserError(
                f"gpt2.num_positions={self.gpt2.sizes[1]}, but conditions and LOA take up to {needed}; raise it, or "
                "shorten conditions"
            )

    def check_fit(self) -> None:
        """Raises UserError where two parts do not fit together."""
        rows, columns = (n // self.audiomae.patch_size for n in (self.audiomae.num_frames, self.audiomae.num_bins))
        for key, poolings in (
            ("audiomae.pooling", [self.audiomae.pooling]),
            ("audiomae.speech_pooling", [self.audiomae.speech_pooling or self.audiomae.pooling]),
            ("training.ldm.poolings", self.training.ldm.poolings),
        ):
            if undivided := [pooling for pooling in poolings if rows % pooling or columns % min(pooling, columns)]:
                raise UserError(
                    f"{key}: {undivided[0]} does not divide the {rows} rows and {columns} columns of AudioMAE's patches"
                )
        if self.audio.num_frames % self.audiomae.patch_size:
            raise UserError(
                f"audio.clip_seconds={self.audio.clip_seconds} gives {self.audio.num_frames} frames, which AudioMAE's "
                f"patches of {self.audiomae.patch_size} frames do not divide; choose another length"
            )
        if self.sampling.num_steps >= self.diffusion.num_timesteps:
            raise UserError(
                f"sampling.num_steps={self.sampling.num_steps} has to be below "
                f"diffusion.num_timesteps={self.diffusion.num_timesteps}"
            )
        if self.sampling.sampler == "lcm" and self.sampling.num_steps > self.training.distill.num_solver_steps:
            raise UserError(
                f"sampling.num_steps={self.sampling.num_steps} is above training.distill.num_solver_steps="
                f"{self.training.distill.num_solver_steps}, of which lcm takes a part"
            )
        for key, value, other, name in self.equal_sizes():
            if value != other:
                raise UserError(f"{key} is {value}, but {name} is {other}; make them equal")
        for name in ("num_mel_bins", "num_frames"):
            if getattr(self.audio, name) % self.vae.downsampling:
                raise UserError(
                    f"audio.{name}={getattr(self.audio, name)} does not divide by the VAE's downsampling of "
                    f"{self.vae.downsampling}; change it, or the number of vae.block_out_channels"
                )

    def equal_sizes(self) -> list[tuple[str, Any, Any, str]]:
        """(key, value, other value, what that is of) of sizes that two parts share."""
        audio, mae, vae, vocoder = self.audio, self.audiomae, self.vae, self.vocoder
        frames = "the frames of audio.clip_seconds"
        hop = "vocoder.istft.hop_length" if vocoder.kind == "istft" else "the product of vocoder.upsample_rates"
        latent_frames = audio.num_frames // vae.downsampling
        return [
            ("audio.hop_length", audio.hop_length, vocoder.hop_length, hop),
            ("vocoder.num_mel_bins", vocoder.num_mel_bins, audio.num_mel_bins, "audio.num_mel_bins"),
            ("vocoder.sample_rate", vocoder.sample_rate, audio.sample_rate, "audio.sample_rate"),
            ("audiomae.num_frames", mae.num_frames, audio.num_frames, frames),
            ("audiomae.num_bins", mae.num_bins, audio.num_fbank_bins, "audio.num_fbank_bins"),
            ("vae.sample_size", vae.sample_size, audio.num_frames, frames),
            ("unet.sample_size", self.unet.sample_size, latent_frames, "the latent frames of audio.clip_seconds"),
            ("unet.in_channels", self.unet.in_channels, vae.latent_channels, "vae.latent_channels"),
            ("unet.out_channels", self.unet.out_channels, self.unet.in_channels, "unet.in_channels"),
            ("gpt2.hidden_size", self.gpt2.hidden_size, mae.embed_dim, "audiomae.embed_dim"),
            ("gpt2.hidden_size", self.gpt2.hidden_size, self.gpt2.sizes[0], f"the width of {self.gpt2.pretrained}"),
        ]


def check_name(name: str) -> None:
    """UserError where runs/<name>/ would not be a folder of its own below `runs`."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or not name.isprintable() or len(name) > 200:
        raise UserError(f"name={name!r} has to name a folder inside `runs`")


def load_experiment(path: str | Path, overrides: list[str] | None = None) -> ExperimentConfig:
    """Schema, base files, YAML and `key=value` overrides, merged in this order.

    Raises UserError on an unknown key (with the nearest right name), a value of the wrong type or out of its range,
    or parts that do not fit together.
    """
    try:
        content = read_yaml(Path(path), ExperimentConfig)
        for override in overrides or []:
            for key, value in value_of(override, ExperimentConfig).items():
                OmegaConf.update(content, key, value, force_add=True)
        if "from" in content:  # a word that Python keeps for itself
            content["from_"] = content.pop("from")
        merged = OmegaConf.merge(OmegaConf.structured(ExperimentConfig), content)
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except ConfigKeyError as error:
        raise UserError(f"{path}: {unknown_key(error)}") from None
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {wrong_value(error)}") from None


def wrong_value(error: OmegaConfBaseException) -> str:
    """One line that names a key, and what it may hold where that is one of a few words."""
    key, text = str(error.full_key or "value").replace("from_", "from"), str(error).splitlines()[0]
    if found := re.fullmatch(r"Invalid value (.+), expected one of (\[.+\])", text):
        return f"{key}={found[1]}: {nearest(found[1], ast.literal_eval(found[2]))}"
    return f"{key}: {text}"


def unknown_key(error: ConfigKeyError) -> str:
    """One line that names an unknown key and the nearest right one."""
    key = str(error.key)
    if error.full_key == "data.allow_pipe":
        return "data.allow_pipe: a file does not permit commands; give --allow-pipe, or set AUDIOLDM2_ALLOW_PIPE=1"
    known = [f.name.rstrip("_") for f in dataclasses.fields(error.object_type)] if error.object_type else []  # type: ignore[arg-type]
    near = get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
    return f"unknown key {error.full_key or key!r}; {hint}"


def to_plain(config: Any) -> dict:
    """A config as plain dicts, lists, strings and numbers: what checkpoints and reports store."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def to_yaml(experiment: ExperimentConfig) -> str:
    """The experiment in full, as a file that `load_experiment` reads back."""
    settings = {name.rstrip("_"): value for name, value in to_plain(experiment).items()}
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
