"""The VAE: published size, shapes, gradients, the folder round trip, the scaling factor."""

import pytest
import torch
from diffusers import AutoencoderKL

from audioldm2_pl.errors import UserError
from audioldm2_pl.models.vae import VAEConfig, build_vae, encode, latent_of, log_mel_of, measure_scaling_factor

SMALL = VAEConfig(block_out_channels=[8, 16, 16, 24], layers_per_block=1, norm_num_groups=8)


@pytest.fixture
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return build_vae(SMALL)


def test_published_size():
    with torch.device("meta"):
        vae = build_vae(VAEConfig())
    assert sum(p.numel() for p in vae.parameters()) == 55_376_873  # 55.38 M
    assert vae.config["scaling_factor"] == 0.4110932946205139
    assert vae.config["force_upcast"] and vae.config["sample_size"] == 1024
    assert VAEConfig().downsampling == 4


def test_shapes_and_scaling(vae):
    log_mel = torch.randn(2, 1, 32, 64)
    latent = latent_of(vae, log_mel, sample=False)
    assert SMALL.downsampling == 8
    assert latent.shape == (2, 8, 4, 8)
    torch.testing.assert_close(latent, encode(vae, log_mel).mode() * SMALL.scaling_factor)
    decoded = log_mel_of(vae, latent)
    assert decoded.shape == log_mel.shape
    torch.testing.assert_close(decoded, vae.decode(latent / SMALL.scaling_factor).sample)


def test_a_sample_differs_from_the_mode(vae):
    log_mel = torch.randn(1, 1, 16, 64)
    assert not torch.equal(latent_of(vae, log_mel), latent_of(vae, log_mel, sample=False))


def test_every_weight_gets_a_finite_gradient(vae):
    log_mel = torch.randn(2, 1, 16, 64)
    posterior = encode(vae, log_mel)
    (vae.decode(posterior.sample()).sample.square().mean() + posterior.kl().mean()).backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_posterior_is_float32_under_autocast(vae):
    with torch.autocast("cpu", torch.bfloat16):
        assert encode(vae, torch.randn(1, 1, 16, 64)).mean.dtype == torch.float32


def test_folder_round_trip(vae, tmp_path):
    measure_scaling_factor(vae, [torch.randn(2, 1, 16, 64)])
    vae.save_pretrained(tmp_path)
    loaded = AutoencoderKL.from_pretrained(tmp_path)
    assert loaded.config["scaling_factor"] == vae.config["scaling_factor"] != SMALL.scaling_factor
    log_mel = torch.randn(1, 1, 16, 64)
    torch.testing.assert_close(latent_of(loaded, log_mel, sample=False), latent_of(vae, log_mel, sample=False))


def test_measured_scaling_factor_makes_unit_std(vae):
    batches = [torch.randn(8, 1, 32, 64) * 3 for _ in range(4)]
    measure_scaling_factor(vae, batches)
    latents = torch.cat([latent_of(vae, log_mel) for log_mel in batches])
    assert latents.std().item() == pytest.approx(1.0, abs=0.02)


def test_user_errors(vae):
    with pytest.raises(UserError, match="norm_num_groups"):
        build_vae(VAEConfig(block_out_channels=[8, 20], norm_num_groups=8))
    with pytest.raises(UserError, match="downsampling of 8"):
        encode(vae, torch.randn(1, 1, 20, 64))
    with pytest.raises(UserError, match="no batch"):
        measure_scaling_factor(vae, [])
