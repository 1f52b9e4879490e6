"""Stage `decoder`: what it leaves alone, and what it is for."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from audioldm2_pl.config import ExperimentConfig
from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.models.vae import encode
from audioldm2_pl.seeds import SharedRandom
from audioldm2_pl.training.decoder import LAGS, DecoderFinetuning, roughness
from audioldm2_pl.training.run import train


def vae_weights(experiment: ExperimentConfig) -> dict[str, torch.Tensor]:
    return load_file(experiment.model_folder / "vae" / "diffusion_pytorch_model.safetensors")


def posterior_of(stage: DecoderFinetuning, log_mel: torch.Tensor) -> dict[str, torch.Tensor]:
    posterior = encode(stage.frozen["vae"], log_mel)
    return {"mean": posterior.mean, "std": posterior.std}


def sampling_decoder(smoke, smoke_run, *overrides: str, runs: Path) -> ExperimentConfig:
    """An experiment whose decoder stage, the only one, reads the smoke run's T-UNet."""
    parts = ("clap", "t5", "audiomae", "vae", "vocoder", "unet", "gpt2")
    return smoke("stages=[decoder]", "training.decoder.sampled_from=[900,400]", "training.decoder.cache_features=true",
                 *(f"from.{part}={smoke_run.model_folder}" for part in parts), *overrides, runs=runs)  # fmt: skip


def test_the_decoder_learns_and_the_latents_stay(smoke, tmp_path):
    experiment = smoke("stages=[vae]", runs=tmp_path)
    train(experiment)
    before, config = vae_weights(experiment), (experiment.model_folder / "vae/config.json").read_text()
    train(experiment, "decoder")
    after = vae_weights(experiment)
    assert after.keys() == before.keys()
    changed = {key.split(".")[0] for key in after if not torch.equal(after[key], before[key])}
    assert changed == {"decoder", "post_quant_conv"}
    assert (experiment.model_folder / "vae/config.json").read_text() == config  # the scaling factor too


def test_a_given_vae_is_finetuned_in_the_run_and_left_as_it_is_where_it_came_from(smoke, smoke_run, tmp_path):
    before = vae_weights(smoke_run)
    experiment = smoke(f"from.vae={smoke_run.model_folder}", "stages=[vae,decoder]", runs=tmp_path)
    train(experiment)
    assert all(torch.equal(value, before[key]) for key, value in vae_weights(smoke_run).items())
    assert any(not torch.equal(value, before[key]) for key, value in vae_weights(experiment).items())


def test_without_a_vae_one_line_says_so(smoke, tmp_path):
    with pytest.raises(UserError, match=r"decoder: needs vae/"):
        train(smoke("stages=[decoder]", runs=tmp_path))


def test_it_is_trained_only_where_it_is_named():
    assert "decoder" not in ExperimentConfig().stages


def test_noise_has_the_asked_for_strength_and_gives_the_encoder_no_gradient(smoke_run):
    stage = DecoderFinetuning.build(smoke_run, ModelFolder(smoke_run.model_folder)).train()
    log_mel = torch.randn(64, 1, 64, 64) - 6.0
    latents = {}
    for noise in (0.0, 3.0):
        stage.config.latent_noise = noise
        stage.shared = SharedRandom(0)
        latents[noise] = stage.latent_to_decode(posterior_of(stage, log_mel))
    strength = (latents[3.0] - latents[0.0]).flatten(1).std(1)  # (B,)
    assert strength.min() < 0.3 and 2.7 < strength.max() < 3.3
    assert strength.mean() == pytest.approx(1.5, abs=0.3)

    stage.total(stage.losses({"waveform": torch.randn(2, 10_240) * 0.1, "id": ["0/0/0", "0/0/1"]})).backward()
    vae = stage.frozen["vae"]
    assert all(p.grad is None for p in vae.encoder.parameters())
    assert all(p.grad is not None for p in vae.decoder.parameters())


def test_roughness_tells_noise_from_its_mean():
    noise = torch.randn(2, 1, 64, 64)
    assert roughness(torch.zeros(2, 1, 64, 64)).abs().max() == 0.0
    cells = 7 * 8  # of 63 to 56 differences in a row, seven whole cells; of 64 values, eight
    assert roughness(noise).shape == (2, 2 * len(LAGS) * cells)
    assert roughness(noise).mean() == pytest.approx(2 / torch.pi**0.5, rel=0.05)  # mean |a - b| of two normal draws
    assert torch.allclose(roughness(3 * noise + 1), 3 * roughness(noise), rtol=1e-4)


def test_roughness_tells_noise_from_a_pattern_that_repeats():
    noise = torch.randn(2, 1, 64, 64)
    pattern = noise[:, :, :4, :4].tile(1, 1, 16, 16)  # as rough between neighbours, and the same every four
    by_lag = roughness(pattern).unflatten(1, (2, len(LAGS), -1)).mean((0, 1, 3))  # (lags,)
    assert by_lag[LAGS.index(1)] > 0.8
    assert by_lag[LAGS.index(4)] == by_lag[LAGS.index(8)] == 0.0


