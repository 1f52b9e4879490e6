"""What is there of an experiment under one seed: finished stages, the pace of the others, its scores."""

import csv
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from audioldm2_pl.atomic import read_json_object
from audioldm2_pl.config import to_plain
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.training.records import record_of
from audioldm2_pl.training.status import LEFT, StageStatus, status_of

from ..clips import digest_of_index
from .table import Reproduction, Row, Training


@dataclass
class TrainingState:
    stages: list[StageStatus]
    has_model: bool

    @property
    def is_finished(self) -> bool:
        return self.has_model and not self.left

    @property
    def left(self) -> list[StageStatus]:
        return [stage for stage in self.stages if stage.state in LEFT]

    @property
    def words(self) -> str:
        if self.is_finished:
            return "trained"
        done = [stage.name for stage in self.stages if stage.state == "finished"]
        begun = [f"{stage.name} {stage.batches:,} of {stage.budget:,}" for stage in self.left if stage.batches]
        return f"begun: {', '.join([*done, *begun])}" if done or begun else "not trained"


def state_of(training: Training) -> TrainingState:
    """UserError for a record or a checkpoint that is damaged."""
    experiment = training.experiment
    folder = ModelFolder(experiment.model_folder, experiment.from_, experiment.start_from)
    stages = [status_of(experiment, name, folder) for name in experiment.stages]
    return TrainingState(stages, experiment.model_folder.is_dir())


def seconds_per_batch(training: Training, stage: StageStatus) -> float | None:
    """Of a stage that has run: the time in its record or checkpoint, else by the median pace in its speed.csv."""
    if stage.seconds and stage.batches:
        return stage.seconds / stage.batches
    speed = training.folder / "logs" / stage.name / "speed.csv"
    if not speed.is_file():
        return None
    with speed.open(newline="") as file:
        rates = [float(row["value"]) for row in csv.DictReader(file) if row["name"] == "clips_per_second"]
    recipe = training.experiment.training_of(stage.name)
    return recipe.batch_size * num_devices(training) / median(rates) if rates else None


def num_devices(training: Training) -> int:
    """Of all machines, as far as the YAML tells: "auto" counts as one."""
    trainer = training.experiment.trainer
    listed = trainer.devices.split(",")
    count = len(listed) if len(listed) > 1 else int(trainer.devices) if trainer.devices.isdigit() else 1
    return count * trainer.num_nodes


def device_hours(training: Training, alike: list[Training]) -> tuple[float, list[str]]:
    """Hours on one device that are left, by the pace of this run or of one `alike`; stages whose pace nobody knows."""
    hours, unknown = 0.0, []
    states = {id(other): state_of(other) for other in alike}
    for stage in state_of(training).left:
        paces = [seconds_per_batch(training, stage)]
        for other in alike:
            paces += [seconds_per_batch(other, s) for s in states[id(other)].stages if s.name == stage.name]
        pace = next((pace for pace in paces if pace is not None), None)
        if pace is None:
            unknown.append(stage.name)
        else:
            hours += (stage.budget - stage.batches) * pace * num_devices(training) / 3600
    return hours, unknown


def score_file(found: Reproduction, row: Row, training: Training | None) -> Path:
    """Where the result of a row lies, of a seed or of its folder of clips."""
    if training is None:
        return found.output / "scores" / f"{clips_name(row)}.json"
    return training.folder / "report" / "scores" / f"{Path(found.table.protocol).stem}.{row.settings.system}.json"


def clips_name(row: Row) -> str:
    """A row that is not trained here, and where its clips are from, as a file's name."""
    name = f"{row.name}-{row.source}" if row.source else row.name
    return "".join(c if c.isalnum() else "_" for c in name).strip("_")


def is_scored(found: Reproduction, row: Row, training: Training | None) -> bool:
    """Whether a row's result is there, of this protocol, test set, sampling and model."""
    path = score_file(found, row, training)
    if not path.is_file() or not (found.test_set / "index.json").is_file():
        return False
    if read_json_object(path).get("protocol_sha256") != found.protocol.digest:
        return False
    if training is None:
        return True
    index = training.folder / "report" / "audio" / "index.json"
    origin = read_json_object(index).get("origin", {}) if index.is_file() else {}
    same = (digest_of_index(found.test_set), to_plain(training.experiment.sampling))
    records = [record_of(training.experiment, name) for name in training.experiment.stages]
    trained = max((record.stat().st_mtime for record in records if record.is_file()), default=0.0)
    return (origin.get("test"), origin.get("sampling")) == same and path.stat().st_mtime >= trained
