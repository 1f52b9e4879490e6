"""`--dry-run`: what a table needs, which of it is there, what it costs as far as measured, every command in order."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from audioldm2_pl.describe import BYTES, GIB, networks_of, num_parameters, num_trained, pretrained_of, stages_of
from audioldm2_pl.errors import UserError
from audioldm2_pl.training.status import duration

from .corpora import CorpusNeed, facts_of
from .results import label, published_cells, unmeasured
from .state import device_hours, score_file, state_of
from .steps import Step, corpora_of, is_hub_id, steps_of
from .table import Reproduction, Row, Training

THERE = {True: "there", False: "missing"}


def plan_of(found: Reproduction) -> str:
    """The whole plan as text."""
    sections = {
        "Rows: published": row_lines(found),
        "Corpora": corpus_lines(found),
        "Weights that training starts from": weight_lines(found),
        f"Weights of the protocol {found.table.protocol}": protocol_lines(found),
        "Training": training_lines(found),
        "Steps": step_lines(steps_of(found)),
        "Listening tests, which no command runs": listening_lines(found),
    }
    head = (
        f"{found.name}: {found.table.title}\ntest set {found.test_set}, {found.choices.seeds} seed(s) a row; "
        f"writes {found.output / 'table.md'} and table.csv"
    )
    return "\n\n".join([head, *(f"{title}\n" + "\n".join(lines) for title, lines in sections.items() if lines)])


def row_lines(found: Reproduction) -> list[str]:
    lines = []
    for row in found.rows:
        cells = ", ".join(f"{column} {cell}" for column, cell in published_cells(found, row).items() if cell != "-")
        lines.append(f"  {row.name}: {cells or 'nothing published'}")
        lines.append(f"    here: {', '.join(here_of(found, row))}")
    measured = ", ".join(label(found, score) for score in found.table.scores)
    return [*lines, f"  measured here: {measured}"]


def here_of(found: Reproduction, row: Row) -> Iterator[str]:
    """How a row is measured, and how far that is."""
    if row.source is not None:
        yield f"clips by {row.source}"
    elif row.seeds:
        yield str(row.seeds[0].path)
    yield unmeasured(row) if not any(s.is_done for s in steps_of_row(found, row)) else "measured, all seeds or some"
    if row.source is None and "labels" not in found.protocol.needs and row.settings.system == "text_to_audio":
        if row.settings.peer is not None:
            yield f'--system "{row.name}={row.settings.peer}" measures published weights'
        elif not row.seeds:
            yield f'--system "{row.name}=FOLDER" measures a folder of its clips'


def steps_of_row(found: Reproduction, row: Row) -> list[Step]:
    files = {score_file(found, row, training) for training in row.seeds or [None]}
    return [step for step in steps_of(found) if files & set(step.makes)]


def corpus_lines(found: Reproduction) -> list[str]:
    lines = []
    told: set[str] = set()
    needs = corpora_of(found)
    for need in needs:
        lines.append(f"  {need.folder}: {size_of(need)}")
        facts = facts_of(need.corpus)
        if facts is None:
            lines.append("    made by you: no file in data/ is called like it")
        elif need.corpus not in told:
            told.add(need.corpus)
            lines += [f"    {facts.title}", f"    {facts.origin}"]
    whole = {need.corpus or str(need.folder): need.gigabytes for need in needs}
    known = sum(size for size in whole.values() if size is not None)
    free = shutil.disk_usage(nearest_folder(found.choices.shards)).free / 1e9
    return [
        *lines,
        f"  disk: at most {known:,.1f} GB in all as 16-bit sound at 16 kHz, FLAC takes less; {free:,.0f} GB free",
    ]


def size_of(need: CorpusNeed) -> str:
    if need.num_clips is not None:
        return f"there, {need.num_clips:,} clips, {need.hours:,.2f} h"
    return "missing" + (f"; the whole corpus has {need.hours:,.1f} h" if need.hours else "")


def nearest_folder(path: Path) -> Path:
    """The path or what of it is there."""
    path = path.absolute()
    return path if path.exists() else nearest_folder(path.parent)


def weight_lines(found: Reproduction) -> list[str]:
    """Sources of parts that no step trains."""
    uses: dict[str, list[str]] = {}
    own = {str(training.experiment.model_folder) for training in found.trainings}
    for training in found.trainings:
        experiment = training.experiment
        named = {**pretrained_of(experiment), **experiment.from_, **experiment.start_from}
        for part, source in named.items():
            if source is not None and source not in own and part not in uses.setdefault(source, []):
                uses[source].append(part)
    return [f"  {source} ({', '.join(parts)}): {where(source)}" for source, parts in uses.items()]


def where(source: str) -> str:
    if not is_hub_id(source):
        hint = "" if Path(source).exists() else "; docs/finetune.md tells how published checkpoints are imported"
        return THERE[Path(source).exists()] + hint
    from huggingface_hub.constants import HF_HUB_CACHE

    cached = (Path(HF_HUB_CACHE) / f"models--{source.replace('/', '--')}").is_dir()
    return "in the hub's cache" if cached else "on the model hub; not in its cache here"


def protocol_lines(found: Reproduction) -> list[str]:
    lines = []
    for name, model in found.protocol.models.items():
        if model.backend == "classifier":
            lines.append(f"  {name}: trained here on {found.table.judge and found.place(found.table.judge)}")
            continue
        try:
            path = found.protocol.backend(name).fetch(found.weights, model.weights)
            lines.append(f"  {name}: {path}, there")
        except UserError as error:
            lines.append(f"  {name}: {error}")
    return lines


def training_lines(found: Reproduction) -> list[str]:
    """A line a run: how far it is, and what it still costs; sizes once an experiment."""
    lines, sizes = [], {}
    for training in found.trainings:
        alike = [other for other in found.trainings if other.path == training.path and other is not training]
        hours, unknown = device_hours(training, alike)
        left = [f"{duration(3600 * hours)} of one device left, by measured pace"] if hours else []
        left += [f"unknown for {', '.join(unknown)}: no run of it has a pace yet"] if unknown else []
        lines.append(f"  {training.folder}: {'; '.join([state_of(training).words, *left])}")
        lines += [f"    {note}" for stage in state_of(training).stages for note in stage.notes]
        if training.path not in sizes:
            sizes[training.path] = f"    {disk_of(training)}"
            lines.append(sizes[training.path])
    return lines


def disk_of(training: Training) -> str:
    """Of the model folder and of the largest checkpoint, counted of the networks without their weights."""
    stages = stages_of(training.experiment)
    networks = networks_of(stages)
    model = BYTES * sum(map(num_parameters, networks.values())) / GIB
    trained = {stage.name: num_trained(stage) * (3 + (stage.config.ema_decay is not None)) for stage in stages}
    unet = f"T-UNet {num_parameters(networks['unet']) / 1e6:.2f} M parameters, " if "unet" in networks else ""
    checkpoint = BYTES * max(trained.values(), default=0) / GIB
    return f"{unet}disk: {model:.2f} GiB of parts, pretrained text encoders beside, {checkpoint:.2f} GiB in checkpoints"


def step_lines(steps: list[Step]) -> list[str]:
    lines = []
    made: set[Path] = set()
    for number, step in enumerate(steps, 1):
        missing = [] if step.is_done else step.missing(made)
        note = "done" if step.is_done else f"needs {missing[0]}" if missing else "to do"
        made |= set(step.makes)
        lines += [f"  {number}. {step.kind}: {step.title} ({note})", f"     {step.line}"]
    return lines


def listening_lines(found: Reproduction) -> list[str]:
    if not found.table.listening:
        return []
    having = [row for row in found.rows if row.seeds]
    words = ["python -m evaluation listen build", str(found.output / "listening")]
    if having:
        words.append(f"--reference {having[0].seeds[0].folder / 'report' / 'audio' / 'reference'}")
    words += [
        f'--system "{row.name}={row.seeds[0].folder / "report" / "audio" / row.settings.system}"' for row in having
    ]
    questions = " ".join(found.table.listening)
    return [
        f"  {' '.join(words)} --questions {questions}",
        "  docs/evaluate.md tells how raters are asked and analysed",
    ]
