"""One experiment under test: its audio, and the scores of it.

Audio lies in runs/<name>/report/audio/<system>/<key>.flac and stays as long as model, test set, sampling and seed are
the same; results lie in runs/<name>/report/scores/.
"""

import csv
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from audioldm2_pl.config import ExperimentConfig, to_plain
from audioldm2_pl.errors import UserError
from audioldm2_pl.sound_commands import pick_device

from ..checkpoints import digest_of_folder
from ..clips import digest_of_index
from ..pairs import Inputs
from ..protocols import Protocol, load_protocol
from ..score import Arrays, Result, ScoreOptions, score_folders, write_result
from ..sound_classifier import SoundClassifierConfig, load_or_train_classifier
from .audio import AudioFolder, TestClip, read_test_clips, select_clips
from .generate import SYSTEMS, Generator, System, load_pipeline

LoadModel = Callable[[Path, str], Any]  # model folder, device => AudioLDM2


@dataclass
class ReportOptions:
    protocol: str = "classification"
    test_set: Path | None = None  # folder of shards; None: the experiment's data.test
    system: str = "text_to_audio"  # that a protocol without labels scores
    clips: int | None = None  # drawn from the test set; None: all
    clips_per_class: int = 10  # one-event clips of each class, of a protocol with labels
    order_clips: int = 60  # two-event clips, of a protocol with labels
    figures: list[str] = field(default_factory=list)  # names in report.ALL_FIGURES
    figure_clips: int = 32  # that a figure's points are measured on
    labelled: Path | None = None  # shards with labels for the t-SNE; None: the test set
    batch_size: int = 10  # clips generated at a time
    device: str = "auto"  # of the system under test
    fresh: bool = False  # delete the classifier and the audio of earlier reports first
    weights: Path | None = None  # of checkpoints; None: "weights" or, for a sound classifier, the first run
    score: ScoreOptions = field(default_factory=ScoreOptions)


