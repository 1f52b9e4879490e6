"""Scores over batches: every export of a run under one protocol, on clips of the test split.

    python -m evaluation curve experiments/mine.yaml --protocol audiomae --clips 64 --watch 600

`trainer.export_every_batches` leaves the exports while a stage trains; with --watch new ones are scored as they come,
by another process, on another device if that is free. Writes scores.csv and scores.png to
runs/<name>/curves/<protocol>-<clips>/.
"""

import csv
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from audioldm2_pl.atomic import read_json_object, written_whole
from audioldm2_pl.config import ExperimentConfig
from audioldm2_pl.errors import UserError
from audioldm2_pl.fields import bounded, check_fields
from audioldm2_pl.hub.folder import ModelFolder

from .libraries import import_library
from .pairs import Inputs
from .protocols import load_protocol
from .report.audio import write_test_set
from .report.bench import split_of
from .score import ScoreOptions, score_folders, write_result
from .systems import SYSTEMS
from .systems.folder import ClipOptions, generate_clips

COLUMNS = ("export", "stage", "batch", "score", "value", "low", "high")


@dataclass
class CurveOptions:
    protocol: str = "audiomae"
    clips: int | None = bounded(64, ge=2, le=10_000_000)  # drawn from the test split; null: all
    watch: float | None = bounded(None, ge=1, le=86_400)  # seconds between two looks for new exports; null: one look
    device: str = "cpu"
    score: ScoreOptions = field(default_factory=ScoreOptions)

    def __post_init__(self) -> None:
        check_fields(self)


def follow(experiment: ExperimentConfig, options: CurveOptions) -> Path:
    """Scores what there is, and with `watch` what comes, until it is interrupted => the table.

    UserError where the protocol asks for labels, or the run has no export yet and none is waited for.
    """
    protocol = load_protocol(options.protocol)
    if "labels" in protocol.needs:
        raise UserError(f"--protocol {options.protocol}: asks for labels; take one that compares with the test split")
    test, name = split_of(experiment, "test"), f"{Path(options.protocol).stem}-{options.clips or 'all'}"
    folder = experiment.run_folder / "curves" / name
    speech = any("transcripts" in protocol.metric(score).reads for score in protocol.scores)
    write_test_set(test, experiment.audio, folder, speech, options.clips)
    table = folder / "scores.csv"
    while True:
        exports = list(exports_of_run(experiment))
        if not exports and options.watch is None:
            raise UserError(
                f"{experiment.run_folder / 'exports'}: no export; train with trainer.export_every_batches=N, or --watch"
            )
        rows = []
        for export in exports:
            rows += score_export(experiment, export, folder, options)
            write_table(table, rows)
        if rows:
            draw(rows, folder / "scores.png")
        if options.watch is None:
            return table
        time.sleep(options.watch)


def exports_of_run(experiment: ExperimentConfig) -> Iterator[Path]:
    """The exports that make sound, in the order of the stages and their batches."""
    found = []
    for path in (experiment.run_folder / "exports").glob("*-*"):
        match = re.fullmatch(r"(\w+)-(\d{7,})", path.name)
        model = ModelFolder(path)
        if match and match[1] in experiment.stages and all(map(model.has, ("unet", "vae", "vocoder"))):
            is_silent = "loa" in model.conditions()[0] and not model.has("language_model")
            if not is_silent:
                found.append((experiment.stages.index(match[1]), int(match[2]), path))
    yield from (path for *_, path in sorted(found))


def score_export(
    experiment: ExperimentConfig, export: Path, folder: Path, options: CurveOptions
) -> list[tuple[str, ...]]:
    """The rows of one export; what was scored before is read, unless the export is a newer one."""
    result_file = folder / "scores" / f"{export.name}.json"
    changed = (export / "model_index.json").stat().st_mtime
    if not result_file.is_file() or result_file.stat().st_mtime < changed:
        clips = folder / "clips" / export.name
        for old in clips.glob("*.wav"):
            if old.stat().st_mtime < changed:
                old.unlink()
        audio, seed = experiment.audio, experiment.seed
        how = ClipOptions(audio.clip_seconds, audio.sample_rate, peak=None, seed=seed, device=options.device)
        generate_clips(SYSTEMS["ours"], str(export), folder / "captions.csv", clips, how)
        inputs = Inputs(clips, folder / "sound" / "reference", folder / "captions.csv", None)
        write_result(*score_folders(inputs, options.protocol, options.score), result_file)
    stage, _, batch = export.name.rpartition("-")
    scores = read_json_object(result_file)["scores"]
    rows = [
        (export.name, stage, str(int(batch)), name, *(repr(score[key]) for key in ("value", "low", "high")))
        for name, score in scores.items()
    ]
    values = ", ".join(f"{name} {score['value']:.4g}" for name, score in scores.items())
    print(f"{export.name}: {values}", flush=True)
    return rows


def write_table(path: Path, rows: list[tuple[str, ...]]) -> None:
    with written_whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


def draw(rows: list[tuple[str, ...]], path: Path) -> None:
    """A chart of each score, with its interval, over the exports."""
    names = list(dict.fromkeys(row[3] for row in rows))
    exports = list(dict.fromkeys(row[0] for row in rows))
    figure_class = import_library("matplotlib.figure").Figure
    figure = figure_class(figsize=(1.5 + 0.5 * max(6, len(exports)), 2.4 * len(names)), layout="constrained")
    for axes, name in zip(figure.subplots(len(names), squeeze=False)[:, 0], names):
        own = [row for row in rows if row[3] == name]
        places = [exports.index(row[0]) for row in own]
        value, low, high = ([float(row[column]) for row in own] for column in (4, 5, 6))
        axes.plot(places, value, marker="o")
        axes.fill_between(places, low, high, alpha=0.2)
        axes.set_ylabel(name)
        axes.set_xticks(range(len(exports)), exports, rotation=60, ha="right", fontsize=7)
    with written_whole(path) as part:
        figure.savefig(part, format="png", dpi=120)
