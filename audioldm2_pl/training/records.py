"""What a run remembers of its stages: which are finished, with what settings, and from what parts they began.

runs/<name>/stages/<stage>.json    a finished stage; delete it to train the stage anew
runs/<name>/stages/<stage>/        the parts that the stage has overwritten, as they were when it began
"""

import filecmp
import json
import os
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from audioldm2_pl.checkpoints import GROUPS, ModelFolder
from audioldm2_pl.config import ExperimentConfig, to_plain
from audioldm2_pl.training.ranks import said_by_rank_zero
from audioldm2_pl.training.stage import Stage

DEPENDS_ON = {  # stage -> sections of the config beside its recipe that decide what it becomes
    "clap": ("conditioners",),
    "audiomae": ("audiomae",),
    "vae": ("vae",),
    "vocoder": ("vocoder",),
    "decoder": ("vae",),
    "ldm": ("conditioners", "audiomae", "vae", "unet", "diffusion"),
    "gpt2": ("conditioners", "audiomae", "gpt2"),
    "joint": ("conditioners", "audiomae", "vae", "unet", "gpt2", "diffusion"),
}
GENERATION_SETTINGS = ("sampler", "num_steps", "guidance_scale", "eta", "unconditional", "candidates")
WRITES = {  # stage -> groups of parts that it writes; where two write the same, the later goes on from the earlier's
    "clap": ("clap",),
    "audiomae": ("audiomae",),
    "vae": ("vae",),
    "vocoder": ("vocoder",),
    "decoder": ("vae",),
    "ldm": ("unet", "t5"),
    "gpt2": ("gpt2", "t5"),
    "joint": ("unet", "gpt2", "t5"),
}


def recipe(experiment: ExperimentConfig, name: str) -> dict[str, Any]:
    """What decides a stage's result: its settings, plain, to be compared with a finished stage's."""
    config = to_plain(experiment)
    samples = name == "decoder" and experiment.training.decoder.sampled_from
    if not samples:
        for key in GENERATION_SETTINGS:
            config["diffusion"].pop(key)
    depends_on = DEPENDS_ON["joint"] if samples else DEPENDS_ON[name]
    sections = {section: config[section] for section in ("seed", "audio", *depends_on)}
    return {**sections, "training": config["training"][name]}


def record_of(experiment: ExperimentConfig, name: str) -> Path:
    """The file that says that a stage is finished, with what settings and in what time."""
    return experiment.run_folder / "stages" / f"{name}.json"


def checkpoint_of(experiment: ExperimentConfig, name: str) -> Path:
    """Where a stage that is broken off goes on from."""
    return experiment.run_folder / "checkpoints" / f"{name}.ckpt"


def is_finished(experiment: ExperimentConfig, name: str) -> bool:
    """Whether there is nothing left to train; says so, and whether that was with other settings."""
    record = record_of(experiment, name)
    if not said_by_rank_zero(record.is_file()):
        return False
    same = json.loads(record.read_text())["recipe"] == recipe(experiment, name)
    other = f"finished with other settings; delete {record} to train it anew"
    print(f"{name}: {'finished' if same else other}", flush=True)
    return True


def record_finished(experiment: ExperimentConfig, stage: Stage, seconds: float) -> None:
    record = record_of(experiment, stage.name)
    record.parent.mkdir(parents=True, exist_ok=True)
    report = {"seconds": seconds, "batches": stage.config.batches, **peak_memory()}
    record.write_text(json.dumps({**report, "recipe": recipe(experiment, stage.name)}, indent=2) + "\n")
    print(f"{stage.name}: finished in {seconds:.0f} s", flush=True)


def peak_memory() -> dict[str, float]:
    """Most memory that this process has held, on the host and, where there is one, on the GPU."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    host /= 2**30 if sys.platform == "darwin" else 2**20  # in bytes there, elsewhere in KiB
    gpu = {"peak_gpu_memory_gib": torch.cuda.max_memory_allocated() / 2**30} if torch.cuda.is_available() else {}
    return {"peak_memory_gib": host, **gpu}


def kept_parts(experiment: ExperimentConfig, name: str) -> Path:
    """The folder of the parts that a stage has overwritten, as they were when it began; empty where there were none."""
    return experiment.run_folder / "stages" / name


def keep_parts(experiment: ExperimentConfig, stage: Stage, folder: ModelFolder) -> None:
    """Before a stage's first batch: keeps those parts of the model folder that it will write over."""
    kept = kept_parts(experiment, stage.name)
    if kept.is_dir():
        return
    new = kept.with_name(f".{kept.name}.{os.getpid()}")
    new.mkdir(parents=True)
    for part in filter(folder.has, stage.parts()):
        link_tree(folder.path / part, new / part)
    new.rename(kept)


def rewind(experiment: ExperimentConfig, name: str, folder: ModelFolder) -> None:
    """A stage that is trained anew begins from what it first began from, not from what it or later stages made of that.

    Later stages that went on from its parts are undone too, last first: there will be other parts to go on from.
    """
    if not kept_parts(experiment, name).is_dir():
        return  # it has never begun
    written = {part for group in WRITES[name] for part in GROUPS[group]}
    later = list(WRITES)[list(WRITES).index(name) + 1 :]
    for other in reversed(later):
        kept = kept_parts(experiment, other)
        if not any((kept / part).is_dir() for part in written):
            continue
        bring_back(kept, folder)
        record_of(experiment, other).unlink(missing_ok=True)
        checkpoint_of(experiment, other).unlink(missing_ok=True)
        shutil.rmtree(kept)
        print(f"{other}: undone, for it went on from what {name} makes anew; train it again after {name}", flush=True)
    bring_back(kept_parts(experiment, name), folder)


def bring_back(kept: Path, folder: ModelFolder) -> None:
    """The kept parts, where there are some, take the place of those in the model folder."""
    for source in sorted(kept.iterdir()):
        target = folder.path / source.name
        if target.is_dir() and is_same_tree(source, target):
            continue
        new = folder.path / f".{source.name}.part"
        shutil.rmtree(new, ignore_errors=True)
        link_tree(source, new)
        shutil.rmtree(target, ignore_errors=True)
        new.rename(target)
    folder.write_index()


def link_tree(source: Path, target: Path) -> None:
    """A copy of a folder; it takes no room where the file system has hard links, for parts are replaced, not edited."""

    def link(a: str, b: str) -> str:
        try:
            os.link(a, b)
        except OSError:
            shutil.copy2(a, b)
        return b

    shutil.copytree(source, target, copy_function=link)


def is_same_tree(a: Path, b: Path) -> bool:
    """Whether two folders have the same files, by name, size and time, else by content."""
    names = [sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()) for root in (a, b)]
    return names[0] == names[1] and all(filecmp.cmp(a / name, b / name) for name in names[0])
