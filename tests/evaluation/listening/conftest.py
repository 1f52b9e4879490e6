import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile
from listening_material import RATE, SECONDS, TEXTS

from evaluation.listening.batches import ListeningTest
from evaluation.listening.build import BuildOptions, build_test
from evaluation.listening.store import Answers


@pytest.fixture(scope="session")
def material(tmp_path_factory) -> Path:
    """real/, muddy/ and thin/ with three clips each, and captions.csv."""
    folder = tmp_path_factory.mktemp("material")
    random = np.random.default_rng(0)
    for system in ("real", "muddy", "thin"):
        (folder / system).mkdir()
        for clip in TEXTS:
            sound = 0.1 * random.standard_normal(round(SECONDS * RATE))
            soundfile.write(folder / system / f"{clip}.{'flac' if system == 'thin' else 'wav'}", sound, RATE)
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("filename", "caption"), *((f"{clip}.wav", text) for clip, text in TEXTS.items())])
    return folder


@pytest.fixture
def build(material, tmp_path):
    """Builds a listening test of muddy and thin: `build(questions=("MOS",), …)`, in `tmp_path / name`."""

    def make(name: str = "test", captions: Path | None = material / "captions.csv", **options) -> ListeningTest:
        systems = {system: material / system for system in ("muddy", "thin")}
        options = {"clips_per_batch": 2, **options}
        return build_test(tmp_path / name, material / "real", systems, captions, BuildOptions(**options))

    return make


@pytest.fixture
def folder(build, tmp_path) -> Path:
    build()
    return tmp_path / "test"


@pytest.fixture
def answers(build, tmp_path):
    found = Answers(tmp_path / "test" / "answers.sqlite", build())
    yield found
    found.close()
