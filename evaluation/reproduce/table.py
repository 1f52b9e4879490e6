"""One table: its rows, and the experiments, protocol and published numbers that belong to each."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from audioldm2_pl.config import ExperimentConfig, check_name, load_experiment, unknown_key, wrong_value
from audioldm2_pl.errors import UserError
from audioldm2_pl.experiment_file import values_of
from audioldm2_pl.fields import bounded, check_fields, nearest
from audioldm2_pl.hub.parts import GROUPS

from ..protocols import Protocol, load_protocol
from ..report.published import FOLDER, PublishedTable, published_tables

TABLES = Path(__file__).with_name("tables")
SPLITS = ("test", "judge")  # of an experiment's data, beside train
SYSTEM_WORDS = Literal["text_to_audio", "loa_to_audio", "real"]


@dataclass
class RowSettings:
    """A row: an experiment's, a rival's, or the recordings'."""

    name: str = "???"
    experiment: str | None = None  # its YAML, a path from the table's folder; null: not trained here
    after: list[str] = field(default_factory=list)  # YAMLs that are trained before it, for it starts from them
    overrides: list[str] = field(default_factory=list)  # key=value, changes to the experiment
    run: str | None = None  # names its run; null: the experiment's name
    system: SYSTEM_WORDS = "text_to_audio"  # what is scored: from text, from AudioMAE's LOA, the recordings
    published: str | None = None  # its name in the published table; null: `name`
    occurrence: int = bounded(1, ge=1, le=100)  # of that name in the published table, which may have it twice
    peer: str | None = None  # SYSTEM:SOURCE of `evaluation generate` that gives this row's clips, to be asked for


@dataclass
class SharedParts:
    """Parts that are trained once, and that every row and seed takes."""

    experiment: str = "???"  # YAML, a path from the table's folder
    run: str = "???"
    overrides: list[str] = field(default_factory=list)
    parts: list[str] = bounded(list, min_length=1)  # as `from:` calls them


@dataclass
class Table:
    title: str = "???"
    published: str | None = None  # a file of evaluation/report/published/, such as table_1
    protocol: str = "???"
    test_set: str = "???"  # folder of shards; "shards/" stands for --shards
    judge: str | None = None  # shards that train the sound classifier of a protocol that asks for one
    scores: dict[str, str | None] = field(default_factory=dict)  # score of the protocol -> printed column, if any
    listening: list[str] = field(default_factory=list)  # questions of listening tests: OVL, REL, MOS
    data: dict[str, str] = field(default_factory=dict)  # corpus -> what its command line says here
    overrides: list[str] = field(default_factory=list)  # key=value, of all rows
    shared: SharedParts | None = None
    rows: list[RowSettings] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass
class Choices:
    """What the command line says of a table."""

    runs: Path = Path("runs")
    shards: Path = Path("shards")
    weights: Path = Path("weights")
    seeds: int = bounded(1, ge=1, le=1_000)
    rows: list[str] = field(default_factory=list)  # empty: all
    systems: dict[str, str] = field(default_factory=dict)  # row -> [SYSTEM:]SOURCE of its clips
    overrides: list[str] = field(default_factory=list)  # key=value, of all experiments
    device: str = "auto"
    download: bool = False  # checkpoints of the protocol that are missing

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass
class Training:
    """One experiment under one seed: what `audioldm2 train` is told, and what it makes of that."""

    path: Path
    overrides: list[str]
    experiment: ExperimentConfig

    @property
    def folder(self) -> Path:
        return self.experiment.run_folder


@dataclass
class Row:
    settings: RowSettings
    seeds: list[Training]  # empty of a row that is not trained here
    before: list[Training]  # trained first, in this order
    source: str | None = None  # [SYSTEM:]SOURCE of its clips

    @property
    def name(self) -> str:
        return self.settings.name


@dataclass
class Reproduction:
    """A table with the choices of the command line filled in."""

    name: str
    table: Table
    choices: Choices
    protocol: Protocol
    rows: list[Row]

    @property
    def output(self) -> Path:
        return self.choices.runs / "reproduce" / self.name

    @property
    def test_set(self) -> Path:
        return Path(self.place(self.table.test_set))

    @property
    def asks_for_classifier(self) -> bool:
        return any(model.backend == "classifier" for model in self.protocol.models.values())

    @property
    def weights(self) -> Path:
        """Folder of the protocol's checkpoints."""
        return self.output if self.asks_for_classifier else self.choices.weights

    @property
    def published(self) -> PublishedTable | None:
        if self.table.published is None:
            return None
        return dict(zip(published_names(), published_tables()))[self.table.published]

    @property
    def trainings(self) -> list[Training]:
        """All, in an order in which they can be trained, each once."""
        found: dict[Path, Training] = {}
        for row in self.rows:
            for training in (*row.before, *row.seeds):
                found.setdefault(training.folder, training)
        return list(found.values())

    def place(self, path: str) -> str:
        """`runs/…` and `shards/…` of a YAML => the same below --runs and --shards."""
        for name in ("runs", "shards"):
            if path.startswith(f"{name}/"):
                return str(getattr(self.choices, name) / path.removeprefix(f"{name}/"))
        return path

    def training(self, experiment: Path, run: str | None, seed: int, overrides: Sequence[str]) -> Training:
        """The experiment at `experiment` with the overrides, under a seed; seed 0 has the plain name."""
        given = (*self.table.overrides, *overrides, *self.choices.overrides)
        plain = loaded(experiment, given)
        data = replace(
            plain.data, train=[self.place(path) for path in plain.data.train],
            **{split: path and self.place(path) for split in SPLITS if (path := getattr(plain.data, split))},
        )  # fmt: skip
        moved = replace(
            plain,
            name=(run or plain.name) + (f"-seed{seed}" if seed else ""),
            seed=plain.seed + seed,
            runs=str(self.choices.runs),
            data=data,
            from_={part: self.place(str(source)) for part, source in plain.from_.items()},
            start_from={part: self.place(str(source)) for part, source in plain.start_from.items()},
        )
        return Training(experiment, [*given, *overrides_between(plain, moved)], moved)


