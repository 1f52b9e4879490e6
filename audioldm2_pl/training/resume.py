"""`train --resume N`: a stage goes back to the checkpoint of an earlier batch; later ones are set aside."""

import os
from itertools import count
from pathlib import Path

from audioldm2_pl.atomic import link_file, written_whole
from audioldm2_pl.config import ExperimentConfig
from audioldm2_pl.errors import UserError
from audioldm2_pl.training.checkpoint import SET_ASIDE, numbered_name, older_checkpoints, read_checkpoint
from audioldm2_pl.training.records import checkpoint_of, record_of


def resume_from(experiment: ExperimentConfig, stages: list[str], num_batches: int) -> None:
    """Takes the one of the stages that is broken off back to its checkpoint of so many batches.

    Raises UserError where there is no such checkpoint, no such stage, or several.
    """
    finished = [name for name in stages if record_of(experiment, name).is_file()]
    paths = [checkpoint_of(experiment, name) for name in stages if name not in finished]
    begun = [path for path in paths if path.is_file() or older_checkpoints(path)]
    if len(begun) > 1:
        names = ", ".join(path.stem for path in begun)
        raise UserError(f"--resume {num_batches}: {names} are stopped; say with --stage which goes back")
    if not begun:
        why = f"; a finished stage keeps none ({', '.join(finished)})" if finished else ""
        raise UserError(f"--resume {num_batches}: no stage is stopped at a checkpoint{why}; leave --resume out")
    go_back(begun[0], num_batches)


def go_back(path: Path, num_batches: int) -> None:
    """Makes an older checkpoint of a stage the latest, which is at `path`, and says where it puts those after it.

    Raises UserError where it is not there. A kill in between loses nothing; the same command does the rest.
    """
    stage, older, latest = path.stem, older_checkpoints(path), batches_of(path)
    if num_batches == latest:
        return
    if num_batches not in older:
        there = ", ".join(map(str, sorted({*older, latest} - {None}))) or "none"
        raise UserError(f"--resume {num_batches}: {stage} has no checkpoint of that batch; there are: {there}")
    moved = []
    for number, later in older.items():
        if number > num_batches:
            moved.append(set_aside(later, later.stem))
            later.unlink()
    if path.is_file():
        moved.append(set_aside(path, numbered_name(stage, latest) if latest else f"{stage}-damaged"))
    os.replace(older[num_batches], path)
    print(f"{stage}: back at batch {num_batches}, its logs too{kept(moved, stage)}", flush=True)


def batches_of(path: Path) -> int | None:
    """How many batches a checkpoint has trained; None where there is none that can be read."""
    try:
        return read_checkpoint(path)["AudioShards"]["batches"] if path.is_file() else None
    except UserError:
        return None


def set_aside(path: Path, name: str) -> Path:
    """Links a checkpoint to where no stage looks for it, by a name that is free there."""
    names = (f"{name}.ckpt" if number == 1 else f"{name}-{number}.ckpt" for number in count(1))
    target = next(target for target in (path.parent / SET_ASIDE / name for name in names) if not target.exists())
    with written_whole(target) as part:
        link_file(path, part)
    return target


def set_older_aside(path: Path) -> None:
    """Before a stage begins anew, since its latest checkpoint is gone: the older ones are of another training."""
    moved = []
    for older in older_checkpoints(path).values():
        moved.append(set_aside(older, older.stem))
        older.unlink()
    if moved:
        print(f"{path.stem}: begins anew, for {path.name} is gone{kept(moved, path.stem)}", flush=True)


def kept(paths: list[Path], stage: str) -> str:
    names = ", ".join(map(str, paths))
    return f"; kept until {stage} is finished: {names}" if names else ""
