"""Runs an experiment's stages in order: finished ones are passed over, a broken-off one goes on."""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import multiprocessing
import os
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch import distributed

from audioldm2_pl.checkpoints import ModelFolder
from audioldm2_pl.config import ExperimentConfig, TrainerConfig
from audioldm2_pl.datamodule import AudioShards
from audioldm2_pl.errors import UserError
from audioldm2_pl.models.vocoder import check_front_end
from audioldm2_pl.seeds import seed_of
from audioldm2_pl.training.audiomae import AudioMAEPretraining
from audioldm2_pl.training.clap import CLAPPretraining
from audioldm2_pl.training.decoder import DecoderFinetuning
from audioldm2_pl.training.gpt2 import GPT2Finetuning
from audioldm2_pl.training.joint import JointFinetuning
from audioldm2_pl.training.ldm import LDMPretraining
from audioldm2_pl.training.ranks import (
    build_trainer,
    first_on_rank_zero,
    is_rank_zero,
    said_by_rank_zero,
    start_ranks,
)
from audioldm2_pl.training.records import checkpoint_of, is_finished, keep_parts, record_finished, rewind
from audioldm2_pl.training.samples import HEARD, Samples
from audioldm2_pl.training.stage import EMA, LossCurves, Resumable, Stage
from audioldm2_pl.training.vae import VAETraining
from audioldm2_pl.training.vocoder import VocoderTraining

STAGES: dict[str, type[Stage]] = {
    "clap": CLAPPretraining,
    "audiomae": AudioMAEPretraining,
    "vae": VAETraining,
    "vocoder": VocoderTraining,
    "decoder": DecoderFinetuning,
    "ldm": LDMPretraining,
    "gpt2": GPT2Finetuning,
    "joint": JointFinetuning,
}
INDEPENDENT = ("clap", "audiomae", "vae", "vocoder")  # stages that start from no other stage's parts
STAGE_GROUPS = {
    "clap": "clap",
    "audiomae": "audiomae",
    "vae": "vae",
    "vocoder": "vocoder",
    "ldm": "unet",
    "gpt2": "gpt2",
}
LOGGERS = ("tensorboard", "wandb")
Features = dict[str, dict[str, torch.Tensor]]  # clip's key -> what frozen networks said of it
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def train(experiment: ExperimentConfig, only: str | None = None) -> None:
    """Trains the experiment's stages, or `only` one of them, into runs/<name>/model.

    Raises UserError where a shard folder, a part or a stage is missing.
    """
    if only is not None and only not in STAGES:
        raise UserError(f"--stage {only}: no such stage; there are {', '.join(STAGES)}")
    prepare_process(experiment)
    start_ranks(experiment.trainer)
    started = time.perf_counter()
    folder = ModelFolder(experiment.model_folder, experiment.from_, experiment.start_from)
    first_on_rank_zero(folder.take_given)
    first_on_rank_zero(lambda: folder.take_pretrained(experiment.conditioners))
    first_on_rank_zero(lambda: folder.note_sampling(experiment.diffusion.sampling))
    if "vocoder" in folder.given:
        check_front_end(folder.load("vocoder"), experiment.audio)
    stages: list[str] = [only] if only else list(experiment.stages)
    for name in [name for name in stages if STAGE_GROUPS.get(name) in folder.given]:
        print(f"{name}: taken from {folder.given[STAGE_GROUPS[name]]}", flush=True)
        stages.remove(name)
    try:
        first = [name for name in stages if name in INDEPENDENT]
        if min(experiment.trainer.parallel_stages, len(first)) > 1:
            run_side_by_side(experiment, first, folder)
            stages = [name for name in stages if name not in first]
        features: Features = {}
        for name in stages:
            run_stage(experiment, name, folder, features)
    finally:
        if is_rank_zero():
            add_seconds(experiment.run_folder / "seconds.json", time.perf_counter() - started)


def prepare_process(experiment: ExperimentConfig) -> None:
    quieten()
    keep_freed_memory()
    if experiment.trainer.num_threads:
        torch.set_num_threads(experiment.trainer.num_threads)
    torch.set_float32_matmul_precision("high")


