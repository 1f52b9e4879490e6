"""What a later stage would refuse is refused before the first batch of the first."""

import shutil

import pytest

from audioldm2_pl.config import load_experiment
from audioldm2_pl.errors import UserError
from audioldm2_pl.training.run import train
from data.shards import write_shards
from data.synthetic import clips


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["stages=[audiomae,ldm]"], r"ldm: needs vae/"),
        (["stages=[audiomae,gpt2]"], r"gpt2: needs text_encoder/"),
        (["stages=[audiomae,decoder]"], r"decoder: needs vae/"),
        (["stages=[clap,audiomae,vae,joint]"], r"joint: needs unet/"),
        (["stages=[vae,audiomae]", "training.audiomae.crop_seconds=1.0"], "AudioMAE reads whole clips"),
        (["stages=[audiomae,vae]", "training.vae.crop_seconds=0.41"], "does not divide"),
        (["stages=[vae,audiomae]", "training.audiomae.optimizer.learning_rates={unet: 1.0}"], "no network 'unet'"),
        (["stages=[audiomae,vae]", "training.vae.optimizer.learning_rates={vae.encodr: 1.0}"], "vae has no 'encodr'"),
        (["data.test=nowhere", "trainer.validate_every_batches=2"], "nowhere: no shards here"),
    ],
)
def test_a_recipe_that_a_later_stage_refuses(overrides, said, smoke, tmp_path):
    experiment = smoke(*overrides, runs=tmp_path)
    with pytest.raises(UserError, match=said) as error:
        train(experiment)
    assert "\n" not in str(error.value)
    assert not (experiment.run_folder / "logs").exists() and not list(experiment.model_folder.glob("*/"))


def test_clips_longer_than_those_that_are_cached(smoke, shards, tmp_path):
    train_folder = tmp_path / "long"
    shutil.copytree(shards / "train", train_folder)
    experiment = smoke(
        f"data.train=[{train_folder}]", "stages=[clap,audiomae,vae,ldm]", "training.ldm.cache_features=true",
        "audio.clip_seconds=1.28", "audiomae.num_frames=128", "vae.sample_size=128", "unet.sample_size=16",
        "audiomae.pooling=4", "training.ldm.poolings=[4]", runs=tmp_path,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"training.ldm.cache_features=false"):
        train(experiment)
    assert not (experiment.run_folder / "logs").exists()


def test_features_of_other_shards(smoke, shards, tmp_path):
    write_shards(clips("train", 3), tmp_path / "other", num_workers=1)
    experiment = smoke("stages=[clap,audiomae,vae,ldm]", f"data.encoded=[{tmp_path}/other]", runs=tmp_path)
    with pytest.raises(UserError, match="holds no encoded features"):
        train(experiment)
    assert not (experiment.run_folder / "logs").exists()


@pytest.mark.parametrize("override", ["training.ldm.poolings=[3]", "audiomae.pooling=5", "training.ldm.poolings=[32]"])
def test_a_pooling_that_does_not_divide_is_refused_when_the_file_is_read(override):
    with pytest.raises(UserError, match="does not divide the 16 rows"):
        load_experiment("experiments/smoke.yaml", [override])


def test_packages_that_are_missing(smoke, tmp_path, monkeypatch):
    experiment = smoke("trainer.loggers=[wandb]", runs=tmp_path)
    monkeypatch.setattr("audioldm2_pl.training.checks.find_spec", lambda name: None)
    with pytest.raises(UserError, match="wandb is not installed"):
        train(experiment)