def test_it_learns_from_the_unets_latents_and_resumes_to_the_bit(smoke, smoke_run, tmp_path, monkeypatch):
    before = vae_weights(smoke_run)
    straight = sampling_decoder(smoke, smoke_run, runs=tmp_path / "straight")
    train(straight)
    after = vae_weights(straight)
    assert {key.split(".")[0] for key in after if not torch.equal(after[key], before[key])} == {
        "decoder",
        "post_quant_conv",
    }

    broken = sampling_decoder(smoke, smoke_run, runs=tmp_path / "broken")
    losses = DecoderFinetuning.losses
    calls = iter(range(100))
    monkeypatch.setattr(DecoderFinetuning, "losses", lambda *a: losses(*a) if next(calls) < 3 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(broken)
    monkeypatch.undo()
    assert (broken.run_folder / "checkpoints/decoder.ckpt").is_file()
    train(broken)
    resumed = vae_weights(broken)
    assert all(torch.equal(after[key], resumed[key]) for key in after)


def test_the_unets_latents_are_the_clips_own(smoke, smoke_run, tmp_path):
    experiment = sampling_decoder(smoke, smoke_run, "training.decoder.sampled_from=[40]", runs=tmp_path)
    stage = DecoderFinetuning.build(experiment, ModelFolder(smoke_run.model_folder)).train()
    batch = {
        "waveform": torch.randn(3, 40_960, generator=torch.Generator().manual_seed(0)) * 0.1,
        "text": ["a bell", "rain", "a siren"],
        "transcript": ["", "", ""],
        "id": ["0/0/0", "0/0/1", "0/0/2"],
    }
    stage.sampling = replace(stage.sampling, num_steps=50)
    together = stage.features(batch)
    alone = stage.features({name: value[1:2] for name, value in batch.items()})
    torch.testing.assert_close(alone["sampled"][0], together["sampled"][1], atol=1e-4, rtol=1e-4)
    clean = together["mean"] * stage.frozen["vae"].config.scaling_factor
    distance = (together["sampled"][:, None] - clean[None]).flatten(2).std(2)  # (3, 3)
    assert distance.argmin(1).tolist() == [0, 1, 2]

    stage.config.sampled_share, stage.config.latent_noise = 1.0, 0.0
    assert torch.equal(stage.latent_to_decode(together), together["sampled"])
    stage.config.sampled_share = 0.0
    assert not torch.isclose(stage.latent_to_decode(together), together["sampled"]).all()


def test_the_unet_samples_no_more_clips_than_asked_for(smoke, smoke_run, tmp_path, monkeypatch):
    experiment = sampling_decoder(smoke, smoke_run, "training.decoder.max_clips=5", runs=tmp_path)
    sampled_keys, trained = [], []
    sampled, losses = DecoderFinetuning.sampled, DecoderFinetuning.losses
    monkeypatch.setattr(DecoderFinetuning, "sampled", lambda s, b, p: sampled_keys.extend(b["key"]) or sampled(s, b, p))
    monkeypatch.setattr(DecoderFinetuning, "losses", lambda s, b: trained.extend(b["key"]) or losses(s, b))
    train(experiment)
    assert len(sampled_keys) == len(set(sampled_keys)) == 5
    assert set(trained) == set(sampled_keys)


def test_log_mel_and_latents_are_cropped_alike(smoke, smoke_run, tmp_path):
    experiment = sampling_decoder(smoke, smoke_run, runs=tmp_path)
    stage = DecoderFinetuning.build(experiment, ModelFolder(smoke_run.model_folder))
    assert stage.config.read_seconds is None  # the T-UNet reads whole clips
    frame = torch.arange(256.0).view(1, 1, 256, 1)
    features = {"log_mel": frame.expand(5, 1, 256, 64), "mean": frame[:, :, ::8].expand(5, 8, 32, 8)}
    crops = stage.cropped(features)
    assert crops["log_mel"].shape == (5, 1, 64, 64) and crops["mean"].shape == (5, 8, 8, 8)  # 0.64 s
    assert torch.equal(crops["log_mel"][:, 0, ::8, 0], crops["mean"][:, 0, :, 0])
    assert len(set(crops["mean"][:, 0, 0, 0].tolist())) > 1  # each clip from a place of its own


def test_it_comes_after_the_unet_that_it_reads(smoke):
    with pytest.raises(UserError, match="put it after joint"):
        smoke("training.decoder.sampled_from=[500]")
    with pytest.raises(UserError, match=r"sampled_share=2.* from 0 to 1"):
        smoke("training.decoder.sampled_share=2")
    with pytest.raises(UserError, match=r"max_clips=0 has to be at least 1"):
        smoke("training.decoder.max_clips=0")
    with pytest.raises(UserError, match=r"sampled_from\[0\]=0 has to be at least 1"):
        smoke("training.decoder.sampled_from=[0]")