@lru_cache
def loaded(experiment: Path, overrides: tuple[str, ...]) -> ExperimentConfig:
    """Seeds of a row differ in little: its YAML is read once."""
    return load_experiment(experiment, list(overrides))


def overrides_between(plain: ExperimentConfig, moved: ExperimentConfig) -> list[str]:
    """The key=value words that make the one of the other."""
    words = [
        f"{key}={getattr(moved, key)}" for key in ("runs", "name", "seed") if getattr(moved, key) != getattr(plain, key)
    ]
    for key in ("from", "start_from"):
        field_name = "from_" if key == "from" else key
        before, after = getattr(plain, field_name), getattr(moved, field_name)
        words += [f"{key}.{part}={source}" for part, source in after.items() if source != before[part]]
    if moved.data.train != plain.data.train:
        words.append(f"data.train=[{','.join(moved.data.train)}]")
    for split in SPLITS:
        if getattr(moved.data, split) != getattr(plain.data, split):
            words.append(f"data.{split}={getattr(moved.data, split)}")
    return words


def published_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.csv"))


def built_in_tables() -> list[str]:
    return sorted(path.stem for path in TABLES.glob("*.yaml"))


def find_table(name: str) -> Path:
    """A YAML file, or one of `tables/` by its name."""
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UserError(f"{name}: no such table file")
        return Path(name)
    if name not in built_in_tables():
        raise UserError(f"{name}: no such table; {nearest(name, built_in_tables())}, or give a .yaml file")
    return TABLES / f"{name}.yaml"


def load_table(path: Path) -> Table:
    """UserError for an unknown key or word, or a name that is not there."""
    content = values_of(path, Table)
    try:
        table: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Table), content))
    except ConfigKeyError as error:
        raise UserError(f"{path}: {unknown_key(error)}") from None
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {wrong_value(error)}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    names = [row.name for row in table.rows]
    if not names:
        raise UserError(f"{path}: rows: is empty; give one row or more")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{path}: rows: two are called {twice[0]!r}; give each a name of its own")
    if table.published is not None and table.published not in published_names():
        raise UserError(f"{path}: published={table.published}: {nearest(table.published, published_names())}")
    check_columns(path, table)
    for part in table.shared.parts if table.shared else ():
        if part not in GROUPS:
            raise UserError(f"{path}: shared.parts: {part}: {nearest(part, list(GROUPS))}")
    return table


def check_columns(path: Path, table: Table) -> None:
    """UserError for a score that the protocol has not, or a column that the published table has not."""
    protocol = load_protocol(table.protocol)
    columns = dict(zip(published_names(), published_tables()))[table.published].columns if table.published else []
    for score, column in table.scores.items():
        if score not in protocol.scores:
            raise UserError(f"{path}: scores.{score}: {nearest(score, list(protocol.scores))}")
        if column is not None and column not in columns:
            raise UserError(f"{path}: scores.{score}={column!r}: {nearest(column, columns)}")


def open_table(name: str, choices: Choices) -> Reproduction:
    """A table with its experiments loaded. UserError for a row, a source or an experiment that is not there."""
    path = find_table(name)
    table = load_table(path)
    known = [row.name for row in table.rows]
    for asked in (*choices.rows, *choices.systems):
        if asked not in known:
            raise UserError(f"{asked}: no such row of {path.stem}; {nearest(asked, known)}")
    found = Reproduction(path.stem, table, choices, load_protocol(table.protocol), [])
    if choices.systems and "labels" in found.protocol.needs:
        raise UserError(f"--system: the protocol {table.protocol} asks for labels, which no folder of clips brings")
    shared, given = shared_training(found, path.parent)
    for settings in table.rows:
        if not choices.rows or settings.name in choices.rows:
            found.rows.append(open_row(found, settings, path.parent, shared, given))
    return found


def shared_training(found: Reproduction, folder: Path) -> tuple[list[Training], list[str]]:
    """What trains the shared parts, and the overrides by which rows take them; nothing where a table shares none."""
    if (shared := found.table.shared) is None:
        return [], []
    training = found.training(experiment_path(folder, shared.experiment), shared.run, 0, shared.overrides)
    model = training.experiment.model_folder
    return [training], [f"from.{part}={model}" for part in shared.parts]


def open_row(found: Reproduction, settings: RowSettings, folder: Path, shared: list[Training], given: list[str]) -> Row:
    source = found.choices.systems.get(settings.name)
    if source is not None or settings.experiment is None:
        return Row(replace(settings), [], [], source)
    if settings.run is not None:
        check_name(settings.run)
    overrides = [*given, *settings.overrides]
    before = [found.training(experiment_path(folder, path), None, 0, given) for path in settings.after]
    path = experiment_path(folder, settings.experiment)
    seeds = [found.training(path, settings.run, seed, overrides) for seed in range(found.choices.seeds)]
    return Row(settings, seeds, [*shared, *before])


def experiment_path(folder: Path, name: str) -> Path:
    """A path from the table's folder, as short as it can be said from here."""
    path = (folder / name).resolve()
    here = Path(os.path.relpath(path))
    return path if here.parts[:1] == ("..",) else here
