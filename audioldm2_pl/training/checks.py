"""What can be told before the first batch: whether every stage to come has its data, its parts and its packages."""

from collections.abc import Sequence
from importlib.util import find_spec

from audioldm2_pl.conditioners.phonemes import prepare_espeak
from audioldm2_pl.config import ExperimentConfig
from audioldm2_pl.describe import build_networks
from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.folder import GROUPS, ModelFolder
from audioldm2_pl.shards.datamodule import AudioShards
from audioldm2_pl.shards.encoded import EncodedFolder
from audioldm2_pl.training.records import WRITES
from audioldm2_pl.training.stage import Stage

WHOLE_CLIPS = ("audiomae", "ldm", "gpt2", "joint")  # stages whose AudioMAE reads clips of one length


def check_stages(experiment: ExperimentConfig, stages: Sequence[type[Stage]], folder: ModelFolder) -> None:
    """Raises UserError where one of the stages could not be trained after those before it."""
    names = [stage.name for stage in stages]
    if experiment.is_speech and {"gpt2", "joint"} & set(names):
        prepare_espeak()
    for package in experiment.trainer.loggers:
        if find_spec(package) is None:
            raise UserError(f"trainer.loggers: {package} is not installed; pip install {package}, or take it out")
    trainer = experiment.trainer
    if names and experiment.data.test and (trainer.validate_every_batches or trainer.sample_every_batches):
        experiment.data.open(experiment.data.test)
    made: set[str] = set()  # groups of parts that the stages before have made
    for name, stage in zip(names, stages):
        check_parts(experiment, name, folder, made)
        check_lengths(experiment, name)
        check_data(experiment, name)
        check_learning_rates(experiment, stage)
        made |= set(WRITES[name])


def reads(experiment: ExperimentConfig, name: str) -> tuple[str, ...]:
    """The groups of parts that a stage takes from the model folder."""
    if name == "ldm":
        return ("vae", "clap" if experiment.unet.film_dim is not None else "audiomae")
    if name == "decoder" and experiment.training.decoder.sampled_from:
        return ("vae", "unet", "vocoder", "clap", *(() if experiment.unet.film_dim is not None else ("gpt2",)))
    others = {"decoder": ("vae",), "gpt2": ("clap", "audiomae"), "joint": ("unet", "gpt2", "clap", "vae", "audiomae")}
    return others.get(name, ())


def check_parts(experiment: ExperimentConfig, name: str, folder: ModelFolder, made: set[str]) -> None:
    for group in reads(experiment, name):
        part = GROUPS[group][0]
        if group not in made and not folder.has(part):
            raise UserError(
                f"{name}: needs {part}/, which {folder.path} has not and no stage before makes; train it first, "
                f"or name where it is in `from: {{{group}: …}}`"
            )


def check_lengths(experiment: ExperimentConfig, name: str) -> None:
    audio, seconds = experiment.audio, experiment.training_of(name).read_seconds
    num_frames = audio.num_frames if seconds is None else round(seconds * audio.sample_rate) // audio.hop_length
    is_audioldm1 = name == "ldm" and experiment.unet.film_dim is not None
    if name in WHOLE_CLIPS and not is_audioldm1 and num_frames != audio.num_frames:
        raise UserError(
            f"training.{name}.crop_seconds={seconds}: AudioMAE reads whole clips of {audio.clip_seconds} s; "
            "set it to null"
        )
    if name in ("vae", "decoder", "ldm", "joint") and num_frames % experiment.vae.downsampling:
        raise UserError(
            f"training.{name}.crop_seconds={seconds} is {num_frames} frames, which the VAE's downsampling of "
            f"{experiment.vae.downsampling} does not divide; choose another length"
        )


def check_data(experiment: ExperimentConfig, name: str) -> None:
    data, config = experiment.data, experiment.training_of(name)
    shards = AudioShards(
        data, experiment.audio, 0, config.batch_size, config.read_seconds, max_clips=getattr(config, "max_clips", None)
    )
    encodes = name in ("ldm", "gpt2", "joint") and data.encoded
    if config.cache_features and not encodes:
        shards.check_whole(f"set training.{name}.cache_features=false")
    for source, path in zip(shards.train, data.encoded if encodes else ()):
        EncodedFolder(path, (), data.remote(path)).check_source(source, experiment.audio)


def check_learning_rates(experiment: ExperimentConfig, stage: type[Stage]) -> None:
    rates = experiment.training_of(stage.name).optimizer.learning_rates
    networks = build_networks(experiment) if any("." in name for name in rates) else {}
    for name in rates:
        top, _, below = name.partition(".")
        if top not in stage.networks:
            raise UserError(
                f"training.{stage.name}.optimizer.learning_rates: no network {name!r}; there are "
                f"{', '.join(stage.networks)}"
            )
        network = networks.get(top.replace("_", " "))
        if below and network is not None:
            try:
                network.get_submodule(below)
            except AttributeError:
                there = ", ".join(child for child, _ in network.named_children())
                raise UserError(
                    f"training.{stage.name}.optimizer.learning_rates: {top} has no {below!r}; it has {there}"
                ) from None
