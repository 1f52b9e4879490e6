"""Fake shards, and one smoke run of all stages that many tests look at."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands that tests run, too: pytest has a process a core

from pathlib import Path

import pytest
import torch

from audioldm2_pl.config import ExperimentConfig, load_experiment
from data.shards import write_shards
from data.synthetic import clips

SMOKE = Path(__file__).parent.parent / "experiments" / "smoke.yaml"


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """A train split of 12 synthetic clips in 3 shards, and a test split of 4."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(clips("train", 12), folder / "train", clips_per_shard=4, num_workers=1)
    write_shards(clips("test", 4), folder / "test", num_workers=1)
    return folder


@pytest.fixture(scope="session")
def smoke(shards, tmp_path_factory):
    """Makes smoke experiments: `smoke("key=value", ...)`; runs land in a folder of their own."""
    torch.set_num_threads(1)

    def load(*overrides: str, runs: Path | None = None) -> ExperimentConfig:
        runs = runs or tmp_path_factory.mktemp("runs")
        return load_experiment(
            SMOKE,
            [
                f"data.train=[{shards}/train]",
                f"data.test={shards}/test",
                f"runs={runs}",
                "trainer.progress_bar=false",
                *overrides,
            ],
        )

    return load


@pytest.fixture(scope="session")
def smoke_run(smoke) -> ExperimentConfig:
    """The smoke experiment with all stages trained, once for the whole session."""
    from audioldm2_pl.training.run import train

    experiment = smoke()
    train(experiment)
    return experiment


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real audio, from AUDIOLDM2_TEST_DATA."""
    folder = os.environ.get("AUDIOLDM2_TEST_DATA")
    if not folder:
        pytest.skip("AUDIOLDM2_TEST_DATA names no folder of real audio")
    return Path(folder)
