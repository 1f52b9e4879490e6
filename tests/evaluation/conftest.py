from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tiny_corpus import AUDIO, write_split

from audioldm2_pl.config import ExperimentConfig
from audioldm2_pl.shards.datamodule import DataConfig
from evaluation.libraries import import_library
from evaluation.metrics.embeddings.laion_clap import import_laion_clap
from evaluation.sound_classifier import SoundClassifierConfig


@pytest.fixture(scope="session")
def eval_library() -> Callable[[str], Any]:
    """Imports a library of the eval extra, which a torch newer than torchaudio's last release does without."""

    def imported(name: str) -> Any:
        if find_spec(name.split(".")[0]) is None:
            pytest.skip(f"{name} is not installed")
        if name.split(".")[0] in ("laion_clap", "frechet_audio_distance"):
            import_laion_clap()  # before anything else imports it and asks a model hub
        return import_library(name)

    return imported


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_split(folder / "judge", 60, seed=1)
    write_split(folder / "test", 30, seed=2)
    return folder


@pytest.fixture
def experiment(corpus, tmp_path) -> ExperimentConfig:
    data = DataConfig(test=str(corpus / "test"), judge=str(corpus / "judge"))
    experiment = ExperimentConfig(name="tiny", runs=str(tmp_path), data=data)
    experiment.audio = AUDIO  # shorter than its models, which no test builds
    (experiment.run_folder / "model" / "vae").mkdir(parents=True)
    (experiment.run_folder / "model" / "vae" / "config.json").write_text("{}")
    return experiment


@pytest.fixture
def classifier_config() -> SoundClassifierConfig:
    return SoundClassifierConfig(AUDIO, channels=[8, 16, 16], embedding_size=16, batches=40, batch_size=12)
