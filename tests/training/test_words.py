"""T5 learns in every stage that reads it, unless it has a past."""

import pytest
import torch
from safetensors.torch import load_file

from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.training.run import STAGES, train


def t5_weights(experiment) -> dict[str, torch.Tensor]:
    return load_file(experiment.model_folder / "text_encoder_2" / "model.safetensors")


def stage_of(experiment, name: str):
    return STAGES[name](experiment, ModelFolder(experiment.model_folder))


@pytest.mark.parametrize("name", ["ldm", "gpt2", "joint"])
def test_a_t5_without_a_past_learns_and_is_written(name, smoke_run):
    stage = stage_of(smoke_run, name)
    assert "t5" not in stage.frozen and all(p.requires_grad for p in stage.network("t5").parameters())
    assert stage.parts()["text_encoder_2"] is stage.t5.model


def test_gpt2_goes_on_from_the_t5_of_the_ldm_stage(smoke, tmp_path):
    experiment = smoke("stages=[clap,audiomae,vae,ldm]", runs=tmp_path)
    train(experiment)
    before = t5_weights(experiment)
    stage = stage_of(experiment, "gpt2")
    assert torch.equal(stage.t5.model.state_dict()["shared.weight"], before["shared.weight"])

    train(experiment, "gpt2")
    assert any(not torch.equal(weight, before[key]) for key, weight in t5_weights(experiment).items())


@pytest.mark.parametrize("name", ["ldm", "gpt2", "joint"])
def test_a_given_t5_stays_as_it_is(name, smoke, smoke_run, tmp_path):
    parts = [f"from.{part}={smoke_run.model_folder}" for part in ("clap", "t5", "audiomae", "vae", "unet", "gpt2")]
    experiment = smoke(*parts, runs=tmp_path)
    folder = ModelFolder(experiment.model_folder, experiment.from_)
    folder.take_given()
    stage = STAGES[name](experiment, folder)
    assert not hasattr(stage, "t5") and stage.network("t5") is stage.frozen["t5"]
    assert "text_encoder_2" not in stage.parts()
