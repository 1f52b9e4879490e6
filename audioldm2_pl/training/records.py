"""What a run remembers of its stages: which are finished, with what settings, and from what parts they began.

runs/<name>/stages/<stage>.json    a finished stage; delete it to train the stage anew
runs/<name>/stages/<stage>/        the parts that the stage has overwritten, as they were when it began
"""

import fcntl
import filecmp
import json
import os
import resource
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from audioldm2_pl.atomic import link_tree, read_json_object, restore_folders, write_text
from audioldm2_pl.config import STAGES, ExperimentConfig, to_plain
from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.hub.parts import GROUPS
from audioldm2_pl.seeds import seed_of
from audioldm2_pl.shards.datamodule import DataConfig
from audioldm2_pl.training.checkpoint import Resumable, changed_settings, describe_changes, remove_checkpoints
from audioldm2_pl.training.ranks import broadcast_from_rank_zero
from audioldm2_pl.training.stage import Stage

NO_RECIPE = ("save_every_batches", "cache_features")  # fields of a stage's recipe that change no result


def recipe(experiment: ExperimentConfig, name: str) -> dict[str, Any]:
    """What decides a stage's result: its settings, plain, to be compared with a finished stage's."""
    config, stage = to_plain(experiment), STAGES[name]
    settings = list(stage.settings)
    if name == "decoder" and experiment.training.decoder.sampled_from:
        settings = [*STAGES["joint"].settings, "sampling"]
    if experiment.adapter is not None:
        settings += ["adapter", "start_from"]
    sections = {section: config[section] for section in ("seed", "audio", *settings)}
    training = {key: value for key, value in config["training"][name].items() if key not in NO_RECIPE}
    data = {"train": corpora(experiment.data), "weights": experiment.data.weights}
    return {**sections, "training": training, "data": data, "precision": experiment.trainer.precision}


def corpora(data: DataConfig) -> list[str]:
    """The shards of each folder of `data.train` by a digest of their checksums: a folder that moves stays the same."""
    digests = []
    for path in data.train:
        shards = data.open(path).index["shards"]
        content = [(shard["name"], shard["num_clips"], shard.get("sha256")) for shard in shards]
        digests.append(f"{seed_of(content):016x}")
    return digests


def record_of(experiment: ExperimentConfig, name: str) -> Path:
    """The file that says that a stage is finished, with what settings and in what time."""
    return experiment.run_folder / "stages" / f"{name}.json"


def checkpoint_of(experiment: ExperimentConfig, name: str) -> Path:
    """Where a stage that is broken off goes on from."""
    return experiment.run_folder / "checkpoints" / f"{name}.ckpt"


def exports_of(experiment: ExperimentConfig) -> Path:
    """The folder of the model folders that stages leave while they train."""
    return experiment.run_folder / "exports"


def read_record(experiment: ExperimentConfig, name: str, folder: ModelFolder) -> dict[str, Any]:
    """What is recorded of a finished stage; empty where it is not finished.

    Raises UserError where the record is damaged, or what the stage has written is gone.
    """
    path = record_of(experiment, name)
    if not broadcast_from_rank_zero(path.is_file()):
        return {}
    record = read_json_object(path)
    if lost := [part for part in record.get("parts", ()) if not folder.has(part)]:
        raise UserError(
            f"{name}: finished, but {folder.path / lost[0]} is gone; put it back, or delete {path} to train {name} anew"
        )
    return record


def is_finished(experiment: ExperimentConfig, name: str, folder: ModelFolder) -> bool:
    """Whether there is nothing left to train; says so, and whether that was with other settings."""
    record = read_record(experiment, name, folder)
    if not record:
        return False
    try:
        changes = changed_settings(name, record.get("recipe", {}), recipe(experiment, name))
    except UserError:  # the shards may have gone since
        changes = {}
    line = f"{name}: finished"
    if changes:
        line += (
            f" with other settings ({describe_changes(changes)}); delete {record_of(experiment, name)} to train anew"
        )
    print(line, flush=True)
    return True


