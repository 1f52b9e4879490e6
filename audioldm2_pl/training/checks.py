"""Checks before the first batch: whether every stage to come has its data, its parts and its packages."""

from collections.abc import Sequence
from importlib.util import find_spec

from audioldm2_pl.conditioners.phonemes import prepare_espeak
from audioldm2_pl.config import ExperimentConfig
from audioldm2_pl.describe import build_on_meta
from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.hub.parts import group_parts
from audioldm2_pl.models.adapters import import_peft
from audioldm2_pl.shards.datamodule import AudioShards
from audioldm2_pl.shards.encoded import EncodedFolder
from audioldm2_pl.training.stage import Stage


def check_stages(experiment: ExperimentConfig, stages: Sequence[type[Stage]], folder: ModelFolder) -> None:
    """Raises UserError where one of the stages could not be trained after those before it."""
    names = [stage.name for stage in stages]
    if "phonemes" in experiment.condition_names and {"gpt2", "joint"} & set(names):
        prepare_espeak()
    if experiment.adapter is not None:
        import_peft()
    for package in experiment.trainer.loggers:
        if find_spec(package) is None:
            raise UserError(f"trainer.loggers: {package} is not installed; pip install {package}, or take it out")
    trainer = experiment.trainer
    if names and experiment.data.test and (trainer.validate_every_batches or trainer.sample_every_batches):
        experiment.data.open(experiment.data.test)
    made: set[str] = set()  # groups of parts that the stages before have made
    for stage in stages:
        check_parts(experiment, stage, folder, made)
        stage.check(experiment)
        check_data(experiment, stage)
        check_learning_rates(experiment, stage)
        made |= set(stage.writes(experiment))


def check_parts(experiment: ExperimentConfig, stage: type[Stage], folder: ModelFolder, made: set[str]) -> None:
    for group in stage.reads(experiment):
        part = group_parts(folder.path, group)[0]
        if group not in made and not folder.has(part):
            raise UserError(
                f"{stage.name}: needs {part}/, which {folder.path} has not and no stage before makes; train it first, "
                f"or name where it is in `from: {{{group}: …}}`"
            )


def check_data(experiment: ExperimentConfig, stage: type[Stage]) -> None:
    data, config, name = experiment.data, experiment.training_of(stage.name), stage.name
    shards = AudioShards(data, experiment.audio, 0, config.batch_size, config.read_seconds)
    shards.limit_clips(getattr(config, "max_clips", None))
    encodes = stage.reads_features and data.encoded
    if config.cache_features and not encodes:
        shards.check_whole(f"set training.{name}.cache_features=false")
    for source, path in zip(shards.train, data.encoded if encodes else ()):
        EncodedFolder(path, (), data.remote(path)).check_source(source, experiment.audio)


def check_learning_rates(experiment: ExperimentConfig, stage: type[Stage]) -> None:
    rates = experiment.training_of(stage.name).optimizer.learning_rates
    built = build_on_meta(experiment, stage) if any("." in name for name in rates) else None
    for name in rates:
        top, _, below = name.partition(".")
        if top not in stage.networks:
            raise UserError(
                f"training.{stage.name}.optimizer.learning_rates: no network {name!r}; there are "
                f"{', '.join(stage.networks)}"
            )
        network = None if built is None else built.network(top)
        if below and network is not None:
            try:
                network.get_submodule(below)
            except AttributeError:
                there = ", ".join(child for child, _ in network.named_children())
                raise UserError(
                    f"training.{stage.name}.optimizer.learning_rates: {top} has no {below!r}; it has {there}"
                ) from None