class Bench:
    def __init__(self, experiment: ExperimentConfig, options: ReportOptions, load_model: LoadModel | None = None):
        self.experiment, self.options = experiment, options
        self.audio, self.name = experiment.audio, experiment.name
        self.protocol: Protocol = load_protocol(options.protocol)
        self.test = options.test_set or split_of(experiment, "test")
        self.device = pick_device(options.device)
        self.load_model = load_model or load_pipeline
        self.model_folder = model_folder_of(experiment)
        self.folder = experiment.run_folder / "report"
        if options.fresh:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.sampling = to_plain(experiment.sampling)
        origin = {
            "model": digest_of_folder(self.model_folder),
            "test": digest_of_index(self.test),
            "audio": to_plain(experiment.audio),
            "sampling": self.sampling,
            "seed": experiment.seed,
        }
        if experiment.adapter is not None:
            origin["adapter"] = digest_of_folder(experiment.adapter_folder)
        self.sound = AudioFolder(self.folder / "audio", origin)
        self.weights = options.weights or options.score.weights
        self.classifier_seconds = 0.0  # spent on the classifier, in earlier reports too
        self.texts: dict[str, list[str]] = {}  # key -> captions, or the transcript, of the scored clips
        self.labels: dict[str, list[str]] = {}  # key -> names of its events

    @cached_property
    def generator(self) -> Generator:
        """The model is opened when the first clip is missing."""
        model = self.load_model(self.model_folder, self.device)
        if self.experiment.adapter is not None:
            model.load_adapter(self.experiment.adapter_folder)
        return Generator(model, self.experiment)

    def close(self) -> None:
        """Frees the model: one at a time is in memory."""
        self.__dict__.pop("generator", None)

    @property
    def has_labels(self) -> bool:
        return "labels" in self.protocol.needs

    @property
    def systems(self) -> tuple[str, ...]:
        """Those that the protocol scores."""
        return SYSTEMS if self.has_labels else (self.options.system,)

    @property
    def score_options(self) -> ScoreOptions:
        return replace(self.options.score, weights=self.weights)

    @property
    def trains_classifier(self) -> bool:
        """The protocol asks for a sound classifier, and no folder of weights is given."""
        return not self.options.weights and any(m.backend == "classifier" for m in self.protocol.models.values())

    def train_classifier(self, config: SoundClassifierConfig | None = None) -> None:
        """The run's own, in runs/<name>/report."""
        config = config or SoundClassifierConfig(self.audio, seed=self.experiment.seed)
        split = split_of(self.experiment, "judge")
        begin = time.perf_counter()
        _, earlier = load_or_train_classifier(split, self.folder, config)
        self.classifier_seconds = earlier + time.perf_counter() - begin

    def test_clips(self) -> Iterator[TestClip]:
        if self.has_labels:
            yield from select_clips(self.test, self.audio, self.options.clips_per_class, self.options.order_clips)
        else:
            yield from read_test_clips(self.test, self.audio, self.options.clips)

    def write_test_set(self) -> None:
        """Every clip's reference and generations, batch by batch: a test set is never in memory as a whole."""
        clips = self.test_clips()
        while batch := list(islice(clips, self.options.batch_size)):
            self.register(batch)
            for system in self.systems:
                if self.sound.missing(system, batch):
                    self.write(batch, {system: self.generator.systems()[system]})
            self.write(batch, {})
        if not self.texts:
            raise UserError(f"{self.test}: holds no clips; a report needs a test set")

    def register(self, clips: list[TestClip]) -> None:
        """Notes the texts and labels that scores of these clips need."""
        is_speech = any("transcripts" in self.protocol.metric(score).reads for score in self.protocol.scores)
        for clip in clips:
            self.texts[clip.key] = [clip.transcript] if is_speech else clip.captions
            self.labels[clip.key] = clip.names

    def write(self, clips: list[TestClip], systems: dict[str, System]) -> None:
        """Audio of clips by systems, and the clips as they are stored: "reference"."""
        for clip in self.sound.missing("reference", clips):
            self.sound.save("reference", clip.key, clip.stored, clip.stored_rate)
        for name, run in systems.items():
            self.sound.fill(name, run, clips, self.audio.sample_rate, self.options.batch_size)

    def score(self, system: str, keys: list[str], reference: str = "reference") -> tuple[Result, Arrays]:
        """`system` against `reference` on the clips `keys` alone, though the folders hold more."""
        with TemporaryDirectory() as temporary:
            folder = Path(temporary)
            sides = {"generated": system, "reference": reference}
            for side, of in sides.items():
                (folder / side).mkdir()
                for key in keys:
                    link = folder / side / f"{key}.flac"
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(self.sound.path(of, key).resolve())
            tables = {"captions": ("caption", self.texts), "labels": ("label", self.labels)}
            inputs = Inputs(folder / "generated", folder / "reference")
            for side in self.protocol.needs & set(tables):
                setattr(inputs, side, folder / f"{side}.csv")
                column, texts = tables[side]
                write_names(folder / f"{side}.csv", column, {key: texts[key] for key in keys})
            result, samples = score_folders(inputs, self.options.protocol, self.score_options)
        return {**result, **{side: str(self.sound.folder / of) for side, of in sides.items()}}, samples

    def score_systems(self) -> dict[str, tuple[Result, Arrays]]:
        """System -> its result, which is written to scores/, too, for `python -m evaluation compare`."""
        found, keys = {}, list(self.texts)
        for system in self.systems:
            result, samples = found[system] = self.score(system, keys)
            write_result(result, samples, self.folder / "scores" / f"{Path(self.options.protocol).stem}.{system}.json")
        return found


def write_names(path: Path, column: str, texts: dict[str, list[str]]) -> None:
    """The CSV that `folders.read_names` reads."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", column])
        writer.writerows([f"{key}.flac", text] for key, found in texts.items() for text in found)


def split_of(experiment: ExperimentConfig, name: str) -> Path:
    folder = getattr(experiment.data, name)
    if not folder:
        raise UserError(f"data.{name}: not set; the report needs the folder of that split's shards")
    return Path(folder)


def model_folder_of(experiment: ExperimentConfig) -> Path:
    folder = experiment.run_folder / "model"
    if not folder.is_dir():
        raise UserError(f"{folder}: no model here; train the experiment first (audioldm2 train)")
    return folder
