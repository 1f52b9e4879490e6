"""What makes a table, in order: data, training, clips and scores of each row and seed. A step is a command of ours.

A step is done where what it makes is there; it can run where what it reads is there, or an earlier step makes it.
"""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from audioldm2_pl.atomic import read_json_object
from audioldm2_pl.audio import AudioConfig
from audioldm2_pl.errors import UserError

from ..clips import digest_of_index
from ..report.audio import write_test_set
from ..sound_classifier import SoundClassifierConfig, load_or_train_classifier
from .corpora import CorpusNeed, build_command, need_of, source_of
from .state import clips_name, is_scored, score_file, state_of
from .table import Reproduction, Row, Training


@dataclass
class Step:
    kind: str  # data, train, test set, classifier, generate, score
    title: str
    command: list[str]  # as a shell would have it; empty where `call` does it here
    is_done: bool
    makes: list[Path] = field(default_factory=list)
    reads: list[Path] = field(default_factory=list)
    call: Callable[[], None] | None = None

    @property
    def line(self) -> str:
        return shlex.join(self.command) if self.command else "by this command"

    def missing(self, made: set[Path]) -> list[Path]:
        """What it reads that neither is there nor is `made` by a step before."""
        return [path for path in self.reads if path not in made and not path.exists()]


def corpora_of(found: Reproduction) -> list[CorpusNeed]:
    """The folders of shards of all rows, and of the test set."""
    folders = [str(found.test_set)]
    if found.asks_for_classifier and found.table.judge:
        folders.append(found.place(found.table.judge))
    for training in found.trainings:
        folders += training.experiment.data.train
    return [need_of(Path(folder), found.choices.shards) for folder in dict.fromkeys(folders)]


def steps_of(found: Reproduction) -> list[Step]:
    """Every step of the table, those that are done too."""
    steps = [data_step(found, name, needs) for name, needs in by_corpus(corpora_of(found)).items()]
    steps += [train_step(training) for training in found.trainings]
    outside = [row for row in found.rows if row.source or (not row.seeds and row.settings.system == "real")]
    if outside:
        steps.append(test_set_step(found))
    if found.asks_for_classifier:
        steps.append(classifier_step(found))
    for row in found.rows:
        if row in outside:
            steps += outside_steps(found, row)
        steps += [report_step(found, row, training) for training in row.seeds]
    return steps


def by_corpus(needs: list[CorpusNeed]) -> dict[str, list[CorpusNeed]]:
    names = dict.fromkeys(need.corpus for need in needs if need.corpus)
    return {name: [need for need in needs if need.corpus == name] for name in names}


def data_step(found: Reproduction, corpus: str, needs: list[CorpusNeed]) -> Step:
    words = build_command(corpus, found.choices.shards, found.table.data.get(corpus))
    source = source_of(words)
    return Step(
        "data", corpus, ["python", "-m", *words], all(need.is_there for need in needs),
        makes=[need.folder for need in needs], reads=[source] if source else [],
    )  # fmt: skip


def train_step(training: Training) -> Step:
    experiment = training.experiment
    named = {**experiment.from_, **experiment.start_from}.values()
    local = [Path(source) for source in named if source is not None and not is_hub_id(source)]
    return Step(
        "train", str(training.folder), ["audioldm2", "train", str(training.path), *training.overrides],
        state_of(training).is_finished, makes=[experiment.model_folder],
        reads=[*map(Path, experiment.data.train), *dict.fromkeys(local)],
    )  # fmt: skip


def is_hub_id(source: str) -> bool:
    """Whether a source is neither a folder that is there nor one below runs/ or models/."""
    path = Path(source)
    named = source.startswith(("runs/", "models/", ".", "/"))
    return not path.exists() and not named and source.count("/") == 1


def test_set_step(found: Reproduction) -> Step:
    folder = found.output / "test"
    written, index = (folder / "captions.csv").is_file(), folder / "sound" / "index.json"
    if written and index.is_file() and (found.test_set / "index.json").is_file():
        written = read_json_object(index).get("origin") == {"test": digest_of_index(found.test_set), "clips": None}
    makes = [folder / "captions.csv", folder / "sound" / "reference"]
    title = f"recordings and captions of {found.test_set}"
    speech = any("transcripts" in found.protocol.metric(score).reads for score in found.protocol.scores)

    def write() -> None:
        write_test_set(found.test_set, audio_of(found), folder, speech)

    return Step("test set", title, [], written, makes, [found.test_set], write)


def audio_of(found: Reproduction) -> AudioConfig:
    """Of the first row that is trained here."""
    return next((row.seeds[0].experiment.audio for row in found.rows if row.seeds), AudioConfig())


def classifier_step(found: Reproduction) -> Step:
    """All rows are measured by one classifier."""
    if found.table.judge is None:
        raise UserError(f"{found.name}: judge: is null; the protocol {found.table.protocol} asks for its shards")
    judge, folder = Path(found.place(found.table.judge)), found.output / "report"

    def train() -> None:
        load_or_train_classifier(judge, folder, SoundClassifierConfig(audio_of(found)))

    return Step(
        "classifier", f"trained on {judge}", [], (folder / "classifier.safetensors").is_file(),
        makes=[folder], reads=[judge], call=train,
    )  # fmt: skip


def report_step(found: Reproduction, row: Row, training: Training) -> Step:
    """Generates and scores: `evaluation report`."""
    protocol, system = found.table.protocol, row.settings.system
    words = ["python", "-m", "evaluation", "report", str(training.path), *training.overrides]
    words += ["--protocol", protocol, "--test-set", str(found.test_set), "--device", found.choices.device]
    words += ["--weights", str(found.weights), *(["--download"] if found.choices.download else [])]
    if "labels" not in found.protocol.needs and system != "text_to_audio":
        words += [
            "--system",
            system,
            "--output",
            str(training.folder / "report" / f"{Path(protocol).stem}.{system}.html"),
        ]
    result = score_file(found, row, training)
    reads = [training.experiment.model_folder, found.test_set]
    reads += [found.output / "report"] if found.asks_for_classifier else []
    return Step(
        "score", f"{row.name}, {training.experiment.name}", words, is_scored(found, row, training), [result], reads
    )


def outside_steps(found: Reproduction, row: Row) -> list[Step]:
    """The recordings themselves, or clips of anybody's system."""
    folder, captions = found.output / "test", found.output / "test" / "captions.csv"
    reference = folder / "sound" / "reference"
    clips, steps = reference, []
    if row.source is not None:
        system, colon, source = row.source.partition(":")
        system, source = (system, source) if colon else ("", row.source)
        clips = found.output / "clips" / clips_name(row)
        words = ["python", "-m", "evaluation", "generate", system or "clips", source, str(captions), str(clips)]
        words += ["--seconds", f"{audio_of(found).clip_seconds:g}", "--peak", "null"]  # as long as ours, at their level
        words += ["--device", found.choices.device]
        reads = [captions, *([Path(source)] if not system else [])]
        is_done = is_scored(found, row, None)
        steps.append(Step("generate", f"{row.name} by {row.source}", words, is_done, [clips], reads))
    result = score_file(found, row, None)
    words = ["python", "-m", "evaluation", "score", str(clips), "--reference", str(reference)]
    words += ["--captions", str(captions), "--protocol", found.table.protocol, "--weights", str(found.weights)]
    words += ["--output", str(result), *(["--download"] if found.choices.download else [])]
    steps.append(Step("score", row.name, words, is_scored(found, row, None), [result], [captions, clips]))
    return steps