def keep_freed_memory() -> None:
    """Lets glibc's malloc keep what one batch frees for the next; given back and asked for anew, every page faults.

    A fifth to a third of a small network's time on a CPU. Other C libraries and the GPU's memory are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    for option, limit in ((M_MMAP_THRESHOLD, 2**28), (M_TRIM_THRESHOLD, 2**31 - 1)):
        if mallopt is not None:
            mallopt(option, limit)


def run_side_by_side(experiment: ExperimentConfig, names: list[str], folder: ModelFolder) -> None:
    """Stages that need nothing of each other, each in a process with its share of the cores.

    Small networks gain little from a second core; two stages at once use it fully.
    """
    if "WORLD_SIZE" in os.environ or distributed.is_initialized():
        raise UserError("trainer.parallel_stages is for one machine's CPU; under torchrun or srun set it to 1")
    count = min(experiment.trainer.parallel_stages, len(names))
    num_threads = max(1, (os.cpu_count() or 1) // count)
    trainer = replace(experiment.trainer, num_threads=num_threads, progress_bar=False)
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
        # the adversarial stages, which stand last, take longest: begun first they end with the others
        futures = [pool.submit(run_alone, replace(experiment, trainer=trainer), name, folder) for name in names[::-1]]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    folder.write_index()  # the processes' own indices do not know of each other


def run_alone(experiment: ExperimentConfig, name: str, folder: ModelFolder) -> None:
    prepare_process(experiment)
    run_stage(experiment, name, folder)


def add_seconds(path: Path, seconds: float) -> None:
    """Adds to the time that all calls of `train` have taken for this run."""
    before = json.loads(path.read_text())["train"] if path.is_file() else 0.0
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"train": before + seconds}) + "\n")


def run_stage(experiment: ExperimentConfig, name: str, folder: ModelFolder, features: Features | None = None) -> None:
    """One stage from its start, or from where it was broken off, to its parts in the model folder.

    `features` are those that the stages before have kept, with `cache_features`, and this one may add to.
    """
    if is_finished(experiment, name):
        return
    gc.collect()  # the stage before and its trainer refer to each other: weights, optimisers and caches would stay
    checkpoint = checkpoint_of(experiment, name)
    if is_rank_zero() and not checkpoint.is_file():
        rewind(experiment, name, folder)
    going_on = said_by_rank_zero(checkpoint.is_file())  # the other ranks wait for it
    torch.manual_seed(seed_of(experiment.seed, name))
    stage = STAGES[name](experiment, folder)
    if is_rank_zero():
        keep_parts(experiment, stage, folder)
    if features is not None:
        stage.kept = features
    config = stage.config
    data = AudioShards(
        experiment.data,
        experiment.audio,
        seed_of(experiment.seed, name, "data"),
        config.batch_size,
        stage.crop_seconds,
        experiment.run_folder / "quarantine.jsonl",
        stage.max_clips,
    )
    ema = EMA(config.ema_decay) if config.ema_decay is not None and stage.averaged else None
    resumable = Resumable(checkpoint, config.save_every_batches)
    # the average first: what is saved after a batch has to hold that batch's average
    callbacks = [*([ema] if ema else []), resumable]
    if experiment.trainer.sample_every_batches and name in HEARD and is_rank_zero():
        samples = experiment.run_folder / "samples" / name
        callbacks.append(Samples(experiment, samples, experiment.trainer.sample_every_batches, ema))
    trainer = trainer_of(experiment, stage, callbacks)
    print(
        f"{name}: {'goes on from ' + str(checkpoint) if going_on else 'starts'}, {config.batches} batches", flush=True
    )
    trainer.fit(stage, data, ckpt_path=str(checkpoint) if going_on else None, weights_only=True)
    if trainer.interrupted:
        raise UserError(f"{name}: interrupted; the same command goes on from the last checkpoint")
    if features and name in INDEPENDENT:  # another VAE or AudioMAE says other things
        features.clear()
    if trainer.is_global_zero:
        save_parts(stage, ema, folder)
        record_finished(experiment, stage, resumable.elapsed())
        checkpoint.unlink(missing_ok=True)
        for line in data.bad_clips():
            print(f"{name}: {line}", flush=True)
    trainer.strategy.barrier()


def save_parts(stage: Stage, ema: EMA | None, folder: ModelFolder) -> None:
    """What the stage has made, its averaged weights where there are some, goes into the model folder."""
    with ema.applied(stage) if ema else nullcontext():
        stage.finish()
        for part, content in stage.parts().items():
            folder.save(part, content)
    folder.note_sampling(stage.experiment.diffusion.sampling)


def trainer_of(experiment: ExperimentConfig, stage: Stage, callbacks: list[L.Callback]) -> L.Trainer:
    c, config = experiment.trainer, stage.config
    validate = c.validate_every_batches if experiment.data.test else None
    manual = not stage.automatic_optimization  # such a stage clips and accumulates by itself
    curves = LossCurves(experiment.run_folder / "logs" / stage.name / "metrics.csv", c.log_every_batches)
    return build_trainer(
        c,
        strategy=strategy_of(c, manual),
        max_epochs=1,
        limit_train_batches=config.batches,
        val_check_interval=min(validate, config.batches) if validate else None,
        limit_val_batches=c.validation_batches if validate else 0,
        num_sanity_val_steps=0,
        gradient_clip_val=None if manual else config.gradient_clip,
        accumulate_grad_batches=1 if manual else config.accumulate_batches,
        callbacks=[*callbacks, curves],
        logger=build_loggers(experiment, stage.name),
        log_every_n_steps=c.log_every_batches,
        default_root_dir=experiment.run_folder,
    )


def strategy_of(config: TrainerConfig, manual: bool) -> str:
    """Lightning's choice, but for adversarial stages in several processes: each of two losses reaches other weights."""
    num_gpus = torch.cuda.device_count() if config.accelerator in ("auto", "gpu") else 0
    num_devices = int(config.devices) if config.devices.isdigit() else num_gpus
    several = num_devices > 1 or config.num_nodes > 1 or distributed.is_initialized()
    return "ddp_find_unused_parameters_true" if several and manual else "auto"


def build_loggers(experiment: ExperimentConfig, stage: str) -> list:
    """The loggers asked for beside the CSV; wandb writes offline where there is no account."""
    loggers: list = []
    folder = experiment.run_folder / "logs" / stage
    for name in experiment.trainer.loggers:
        if name not in LOGGERS:
            raise UserError(f"trainer.loggers: no logger {name!r}; there are {', '.join(LOGGERS)}")
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
                )
            )
    return loggers


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
        ".*dataloader is not resumable.*",  # the data module is: it saves its place
    ):
        warnings.filterwarnings("ignore", text)
