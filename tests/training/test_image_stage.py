"""Stage `image`: that it learns, its negatives, and the way from shards with pictures to sound of a picture."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from breaking import break_off
from fitting import overfit
from PIL import Image
from safetensors.torch import load_file

from audioldm2_pl.cli import main
from audioldm2_pl.conditioners.image import ImageConfig, ImageEncoder
from audioldm2_pl.config import load_experiment
from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.hub.push import build_repository
from audioldm2_pl.pipeline import AudioLDM2
from audioldm2_pl.training.image import ImagePretraining, ImageTrainingConfig
from audioldm2_pl.training.run import train
from data.shards import write_shards
from data.synthetic import clips

EXPERIMENT = Path(__file__).parents[2] / "experiments/esc10_image.yaml"
TINY = ImageConfig(pretrained=None, projection_dim=16, image_size=32, num_mel_bins=32, channels=[16, 16, 32, 64])
OVERRIDES = [
    "conditioners.clap=null", "conditioners.t5=null", "gpt2.conditions=[image]", "unet.conditions=[loa]",
    "conditioners.image={pretrained: null, projection_dim: 16, image_size: 32, channels: [16, 16, 16, 16]}",
    "training.image={batches: 4, batch_size: 4, save_every_batches: 2}",
]  # fmt: skip


@pytest.fixture
def stage() -> ImagePretraining:
    torch.manual_seed(0)
    return ImagePretraining(ImageTrainingConfig(), ImageEncoder.build(TINY), 16_000)


@pytest.fixture
def batch() -> dict:
    pitches = 100.0 * 2 ** torch.linspace(0, 5, 6)[:, None]
    waveform = 0.3 * torch.sin(2 * torch.pi * pitches * torch.arange(6_000) / 16_000)
    waveform += 0.02 * torch.randn(waveform.shape, generator=torch.Generator().manual_seed(1))
    colours = 255 * np.concatenate([np.eye(3), 1 - np.eye(3)])
    images = [np.full((40, 40, 3), colour, np.uint8) for colour in colours]
    return {"waveform": waveform, "image": images, "image_id": torch.arange(6), "key": list("abcdef")}


def test_overfits_one_batch(stage, batch):
    losses = overfit(stage, batch, 30, learning_rate=1e-3)
    assert losses[-1] < 0.3 * losses[0]
    stage.eval()
    with torch.no_grad():
        similarity = stage.image.encode_audio(batch["waveform"], 16_000).embedding[:, 0] @ (
            stage.image.encode_images(batch["image"]).embedding[:, 0].T
        )
    assert (similarity.argmax(0) == torch.arange(6)).all() and (similarity.argmax(1) == torch.arange(6)).all()


def test_every_parameter_gets_a_gradient(stage, batch):
    stage.losses(batch)["contrastive"].backward()
    assert [name for name, p in stage.named_parameters() if p.grad is None] == []


def test_clips_of_the_same_pictures_are_no_negatives_of_each_other(stage, batch):
    stage.eval()
    assert stage.losses({**batch, "image_id": torch.zeros(6)})["contrastive"].item() == pytest.approx(0.0, abs=1e-6)
    assert stage.losses(batch)["contrastive"].item() > 0.1


def test_pictures_are_cropped_at_random_in_training_alone(stage, batch):
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    torch.manual_seed(0)
    first, second = stage.augmented(image), stage.augmented(image)
    assert first.shape == (3, 32, 32) and not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(stage.augmented(image), first)
    assert np.array_equal(stage.eval().augmented(image).permute(1, 2, 0).numpy(), image)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (48, 40), colour).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def run(smoke, smoke_run, pictures, tmp_path_factory):
    """The smoke experiment with a picture for each clip, and the experiment's lists of conditions."""
    shards = tmp_path_factory.mktemp("shards") / "train"
    found = list(clips("train", 8))
    for i, clip in enumerate(found):
        clip.pictures = [pictures / f"{i % 3}.png"]
    write_shards(found, shards, num_workers=1)
    given = [f"from.{part}={smoke_run.model_folder}" for part in ("audiomae", "vae", "vocoder")]
    experiment = smoke(*OVERRIDES, *given, "stages=[image,ldm,gpt2,joint]", f"data.train=[{shards}]", "data.test=null",
                       "trainer.sample_every_batches=4")  # fmt: skip
    train(experiment)
    return experiment


def test_the_shipped_experiment_is_of_these_conditions():
    lines = [line for line in EXPERIMENT.read_text().splitlines() if not line.startswith("#")]
    experiment = load_experiment(EXPERIMENT)
    assert len(lines) <= 15 and experiment.condition_names == ["image"]
    assert (experiment.gpt2.conditions, experiment.unet.conditions) == (["image"], ["loa"])
    assert experiment.stages[0] == "image" and experiment.conditioners.image.hears == "waveform"


