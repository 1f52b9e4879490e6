"""Samples during training: every stage that makes sound is previewed, and training does not notice."""

import shutil

import pytest
import soundfile
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_stages import prepared, weights

from audioldm2_pl.audio import AudioConfig, LogMel, griffin_lim
from audioldm2_pl.config import STAGES
from audioldm2_pl.pipeline import AudioLDM2
from audioldm2_pl.seeds import seed_of
from audioldm2_pl.shards.datamodule import AudioShards
from audioldm2_pl.training.run import train
from audioldm2_pl.training.stage import Stage

EVERY = ("trainer.sample_every_batches=2", "trainer.sample_clips=2")


PREVIEWED = [name for name, stage in STAGES.items() if stage.preview is not Stage.preview]


@pytest.mark.parametrize("stage", PREVIEWED)
def test_a_previewed_stage_ends_with_the_same_bits(stage, smoke, smoke_run, tmp_path):
    plain = prepared(smoke, smoke_run, stage, tmp_path, "plain")
    previewed = prepared(smoke, smoke_run, stage, tmp_path, "previewed", *EVERY)
    train(plain, stage)
    train(previewed, stage)
    first, second = weights(plain, stage), weights(previewed, stage)
    assert all(torch.equal(first[key], second[key]) for key in first)

    folder = previewed.run_folder / "samples" / stage
    expected = {f"{clip}_{name}.wav" for clip in (0, 1) for name in ("reference", "0000002", "0000004")}
    assert {path.name for path in folder.iterdir()} == expected
    sounds = {path.stem: soundfile.read(path)[0] for path in folder.iterdir()}
    assert all(len(sound) == previewed.audio.num_samples and sound.any() for sound in sounds.values())
    if stage in ("vae", "vocoder"):  # a T-UNet as young as the others' hears no condition yet
        assert (sounds["0_0000002"] != sounds["0_0000004"]).any()


def test_the_last_sample_is_what_the_finished_model_says(smoke, smoke_run, tmp_path):
    experiment = prepared(smoke, smoke_run, "joint", tmp_path, "previewed", *EVERY)
    train(experiment, "joint")
    clip, rate = soundfile.read(experiment.run_folder / "samples" / "joint" / "1_0000004.wav")
    reference, _ = soundfile.read(experiment.run_folder / "samples" / "joint" / "1_reference.wav")
    shards = AudioShards(experiment.data, experiment.audio, 0, 4)
    captions = {
        text: waveform
        for batch in shards.val_dataloader()
        for text, waveform in zip(batch["text"], batch["waveform"].numpy())
    }
    text = min(captions, key=lambda text: abs(captions[text] - reference).max())
    model = AudioLDM2.from_pretrained(experiment.model_folder)
    said = model.generate(text, num_steps=3, guidance_scale=3.0, eta=0.0, seed=seed_of(experiment.seed, "samples", 1))
    assert rate == model.sample_rate
    assert abs(said[0].clamp(-1, 1).numpy() - clip).max() < 1e-3  # 16 bits, and batches of two and of one


def test_a_vae_without_a_vocoder_is_previewed_through_griffin_and_lim(smoke, smoke_run, tmp_path):
    experiment = prepared(smoke, smoke_run, "vae", tmp_path, "alone", *EVERY)
    shutil.rmtree(experiment.model_folder / "vocoder")
    train(experiment, "vae")
    sound, _ = soundfile.read(experiment.run_folder / "samples" / "vae" / "0_0000004.wav")
    assert sound.any()


def test_what_cannot_be_previewed_is_said_once_and_training_goes_on(smoke, smoke_run, tmp_path, capsys):
    experiment = prepared(smoke, smoke_run, "ldm", tmp_path, "mute", *EVERY)
    shutil.rmtree(experiment.model_folder / "vocoder")
    train(experiment, "ldm")
    out = capsys.readouterr().out
    assert out.count("no samples") == 1 and "vocoder" in out
    assert (experiment.model_folder / "unet").is_dir()


def test_tensorboard_has_players(smoke, smoke_run, tmp_path):
    experiment = prepared(smoke, smoke_run, "vocoder", tmp_path, "logged", *EVERY, "trainer.loggers=[tensorboard]")
    train(experiment, "vocoder")
    events = EventAccumulator(str(experiment.run_folder / "logs" / "vocoder" / "tensorboard"))
    events.Reload()
    assert events.Tags()["audio"] == ["sample/0", "sample/1"]
    player = events.Audio("sample/1")[-1]
    assert (player.sample_rate, player.step, player.length_frames) == (16_000, 4, experiment.audio.num_samples)


def test_griffin_lim_gives_back_the_log_mel():
    config = AudioConfig(clip_seconds=1.28)
    times = torch.arange(config.num_samples) / config.sample_rate
    waveform = 0.3 * torch.sin(2 * torch.pi * (300 + 200 * times) * times)[None]
    log_mel = LogMel(config)(waveform)
    sound = griffin_lim(log_mel, config)
    assert sound.shape == waveform.shape
    loud = log_mel > log_mel.max() - 4
    assert (LogMel(config)(sound) - log_mel)[loud].abs().mean() < 0.3
    assert torch.equal(sound, griffin_lim(log_mel, config))
