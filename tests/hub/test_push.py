"""A run as a repository of the hub."""

import json
import os

import pytest
import yaml

from audioldm2_pl.cli import main
from audioldm2_pl.hub.card import plain
from audioldm2_pl.pipeline import AudioLDM2
from audioldm2_pl.provenance import read_provenance

SMOKE = "experiments/smoke.yaml"


@pytest.fixture(scope="module")
def pushed(smoke_run):
    """The smoke run's repository, with a result beside the run as a report leaves it."""
    scores = smoke_run.run_folder / "report" / "scores"
    scores.mkdir(parents=True, exist_ok=True)
    score = {"value": 0.5, "low": 0.25, "high": 0.75, "per_clip": {"a": 1.0, "b": 0.0, "c": None}}
    result = {"protocol": "classification", "num_clips": 3, "scores": {"class_accuracy": score}}
    path = scores / "classification.text_to_audio.json"
    path.write_text(json.dumps(result))
    overrides = [
        f"runs={smoke_run.runs}",
        f"data.train=[{smoke_run.data.train[0]}]",
        f"data.test={smoke_run.data.test}",
    ]
    command = ["push", SMOKE, "someone/smoke", *overrides, "--dry-run", "--licence", "cc-by-4.0", "--sounds", "2"]
    assert main(command) == 0
    yield smoke_run.run_folder / "hub", command
    path.unlink()


def test_the_card_tells_data_recipe_scores_and_sounds(pushed):
    card = (pushed[0] / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "cc-by-4.0" and head["pipeline_tag"] == "text-to-audio"
    assert "| synthetic | CC0 | 12 |" in card
    assert "| classification | class_accuracy | 0.5 | 0.25 to 0.75 | 2 |" in card
    assert "| ldm | 4 |" in card and "| unet |" in card and "## Limits" in card
    recipe = yaml.safe_load((pushed[0] / "experiment.yaml").read_text())
    assert recipe["name"] == "smoke" and recipe["training"]["ldm"]["batches"] == 4


def test_the_repository_is_a_model_whose_files_take_no_room(pushed, smoke_run):
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert os.path.samefile(pushed[0] / weights, smoke_run.model_folder / weights)
    assert AudioLDM2.from_pretrained(pushed[0]).sampling == smoke_run.sampling
    sounds = sorted((pushed[0] / "sounds").iterdir())
    origin = read_provenance(sounds[0])
    assert len(sounds) == 2 and origin.model == "someone/smoke" and origin.is_made_by(pushed[0])


def test_the_same_command_writes_it_anew(pushed):
    (pushed[0] / "old.txt").write_text("of an earlier push")
    assert main(pushed[1]) == 0
    assert not (pushed[0] / "old.txt").exists() and (pushed[0] / "README.md").is_file()


@pytest.mark.parametrize("name", ["smoke", "a/b/c", "some one/smoke", "someone/smo..ke", ""])
def test_what_is_no_repository_is_told(name, pushed, capsys):
    assert main(["push", SMOKE, name, *pushed[1][3:]]) == 2
    assert "is no repository's name" in capsys.readouterr().err


def test_an_experiment_that_is_not_trained_is_told(tmp_path, capsys):
    assert main(["push", SMOKE, "someone/smoke", f"runs={tmp_path}", "--dry-run"]) == 2
    assert "train the experiment first" in capsys.readouterr().err


def test_a_number_of_sounds_is_checked(pushed, capsys):
    assert main([*pushed[1][:-1], "-1"]) == 2
    assert "--sounds -1: give 0 or more" in capsys.readouterr().err


def test_without_the_hub_it_says_so(pushed, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    command = [word for word in pushed[1] if word != "--dry-run"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "the hub did not take it" in said and "\n" not in said.strip()


def test_text_stays_text_in_a_table():
    assert plain("a | b\n<script>[x]`") == "a \\| b \\<script\\>\\[x\\]\\`"
