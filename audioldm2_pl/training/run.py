"""Runs an experiment's stages in order: finished ones are passed over, a broken-off one goes on."""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import distributed

from audioldm2_pl.atomic import read_json_object, write_text
from audioldm2_pl.config import STAGES, ExperimentConfig
from audioldm2_pl.describe import training_flops
from audioldm2_pl.errors import Interrupted, UserError
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.models.vocoder import check_front_end
from audioldm2_pl.seeds import seed_of
from audioldm2_pl.shards.datamodule import AudioShards
from audioldm2_pl.training.adapter import adapt, output_folder
from audioldm2_pl.training.checkpoint import (
    Resumable,
    check_resumable,
    describe_changes,
    read_checkpoint,
    remove_checkpoints,
)
from audioldm2_pl.training.checks import check_stages
from audioldm2_pl.training.cost import Cost
from audioldm2_pl.training.ema import EMA
from audioldm2_pl.training.environment import note_call
from audioldm2_pl.training.exports import Exports, PartSaver
from audioldm2_pl.training.finite import FiniteLoss
from audioldm2_pl.training.interruption import INTERRUPTION
from audioldm2_pl.training.logging import CurveFile, LossCurves, build_loggers, quieten
from audioldm2_pl.training.progress import StageProgress
from audioldm2_pl.training.ranks import (
    broadcast_from_rank_zero,
    build_trainer,
    is_rank_zero,
    lost_ranks_told,
    rank_zero_first,
    start_ranks,
)
from audioldm2_pl.training.records import (
    back_up_parts,
    backup_of,
    checkpoint_of,
    exports_of,
    is_finished,
    locked,
    read_record,
    recipe,
    record_finished,
    remove_unfinished,
    rewind,
)
from audioldm2_pl.training.resume import resume_from, set_older_aside
from audioldm2_pl.training.samples import Samples
from audioldm2_pl.training.speed import Speed
from audioldm2_pl.training.stage import Stage
from audioldm2_pl.training.trainer import compile_networks, profiler_of, strategy_of

Features = dict[str, dict[str, torch.Tensor]]  # clip's id -> frozen networks' outputs
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
PR_SET_PDEATHSIG = 1  # of Linux's prctl.h


def train(experiment: ExperimentConfig, only: str | None = None, resume: int | None = None) -> None:
    """Trains the experiment's stages, or `only` one of them, into runs/<name>/model.

    The stage that is broken off goes on from its last checkpoint, or goes back to that of the batch `resume`.

    Raises UserError, before the first batch of the first stage, where one of them could not be trained, and Interrupted
    where a signal ends it.
    """
    if only is not None and only not in STAGES:
        raise UserError(f"--stage {only}: no such stage; there are {', '.join(STAGES)}")
    prepare_process(experiment)
    with INTERRUPTION.handled(), lost_ranks_told():
        start_ranks(experiment.trainer)
        with locked(experiment.run_folder) if is_rank_zero() else nullcontext():
            stages = [only] if only else list(experiment.stages)
            if resume is not None and is_rank_zero():
                resume_from(experiment, stages, resume)
            if is_rank_zero():
                note_call(experiment, stages)
            run_stages(experiment, stages)


def is_independent(experiment: ExperimentConfig, name: str) -> bool:
    """Whether a stage needs nothing that another stage makes."""
    return not STAGES[name].reads(experiment)


