"""Stage `decoder`: what it leaves alone, and what it is for."""

import pytest
import torch
from safetensors.torch import load_file

from audioldm2_pl.checkpoints import ModelFolder
from audioldm2_pl.config import ExperimentConfig
from audioldm2_pl.errors import UserError
from audioldm2_pl.training.decoder import LAGS, DecoderFinetuning, roughness
from audioldm2_pl.training.run import train


def vae_weights(experiment: ExperimentConfig) -> dict[str, torch.Tensor]:
    return load_file(experiment.model_folder / "vae" / "diffusion_pytorch_model.safetensors")


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
    with pytest.raises(UserError, match=r"the part vae/ is missing"):
        train(smoke("stages=[decoder]", runs=tmp_path))


def test_it_is_trained_only_where_it_is_named():
    assert "decoder" not in ExperimentConfig().stages


def test_noise_has_the_asked_for_strength_and_gives_the_encoder_no_gradient(smoke_run):
    stage = DecoderFinetuning(smoke_run, ModelFolder(smoke_run.model_folder)).train()
    log_mel = torch.randn(64, 1, 64, 64) - 6.0
    latents = {}
    for noise in (0.0, 3.0):
        stage.config.latent_noise = noise
        torch.manual_seed(0)
        latents[noise] = stage.noisy_latent(log_mel)
    strength = (latents[3.0] - latents[0.0]).flatten(1).std(1)  # (B,)
    assert strength.min() < 0.3 and 2.7 < strength.max() < 3.3
    assert strength.mean() == pytest.approx(1.5, abs=0.3)

    stage.total(stage.losses({"waveform": torch.randn(2, 10_240) * 0.1, "key": ["a", "b"]})).backward()
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
