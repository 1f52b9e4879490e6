"""Stage `vocoder`: learns, steps the right network, computes only the terms that count."""

from dataclasses import replace

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import SpeechT5HifiGan

from audioldm2_pl.audio import AudioConfig, LogMel
from audioldm2_pl.config import ExperimentConfig
from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.models.discriminators import MultiPeriodConfig, MultiResolutionConfig, MultiScaleConfig
from audioldm2_pl.models.istft import ISTFTConfig, ISTFTVocoder
from audioldm2_pl.models.vocoder import VocoderConfig, build_vocoder, vocode
from audioldm2_pl.training.optimizer import OptimizerConfig
from audioldm2_pl.training.vocoder import VocoderTraining, VocoderTrainingConfig, stft_loss


def tones() -> dict:
    """Four clips of 0.2 s and a few samples more than whole frames."""
    time = torch.arange(3210) / 16_000
    pitches = torch.tensor([[150.0], [400.0], [1000.0], [3000.0]])
    return {"waveform": 0.5 * torch.sin(2 * torch.pi * pitches * time), "key": list("abcd")}


VOCODER = VocoderConfig(
    upsample_rates=[8, 5, 4],
    upsample_kernel_sizes=[16, 11, 8],
    upsample_initial_channel=32,
    resblock_kernel_sizes=[3],
    resblock_dilation_sizes=[[1, 3]],
)


ISTFT = VocoderConfig(kind="istft", istft=ISTFTConfig(hidden_size=32, intermediate_size=64, num_layers=2))


def build(vocoder: VocoderConfig = VOCODER, **settings) -> VocoderTraining:
    torch.manual_seed(0)
    recipe = VocoderTrainingConfig(
        optimizer=OptimizerConfig(name="adamw", learning_rate=2e-3, betas=(0.8, 0.99)),
        period_discriminator=MultiPeriodConfig(periods=[2, 3], channels=[4, 8]),
        scale_discriminator=MultiScaleConfig(2, channels=[4, 8], kernel_sizes=[15, 5], strides=[2, 1], groups=[1, 4]),
        resolution_discriminator=MultiResolutionConfig([256, 512], channels=4),
        **settings,
    )
    return VocoderTraining(recipe, build_vocoder(vocoder, AudioConfig()), LogMel(AudioConfig()))


def fit(stage: VocoderTraining, num_batches: int) -> VocoderTraining:
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(stage, DataLoader([tones() for _ in range(num_batches)], batch_size=None))  # type: ignore[arg-type]
    return stage


def count_calls(module: nn.Module) -> list[int]:
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_overfits_one_batch():
    stage = build(discriminator_start=1_000)
    before = stage.losses(tones())["mel"].item()
    fit(stage, 100)
    assert stage.losses(tones())["mel"].item() < 0.4 * before


def test_adversarial_training_stays_finite():
    stage = fit(build(gradient_clip=1.0), 5)
    terms = stage.losses(tones())
    assert set(terms) == {"mel", "loud", "adversarial", "feature_matching", "discriminator"}
    assert all(term.isfinite() for term in terms.values())


def test_the_istft_vocoder_overfits_one_batch():
    stage = build(ISTFT, discriminator_start=1_000)
    before = stage.losses(tones())["mel"].item()
    fit(stage, 40)
    assert stage.losses(tones())["mel"].item() < 0.4 * before


def test_the_istft_vocoder_against_vocos_discriminators(tmp_path):
    stage = fit(build(ISTFT, discriminators=["period", "resolution"]), 3)
    terms = stage.losses(tones())
    assert {"adversarial", "feature_matching", "discriminator"} < set(terms)
    assert all(term.isfinite() for term in terms.values())
    folder = ModelFolder(tmp_path, started={"vocoder": "elsewhere"})
    folder.save("vocoder", stage.parts()["vocoder"])
    again = VocoderTraining.build(ExperimentConfig(vocoder=ISTFT), folder)  # goes on from the folder's
    assert isinstance(again.vocoder, ISTFTVocoder)
    log_mel = torch.randn(1, 1, 8, 64)
    torch.testing.assert_close(vocode(again.vocoder.eval(), log_mel), vocode(stage.vocoder.eval(), log_mel))


def test_crops_too_short_for_a_resolution_are_refused():
    experiment = ExperimentConfig()
    experiment.training.vocoder = VocoderTrainingConfig(
        discriminators=["resolution"], resolution_discriminator=MultiResolutionConfig([65_536])
    )
    with pytest.raises(UserError, match=r"resolution_discriminator.num_ffts: too long for crops of 8\d* samples"):
        VocoderTraining.check(experiment)


def test_discriminators_join_on_time():
    stage = build(discriminator_start=2)
    calls = count_calls(stage.discriminators[0])
    fit(stage, 2)
    assert not calls and set(stage.losses(tones())) == {"mel", "loud"}
    fit(stage, 3)
    assert len(calls) == 4  # real and generated, for each of the two steps


def test_each_step_moves_its_own_network():
    stage = build()
    seen = []

    def update(optimizer, loss, batch_idx):
        stage.zero_grad()
        loss.backward()
        seen.append({n for n, p in stage.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0})
        assert all(p.grad is None or p.grad.isfinite().all() for p in stage.parameters())

    stage.update = update
    stage.optimizers = lambda: (None, None)
    stage.log_terms = lambda *_: None
    stage.training_step(tones(), 0)
    discriminator_step, generator_step = seen
    assert discriminator_step and all(name.startswith("discriminators.") for name in discriminator_step)
    assert generator_step == {f"vocoder.{name}" for name, _ in stage.vocoder.named_parameters()}
    assert all(p.requires_grad for p in stage.parameters())


def test_stft_term_only_where_it_has_a_weight():
    assert "stft" not in build(discriminator_start=9).losses(tones())
    stage = build(discriminator_start=9, loss_weights={"mel": 1.0, "stft": 1.0})
    assert stage.losses(tones())["stft"] > 0


def test_stft_loss():
    waveform = tones()["waveform"]
    assert stft_loss(waveform, waveform, [64, 256]).item() == 0.0
    # at half the level the log-magnitudes differ by ln 2 (above the floor), and the convergence is 1/2
    noise = torch.randn(2, 4096)
    assert stft_loss(0.5 * noise, noise, [64, 256]).item() == pytest.approx(0.6931 + 0.5, abs=1e-3)


def test_parts_are_a_plain_vocoder(tmp_path):
    stage = build()
    folder = ModelFolder(tmp_path, started={"vocoder": "elsewhere"})
    folder.save("vocoder", stage.parts()["vocoder"])
    loaded, info = SpeechT5HifiGan.from_pretrained(tmp_path / "vocoder", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    log_mel = torch.randn(1, 1, 8, 64)
    torch.testing.assert_close(vocode(loaded, log_mel), vocode(stage.vocoder, log_mel))
    again = VocoderTraining.build(ExperimentConfig(vocoder=VOCODER), folder)
    torch.testing.assert_close(vocode(again.vocoder, log_mel), vocode(stage.vocoder, log_mel))


def test_a_given_vocoder_whose_hop_does_not_fit(tmp_path):
    folder = ModelFolder(tmp_path, started={"vocoder": "elsewhere"})
    folder.save("vocoder", build_vocoder(replace(VOCODER, upsample_rates=[8, 5, 8])))
    with pytest.raises(UserError, match="hop_length is 160"):
        VocoderTraining.build(ExperimentConfig(vocoder=VOCODER), folder)
