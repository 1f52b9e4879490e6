from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tiny_corpus import AUDIO, write_split

from audioldm2_pl.config import ExperimentConfig
from audioldm2_pl.shards.datamodule import DataConfig
from evaluation.embeddings import import_library
from evaluation.judge import JudgeConfig


@pytest.fixture(scope="session")
def eval_library() -> Callable[[str], Any]:
    """Imports a library of the eval extra, which a torch newer than torchaudio's last release does without."""

    def imported(name: str) -> Any:
        if find_spec(name.split(".")[0]) is None:
            pytest.skip(f"{name} is not installed")
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
def judge_config() -> JudgeConfig:
    return JudgeConfig(AUDIO, channels=[8, 16, 16], embedding_size=16, batches=40, batch_size=12)
