"""How far a run is: which stages are finished, stopped, changed since, and what comes next. Reads files alone."""

import csv
import fcntl
from dataclasses import dataclass, field
from pathlib import Path

from audioldm2_pl.atomic import read_json_object
from audioldm2_pl.config import STAGES, ExperimentConfig
from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.training.adapter import output_folder
from audioldm2_pl.training.checkpoint import Changes, changed_settings, describe_changes, read_checkpoint
from audioldm2_pl.training.records import checkpoint_of, recipe, record_of

LEFT = ("stopped", "begun, nothing saved", "not begun")  # states of a stage that is still to be trained


@dataclass
class StageStatus:
    name: str
    state: str  # "finished", one of LEFT, or where its parts are taken from
    batches: int = 0  # trained
    budget: int = 0
    seconds: float | None = None  # in training
    changes: Changes = field(default_factory=dict)  # of the settings since
    lost: list[str] = field(default_factory=list)  # parts that it wrote and that are gone

    @property
    def notes(self) -> list[str]:
        lines = [f"settings have changed: {describe_changes(self.changes)}"] if self.changes else []
        return lines + [f"{part}/ is gone from the model folder" for part in self.lost]


def status_of(experiment: ExperimentConfig, name: str, folder: ModelFolder) -> StageStatus:
    """One stage of the experiment. Raises UserError for a record or a checkpoint that is damaged."""
    budget = getattr(experiment.training, name).batches
    if (made := STAGES[name].makes) is not None and made in folder.given:
        return StageStatus(name, f"taken from {folder.given[made]}")
    record, checkpoint = record_of(experiment, name), checkpoint_of(experiment, name)
    if record.is_file():
        found = read_json_object(record)
        lost = [part for part in found.get("parts", ()) if not output_folder(experiment, folder).has(part)]
        changes = changes_since(experiment, name, found.get("recipe", {}))
        return StageStatus(name, "finished", found.get("batches", 0), budget, found.get("seconds"), changes, lost)
    if checkpoint.is_file():
        content = read_checkpoint(checkpoint)
        own = content["callbacks"].get("Resumable", {})
        changes = changes_since(experiment, name, own.get("recipe", {}))
        return StageStatus(name, "stopped", content["AudioShards"]["batches"], budget, own.get("seconds"), changes)
    if (logged := last_batch(curves_of(experiment, name))) is not None:
        return StageStatus(name, "begun, nothing saved", logged, budget)
    return StageStatus(name, "not begun", 0, budget)


def changes_since(experiment: ExperimentConfig, name: str, before: dict) -> Changes:
    """None where the shards, whose checksums belong to the settings, are not here."""
    try:
        return changed_settings(name, before, recipe(experiment, name))
    except UserError:
        return {}


def curves_of(experiment: ExperimentConfig, name: str) -> Path:
    return experiment.run_folder / "logs" / name / "metrics.csv"


def last_batch(curves: Path) -> int | None:
    """Of the losses that are logged so far."""
    if not curves.is_file():
        return None
    with curves.open(newline="") as file:
        batches = [int(row[0]) for row in csv.reader(file) if row and row[0].isdigit()]
    return batches[-1] if batches else None


def holder_of(run: Path) -> str | None:
    """Who trains the run just now."""
    path = run / ".lock"
    if not path.is_file():
        return None
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read() or "another process"
        except OSError:  # a file system without locks
            return None
    return None


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def describe_status(experiment: ExperimentConfig, command: str) -> str:
    """The stages in a table, and what comes next; `command` trains the experiment."""
    folder = ModelFolder(experiment.model_folder, experiment.from_, experiment.start_from)
    stages = [status_of(experiment, name, folder) for name in experiment.stages]
    width = max(len(stage.state) for stage in stages)
    lines = [f"{experiment.run_folder}"]
    for stage in stages:
        batches = f"{stage.batches:,} of {stage.budget:,} batches" if stage.budget else ""
        lines.append(f"  {stage.name:<10}{stage.state:<{width + 2}}{batches:<28}{duration(stage.seconds)}".rstrip())
        lines += [f"  {'':<10}{note}" for note in stage.notes]
    left = next((stage.name for stage in stages if stage.state in LEFT), None)
    if holder := holder_of(experiment.run_folder):
        at = f" {left}, batch {last_batch(curves_of(experiment, left)) or 0:,}," if left else ""
        lines.append(f"in training:{at} by {holder}")
    elif left is None:
        lines.append(f"finished: {experiment.model_folder}")
    else:
        lines.append(f"next: {left}, by {command}")
    return "\n".join(lines)