def record_finished(
    experiment: ExperimentConfig, stage: Stage, resumable: Resumable, num_clips: int, cost: dict[str, float]
) -> None:
    report = {
        "seconds": resumable.elapsed(),
        "batches": stage.config.batches,
        "clips": num_clips,
        **peak_memory(),
        **cost,
        "parts": list(stage.saved_parts()),
        "resumed_with_other_settings": resumable.changes,
        "recipe": resumable.recipe,
    }
    write_text(record_of(experiment, stage.name), json.dumps(report, indent=2) + "\n")
    print(f"{stage.name}: finished in {report['seconds']:.0f} s", flush=True)


def peak_memory() -> dict[str, float]:
    """Most memory that this process has held, on the host and, where there is one, on the GPU."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    host /= 2**30 if sys.platform == "darwin" else 2**20  # in bytes there, elsewhere in KiB
    gpu = {"peak_gpu_memory_gib": torch.cuda.max_memory_allocated() / 2**30} if torch.cuda.is_available() else {}
    return {"peak_memory_gib": host, **gpu}


def backup_of(experiment: ExperimentConfig, name: str) -> Path:
    """The folder of the parts that a stage has overwritten, as they were when it began; empty where there were none."""
    return experiment.run_folder / "stages" / name


def back_up_parts(experiment: ExperimentConfig, stage: Stage, folder: ModelFolder) -> None:
    """Before a stage's first batch: copies those parts of the model folder that it will write over."""
    backup = backup_of(experiment, stage.name)
    if backup.is_dir():
        return
    new = backup.with_name(f".{backup.name}.part")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for part in stage.saved_parts():
        if folder.has(part):
            link_tree(folder.path / part, new / part)
        elif stage.saved is not None:  # an adapter that is trained anew begins with none
            (new / part).mkdir()
    new.rename(backup)


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Holds a run for this process; the lock dies with it. Raises UserError where another `train` holds the run."""
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read() or "another process"
            raise UserError(f"{run}: {holder} trains this run; wait for it, or give another name") from None
        except OSError:  # a file system without locks
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def remove_unfinished(experiment: ExperimentConfig, folder: ModelFolder) -> None:
    """Undoes what killed processes have left half-written."""
    folder.restore()
    restore_folders(exports_of(experiment))
    run = experiment.run_folder
    for path in (*run.glob(".*.part"), *run.glob("stages/.*"), *run.glob("checkpoints/**/.*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def rewind(experiment: ExperimentConfig, name: str, folder: ModelFolder) -> None:
    """A stage that is trained anew begins from what it first began from, not from what it or later stages made of that.

    Later stages that went on from its parts are undone too, last first: there will be other parts to go on from.
    """
    if not backup_of(experiment, name).is_dir():
        return  # it has never begun
    written = {part for group in STAGES[name].writes(experiment) for part in GROUPS[group]}
    later = list(STAGES)[list(STAGES).index(name) + 1 :]
    for other in reversed(later):
        backup = backup_of(experiment, other)
        if not any((backup / part).is_dir() for part in written):
            continue
        restore_parts(backup, folder)
        record_of(experiment, other).unlink(missing_ok=True)
        remove_checkpoints(checkpoint_of(experiment, other))
        shutil.rmtree(backup)
        print(f"{other}: undone, for it went on from what {name} makes anew; train it again after {name}", flush=True)
    restore_parts(backup_of(experiment, name), folder)


def restore_parts(backup: Path, folder: ModelFolder) -> None:
    """The backup parts, where there are some, take the place of those in the model folder."""
    for source in sorted(backup.iterdir()):
        target = folder.path / source.name
        if target.is_dir() and is_same_tree(source, target):
            continue
        new = folder.path / f".{source.name}.part"
        shutil.rmtree(new, ignore_errors=True)
        link_tree(source, new)
        folder.replace(source.name, new)
    folder.write_index()


def is_same_tree(a: Path, b: Path) -> bool:
    """Whether two folders have the same files, by name, size and time, else by content."""
    names = [sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()) for root in (a, b)]
    return names[0] == names[1] and all(filecmp.cmp(a / name, b / name) for name in names[0])