def run_stages(experiment: ExperimentConfig, stages: list[str]) -> None:
    started = time.perf_counter()
    links = experiment.adapter is not None
    folder = ModelFolder(experiment.model_folder, experiment.from_, experiment.start_from, links)
    output = output_folder(experiment, folder)
    if is_rank_zero():
        remove_unfinished(experiment, folder)
        output.restore()
    rank_zero_first(folder.take_given)
    rank_zero_first(lambda: folder.take_pretrained(experiment.conditioners, experiment.condition_names))
    rank_zero_first(lambda: folder.note_sampling(experiment.sampling))
    if "vocoder" in folder.given:
        check_front_end(folder.load("vocoder"), experiment.audio)
    for name in list(stages):
        if (made := STAGES[name].makes) is not None and made in folder.given:
            print(f"{name}: taken from {folder.given[made]}", flush=True)
            stages.remove(name)
    check_stages(experiment, [STAGES[name] for name in stages if not read_record(experiment, name, output)], folder)
    try:
        first = [name for name in stages if is_independent(experiment, name)]
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
    trainer = replace(experiment.trainer, num_threads=num_threads)
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
        # the adversarial stages, which stand last, take longest: begun first they end with the others
        futures = [pool.submit(run_alone, replace(experiment, trainer=trainer), name, folder) for name in names[::-1]]
        try:
            for future in futures:
                future.result()
        except BrokenProcessPool:
            raise UserError(
                "a stage's process was killed, by lack of memory perhaps; the same command goes on"
            ) from None
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, Interrupted):
                stop_stages(futures, multiprocessing.active_children())
                raise Interrupted(error.signum, "the stages are saved") from None
            raise
    folder.write_index()  # the processes' own indices do not know of each other


def stop_stages(futures: list[Future], processes: list[Any]) -> None:
    """Asks the processes to save and end, and waits for them."""
    for process in processes:
        process.terminate()
    wait(futures)


def run_alone(experiment: ExperimentConfig, name: str, folder: ModelFolder) -> None:
    prepare_process(experiment)
    if sys.platform == "linux":  # a stage whose `train` was killed would go on beside the one that resumes it
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    try:
        with INTERRUPTION.handled():
            run_stage(experiment, name, folder)
    except Interrupted as stop:  # the pool would have the process wait for more work
        print(stop, file=sys.stderr, flush=True)
        os._exit(128 + stop.signum)


def add_seconds(path: Path, seconds: float) -> None:
    """Adds to the time that all calls of `train` have taken for this run."""
    try:
        before = float(read_json_object(path)["train"]) if path.is_file() else 0.0
    except (UserError, KeyError, TypeError, ValueError):
        print(f"{path}: damaged; the time of earlier calls is not counted", flush=True)
        before = 0.0
    try:
        write_text(path, json.dumps({"train": before + seconds}) + "\n")
    except UserError as error:  # the error that ended the run is printed after this
        print(error, flush=True)


def run_stage(experiment: ExperimentConfig, name: str, folder: ModelFolder, features: Features | None = None) -> None:
    """One stage from its start, or from where it was broken off, to its parts in the model folder.

    `features` are those that the stages before have cached, with `cache_features`, and this one may add to.
    """
    output = output_folder(experiment, folder)
    if is_finished(experiment, name, output):
        return
    gc.collect()  # the stage before and its trainer refer to each other: weights, optimisers and caches would stay
    checkpoint = checkpoint_of(experiment, name)
    if is_rank_zero() and not checkpoint.is_file():
        set_older_aside(checkpoint)
        rewind(experiment, name, output)
    resumes = broadcast_from_rank_zero(checkpoint.is_file())  # the other ranks wait for it
    torch.manual_seed(seed_of(experiment.seed, name))
    stage = STAGES[name].build(experiment, folder)
    stage.seed, stage.model_folder = experiment.seed, folder
    if experiment.adapter is not None:
        backup = backup_of(experiment, name)
        adapt(stage, experiment.adapter, backup if backup.is_dir() else output.path)
    if is_rank_zero():
        back_up_parts(experiment, stage, output)
    if experiment.trainer.compile is not None:
        compile_networks(stage, experiment.trainer.compile)
    if features is not None:
        stage.shared_cache = features
    config = stage.config
    data = AudioShards(
        experiment.data,
        experiment.audio,
        seed_of(experiment.seed, name, "data"),
        config.batch_size,
        config.read_seconds,
        experiment.run_folder / "quarantine.jsonl",
    )
    data.limit_clips(getattr(config, "max_clips", None))
    ema = EMA(config.ema_decay) if config.ema_decay is not None and stage.averaged else None
    keep = experiment.trainer.keep_checkpoints
    resumable = Resumable(checkpoint, config.save_every_batches, recipe(experiment, name), INTERRUPTION, keep)
    print(f"{name}: {f'goes on from {checkpoint}' if resumes else 'starts'}, {config.batches} batches", flush=True)
    saver = PartSaver(stage, data, ema, output, experiment.sampling)
    cost = Cost(CurveFile(experiment.run_folder / "logs" / name / "cost.csv"), experiment.trainer.log_every_batches)
    if resumes and is_trained(checkpoint, stage, [ema, resumable, cost]):
        saver.save()
    else:
        callbacks = [*callbacks_of(experiment, saver), cost, resumable, saver]
        trainer = trainer_of(experiment, stage, callbacks, resumes)
        trainer.fit(stage, data, ckpt_path=str(checkpoint) if resumes else None, weights_only=True)
    if features and is_independent(experiment, name):  # another VAE or AudioMAE gives other features
        features.clear()
    if is_rank_zero():
        num_clips = config.batches * config.batch_size * data.world_size
        record_finished(experiment, stage, resumable, num_clips, cost.summary())
        remove_checkpoints(checkpoint)
        for line in data.bad_clips():
            print(f"{name}: {line}", flush=True)
    if distributed.is_initialized():
        distributed.barrier()


