"""Discriminators: HiFi-GAN's sizes, shapes, losses in closed form."""

import pytest
import torch

from audioldm2_pl.errors import UserError
from audioldm2_pl.models.discriminators import (
    MultiPeriodConfig,
    MultiPeriodDiscriminator,
    MultiScaleConfig,
    MultiScaleDiscriminator,
    PatchGAN,
    PatchGANConfig,
    feature_matching_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
    least_squares_discriminator_loss,
    least_squares_generator_loss,
)

PERIODS = MultiPeriodConfig(periods=[2, 3], channels=[4, 8, 8])
SCALES = MultiScaleConfig(
    num_scales=2, channels=[4, 8, 8], kernel_sizes=[15, 41, 5], strides=[1, 4, 1], groups=[1, 4, 1]
)


def test_published_sizes():
    with torch.device("meta"):
        period, scale = MultiPeriodDiscriminator(MultiPeriodConfig()), MultiScaleDiscriminator(MultiScaleConfig())
    assert sum(p.numel() for p in period.parameters()) == 41_105_770
    assert sum(p.numel() for p in scale.parameters()) == 29_618_821


def test_patchgan():
    discriminator = PatchGAN(PatchGANConfig(base_channels=4))
    logits, features = discriminator(torch.randn(2, 1, 64, 64))
    assert [tuple(x.shape) for x in logits] == [(2, 1, 6, 6)]  # 70 × 70 patches, a stride of 8
    assert [x.shape[1] for x in features] == [4, 8, 16, 32]


@pytest.mark.parametrize("num_samples", [1600, 1601])
def test_waveform_discriminators(num_samples):
    waveform = torch.randn(2, num_samples)
    for discriminator in (MultiPeriodDiscriminator(PERIODS), MultiScaleDiscriminator(SCALES)):
        logits, features = discriminator(waveform)
        assert len(logits) == 2 and len(features) == 2 * 4
        assert all(x.shape[0] == 2 and x.isfinite().all() for x in logits + features)


@pytest.mark.parametrize(
    "discriminator, shape",
    [
        (PatchGAN(PatchGANConfig(base_channels=4)), (2, 1, 32, 32)),
        (MultiPeriodDiscriminator(PERIODS), (2, 800)),
        (MultiScaleDiscriminator(SCALES), (2, 800)),
    ],
)
def test_every_weight_gets_a_finite_gradient(discriminator, shape):
    real, fake = torch.randn(shape), torch.randn(shape)
    least_squares_discriminator_loss(discriminator(real)[0], discriminator(fake)[0]).backward()
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_a_period_discriminator_mixes_only_every_pth_sample():
    discriminator = MultiPeriodDiscriminator(MultiPeriodConfig(periods=[5], channels=[4, 8]))
    waveform = torch.randn(1, 200, requires_grad=True)
    discriminator(waveform)[0][0][0, 0, :, 2].sum().backward()
    assert waveform.grad is not None
    touched = waveform.grad[0].nonzero().squeeze(1)
    assert len(touched) and (touched % 5 == 2).all()


def test_losses_in_closed_form():
    real, fake = [torch.full((3,), 2.0), torch.full((2,), 0.5)], [torch.full((3,), -2.0), torch.full((2,), 0.5)]
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx(0.0 + 0.5 * (0.5 + 1.5))
    assert hinge_generator_loss(fake).item() == pytest.approx(2.0 - 0.5)
    assert least_squares_discriminator_loss(real, fake).item() == pytest.approx((1 + 4) + (0.25 + 0.25))
    assert least_squares_generator_loss(fake).item() == pytest.approx(9 + 0.25)
    assert feature_matching_loss(real, fake).item() == pytest.approx(4.0)


def test_feature_matching_gives_real_sound_no_gradient():
    real, fake = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    feature_matching_loss([real], [fake]).backward()
    assert real.grad is None and fake.grad is not None


def test_groups_that_do_not_fit():
    with pytest.raises(UserError, match="groups"):
        MultiScaleDiscriminator(MultiScaleConfig(channels=[4, 8]))