def test_a_run_is_trained_saved_and_previewed(run):
    folder = ModelFolder(run.model_folder)
    assert folder.conditions() == (["loa"], None, ["image"]) and not folder.opens_in_diffusers
    assert folder.has("image_encoder") and not folder.has("text_encoder")
    assert list((run.run_folder / "samples/joint").glob("*_0000004.wav"))


def test_a_model_of_pictures_is_published_without_sounds_of_captions(run):
    repository = build_repository(run, "someone/pictures", "other", num_sounds=2)
    assert "image_encoder" in (repository / "README.md").read_text() and not (repository / "sounds").exists()


def test_killed_and_resumed_ends_with_the_same_bits(run, smoke, tmp_path, monkeypatch):
    overrides = [*OVERRIDES, "stages=[image]", f"data.train=[{run.data.train[0]}]", "data.test=null"]
    broken = smoke(*overrides, runs=tmp_path)
    break_off(broken, "image", 3, monkeypatch)
    train(broken)
    expected, resumed = (load_file(e.model_folder / "image_encoder/model.safetensors") for e in (run, broken))
    assert expected.keys() == resumed.keys() and all(torch.equal(expected[key], resumed[key]) for key in expected)


@pytest.fixture(scope="module")
def model(run) -> AudioLDM2:
    return AudioLDM2.from_pretrained(run.model_folder)


def test_sound_of_a_picture_a_video_and_a_recording(model, pictures, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(16_000)), 16_000)
    red, blue = (model.generate("", image=pictures / f"{i}.png", num_steps=2) for i in (0, 2))
    heard = model.generate("", audio=str(tmp_path / "a.wav"), num_steps=2)
    assert red.shape == (1, 40_960) and red.isfinite().all()
    assert not torch.equal(red, blue) and not torch.equal(red, heard)
    both = model.generate(["", ""], image=[str(pictures / "0.png"), str(pictures / "2.png")], seed=[0, 0], num_steps=2)
    torch.testing.assert_close(both, torch.cat([red, blue]), atol=1e-4, rtol=0)


def test_guidance_against_no_picture(model, pictures):
    for unconditional in ("zero", "gpt2"):
        waveform = model.generate("", image=str(pictures / "0.png"), num_steps=2, unconditional=unconditional)
        assert waveform.isfinite().all()


def test_a_model_of_pictures_wants_one(model, smoke_run, pictures):
    with pytest.raises(UserError, match="makes sound of pictures"):
        model.generate("a bell", num_steps=2)
    with pytest.raises(UserError, match="reads no image; it reads audio"):
        AudioLDM2.from_pretrained(smoke_run.model_folder).generate("", image=str(pictures / "0.png"))


def test_a_recording_takes_the_prompts_place_in_clap(smoke_run, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(16_000)), 16_000)
    model = AudioLDM2.from_pretrained(smoke_run.model_folder)
    plain, heard = (model.generate("a bell", num_steps=2, audio=path) for path in (None, str(tmp_path / "a.wav")))
    assert heard.isfinite().all() and not torch.equal(plain, heard)


def test_bfloat16(run, pictures):
    model = AudioLDM2.from_pretrained(run.model_folder, dtype=torch.bfloat16)
    assert next(model.conditioners["image"].parameters()).dtype == torch.float32
    assert model.generate("", image=str(pictures / "0.png"), num_steps=2).isfinite().all()


def test_from_the_command_line(run, pictures, tmp_path, capsys):
    arguments = [run.model_folder, "--image", pictures / "1.png", "--steps", 2, "--output", tmp_path]
    assert main(["generate", *map(str, arguments)]) == 0
    assert (tmp_path / "0001_1.wav").is_file()
    assert main(["generate", str(run.model_folder), "--image", str(tmp_path / "none.png")]) == 2
    assert "none.png: no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["conditioners.image.pretrained=facebook/pe-av-large"], r"set conditioners\.image\.pretrained=null"),
        (["conditioners.image=null", "gpt2.conditions=[clap]", "conditioners.clap={pretrained: null}"],
         r"image trains conditioners\.image, which is null"),
    ],
)  # fmt: skip
def test_stages_that_have_nothing_to_train_are_refused(smoke, overrides, message):
    with pytest.raises(UserError, match=message):
        smoke(*OVERRIDES[:-1], *overrides, "stages=[image]")


def test_shards_without_pictures_are_told(smoke, tmp_path):
    with pytest.raises(UserError, match="it has no picture"):
        train(smoke(*OVERRIDES, "stages=[image]", runs=tmp_path))