def is_trained(path: Path, stage: Stage, callbacks: list[Any]) -> bool:
    """Whether a checkpoint has all of the stage's batches; the stage then has its weights, and the callbacks theirs.

    `callbacks`: EMA or None, Resumable, Cost. Says what has changed since. Raises UserError where the stage cannot go
    on from it.
    """
    checkpoint = read_checkpoint(path)
    resumable = callbacks[1]
    changes = check_resumable(checkpoint, path, stage, resumable.recipe)
    states = checkpoint["callbacks"]
    resumable.changes = list(states.get("Resumable", {}).get("changes", []))
    if changes:
        print(f"{stage.name}: other settings from here on: {describe_changes(changes)}", flush=True)
        resumable.changes.append({"batch": checkpoint["AudioShards"]["batches"], "settings": changes})
    if checkpoint["AudioShards"]["batches"] < stage.config.batches:
        return False
    stage.load_state_dict(checkpoint["state_dict"], strict=stage.strict_loading)
    for callback in callbacks:
        if type(callback).__name__ in states:
            callback.load_state_dict(states[type(callback).__name__])
    return True


def callbacks_of(experiment: ExperimentConfig, saver: PartSaver) -> list[L.Callback]:
    """The average first: what is saved, previewed or logged after a batch has to hold that batch's average.

    Speed after what takes time but is no waiting for data.
    """
    stage, ema, config = saver.stage, saver.ema, experiment.trainer
    every = config.sample_every_batches
    callbacks: list[L.Callback] = [ema] if ema else []
    if every and type(stage).preview is not Stage.preview and is_rank_zero():
        callbacks.append(Samples(experiment, experiment.run_folder / "samples" / stage.name, every, ema))
    if config.export_every_batches:
        callbacks.append(Exports(saver, exports_of(experiment), config.export_every_batches, config.keep_exports))
    if config.progress_bar:
        callbacks.append(StageProgress(stage.name, stage.config.batches))
    logs, every = experiment.run_folder / "logs" / stage.name, config.log_every_batches
    return [
        *callbacks,
        Speed(CurveFile(logs / "speed.csv"), every, lambda: training_flops(experiment, stage)),
        FiniteLoss(config.on_nan, logs / "skipped.jsonl", every, config.spike_factor),
        LossCurves(CurveFile(logs / "metrics.csv"), every),
    ]


def trainer_of(experiment: ExperimentConfig, stage: Stage, callbacks: list[L.Callback], resumes: bool) -> L.Trainer:
    c, config = experiment.trainer, stage.config
    validate = c.validate_every_batches if experiment.data.test else None
    manual = not stage.automatic_optimization  # such a stage clips and accumulates by itself
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
        callbacks=callbacks,
        logger=build_loggers(experiment, stage.name, resumes),
        log_every_n_steps=c.log_every_batches,
        profiler=profiler_of(c, experiment.run_folder / "logs" / stage.name),
        default_root_dir=experiment.run_folder,
    )
