"""Scores of the exports of a run."""

import csv

import pytest

from audioldm2_pl.errors import UserError
from audioldm2_pl.training.run import train
from evaluation.__main__ import main
from evaluation.curve import CurveOptions, follow


@pytest.fixture(scope="module")
def exported(smoke, smoke_run, tmp_path_factory):
    """A joint stage of four batches that leaves two exports, and one of an earlier stage that makes no sound yet."""
    runs = tmp_path_factory.mktemp("runs")
    parts = ("clap", "t5", "vae", "vocoder", "audiomae")
    taken = ", ".join(f"{part}: {smoke_run.model_folder}" for part in parts)
    overrides = ["stages=[ldm,gpt2,joint]", f"from={{{taken}}}", "trainer.export_every_batches=2"]
    experiment = smoke(*overrides, runs=runs)
    train(experiment)
    words = [f"runs={runs}", f"data.train=[{smoke_run.data.train[0]}]", f"data.test={smoke_run.data.test}", *overrides]
    return experiment, words


def test_exports_are_scored_over_batches(exported, capsys):
    experiment, words = exported
    command = ["curve", "experiments/smoke.yaml", *words, "--clips", "4", "--device", "cpu"]
    assert main(command) == 0
    folder = experiment.run_folder / "curves" / "audiomae-4"
    with (folder / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    exports = list(dict.fromkeys(row["export"] for row in rows))
    assert exports[-2:] == ["joint-0000002", "joint-0000004"] and not any(name.startswith("ldm") for name in exports)
    assert {row["score"] for row in rows} == {"fd_audiomae", "kad_audiomae"}
    assert all(float(row["low"]) <= float(row["high"]) for row in rows)
    assert (folder / "scores.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((folder / "clips" / "joint-0000004").glob("*.wav"))) == 4
    before = (folder / "scores" / "joint-0000002.json").stat().st_mtime_ns
    assert main(command) == 0  # nothing is scored twice
    assert (folder / "scores" / "joint-0000002.json").stat().st_mtime_ns == before


def test_without_exports_or_with_labels_it_says_what_to_do(exported, smoke, tmp_path):
    with pytest.raises(UserError, match=r"no export; train with trainer\.export_every_batches"):
        follow(smoke(runs=tmp_path), CurveOptions(clips=2))
    with pytest.raises(UserError, match="asks for labels"):
        follow(exported[0], CurveOptions("classification"))
    with pytest.raises(UserError, match="clips=1 has to be"):
        CurveOptions(clips=1)
