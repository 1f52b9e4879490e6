"""The audio that a benchmark scores: a test set's clips as they are stored, and what a model makes of their captions.

Everything lies in runs/<name>/benchmark/<system>/<key>.flac and is kept as long as model, test set, sampling and seed
stay the same.

Shapes: B clips, T samples.
"""

import csv
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from audioldm2_pl.audio import AudioConfig
from audioldm2_pl.cli import pick_device
from audioldm2_pl.config import ExperimentConfig
from audioldm2_pl.errors import UserError
from audioldm2_pl.shards.reader import ShardFolder, captions_of

from .clips import LabelledClip, read_clips
from .protocols import KINDS, load_protocol
from .report import load_pipeline, model_folder_of, origin_of, split_of
from .score import ScoreOptions, score_folders
from .systems import AudioFolder, System, generate_clips

Scored = tuple[dict[str, Any], dict[str, np.ndarray]]  # what score_folders gives


@dataclass
class BenchmarkOptions:
    protocol: str
    test_set: Path | None = None  # folder of shards; None: the experiment's data.test
    clips: int | None = None  # drawn from the test set; None: all
    figures: list[str] = field(default_factory=list)  # names in figures.FIGURES
    figure_clips: int = 32  # that a figure's points are measured on
    labelled: Path | None = None  # shards with labels for the t-SNE; None: the test set
    batch_size: int = 8  # clips generated at a time
    device: str = "auto"
    fresh: bool = False  # generate all audio anew
    score: ScoreOptions = field(default_factory=ScoreOptions)


@dataclass
class TestClip(LabelledClip):
    """A clip as a model takes it, and as the shards have it: scores compare with the latter."""

    __test__ = False  # no test, though pytest would think so

    captions: list[str]
    transcript: str
    stored: np.ndarray  # float32 (T,)
    stored_rate: int  # Hz


def read_test_clips(split: Path, audio: AudioConfig, limit: int | None = None) -> Iterator[TestClip]:
    """All clips or a random `limit` of them, in the order of the shards; a larger limit holds a smaller one's clips."""
    folder = ShardFolder(split)
    order = list(range(len(folder)))
    random.Random(0).shuffle(order)
    chosen = set(order[:limit])
    stored = (folder.read(shard, number) for shard, count in enumerate(folder.counts) for number in range(count))
    for number, (clip, fields) in enumerate(zip(read_clips(split, audio), stored)):
        if number in chosen:
            spoken = fields.get("transcript", "")
            yield TestClip(**vars(clip), captions=captions_of(fields), transcript=spoken,
                           stored=fields["waveform"], stored_rate=fields["sample_rate"])  # fmt: skip


class Bench:
    """One experiment under test."""

    def __init__(
        self,
        experiment: ExperimentConfig,
        options: BenchmarkOptions,
        load_model: Callable[[Path, str], Any] | None = None,
    ):
        self.experiment, self.options = experiment, options
        self.audio, self.name = experiment.audio, experiment.name
        self.test = options.test_set or split_of(experiment, "test")
        self.device = pick_device(options.device)
        self.load_model = load_model or load_pipeline
        self.model_folder = model_folder_of(experiment)
        folder = experiment.run_folder / "benchmark"
        if options.fresh:
            shutil.rmtree(folder, ignore_errors=True)
        self.sound = AudioFolder(folder, origin_of(experiment, self.test))
        self.texts: dict[str, list[str]] = {}  # key -> captions, or the transcript, of the scored clips

    @cached_property
    def model(self) -> Any:
        """Opened when the first clip is missing."""
        model = self.load_model(self.model_folder, self.device)
        model.set_sampler(self.experiment.diffusion.sampler)
        return model

    def close(self) -> None:
        """Lets go of the model: one at a time is in memory."""
        self.__dict__.pop("model", None)

    def generate(self, clips: list[LabelledClip], loa: Any = None, **changes: Any) -> Any:
        """=> (B, T)"""
        if self.model.is_speech:
            changes["transcripts"] = [clip.transcript for clip in clips if isinstance(clip, TestClip)]
        return generate_clips(self.model, clips, self.sound.origin, loa, **changes)

    def write_test_set(self) -> None:
        """Every clip's reference and generation, batch by batch: the test set is never in memory as a whole."""
        spoken = any(s.kind == "wer" for s in load_protocol(self.options.protocol).scores.values())
        clips = read_test_clips(self.test, self.audio, self.options.clips)
        while batch := list(islice(clips, self.options.batch_size)):
            self.write(batch, {"text_to_audio": lambda clips, waveform: self.generate(clips)})
            self.texts |= {clip.key: [clip.transcript] if spoken else clip.captions for clip in batch}
        if not self.texts:
            raise UserError(f"{self.test}: holds no clips; a benchmark needs a test set")

    def write(self, clips: list[TestClip], systems: dict[str, System]) -> None:
        for clip in clips:
            if not self.sound.path("reference", clip).is_file():
                self.sound.save("reference", clip, clip.stored, clip.stored_rate)
        self.sound.fill(systems, list(clips), self.audio.sample_rate, self.options.batch_size)

    def file(self, system: str, key: str) -> Path:
        return self.sound.folder / system / f"{key}.flac"

    def score(self, system: str, keys: list[str], reference: str = "reference") -> Scored:
        """`system` against `reference` on the clips `keys` alone, though the folders hold more."""
        protocol = load_protocol(self.options.protocol)
        needed = {KINDS[settings.kind] for settings in protocol.scores.values()}
        with TemporaryDirectory() as temporary:
            folder = Path(temporary)
            sides = {"generated": system, "reference": reference}
            for side, of in sides.items():
                for key in keys:
                    link = folder / side / f"{key}.flac"
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(self.file(of, key).resolve())
            captions = folder / "captions.csv" if "captions" in needed else None
            if captions:
                write_captions(captions, {key: self.texts[key] for key in keys})
            result, samples = score_folders(
                folder / "generated", folder / "reference", captions, self.options.protocol, self.options.score
            )
        return {**result, **{side: str(self.sound.folder / of) for side, of in sides.items()}}, samples


def write_captions(path: Path, texts: dict[str, list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "caption"])
        writer.writerows([f"{key}.flac", text] for key, found in texts.items() for text in found)
