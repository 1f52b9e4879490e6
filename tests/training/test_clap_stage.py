"""Stage `clap`: the contrastive loss, its negatives, and that it learns."""

import pytest
import torch
import torch.nn.functional as F
from fitting import overfit

from audioldm2_pl.conditioners.clap import CLAP, CLAPConfig
from audioldm2_pl.training.clap import MAX_LOGIT_SCALE, CLAPPretraining, CLAPTrainingConfig, contrastive_loss

TINY = CLAPConfig(
    pretrained=None,
    projection_dim=32,
    clip_seconds=1,
    num_mel_bins=32,
    spec_size=64,
    hop_length=320,
    patch_embeds_hidden_size=16,
    depths=[1, 1],
    audio_heads=[2, 4],
    text_width=32,
    text_layers=1,
    text_heads=2,
)


@pytest.fixture
def stage() -> CLAPPretraining:
    torch.manual_seed(0)
    return CLAPPretraining(CLAPTrainingConfig(), CLAP.build(TINY), 16_000)


@pytest.fixture
def batch() -> dict:
    generator = torch.Generator().manual_seed(1)
    pitches = 100.0 * 2 ** torch.linspace(0, 5, 8)[:, None]
    time = torch.arange(16_000) / 16_000
    waveform = 0.3 * torch.sin(2 * torch.pi * pitches * time)
    waveform += 0.02 * torch.randn(waveform.shape, generator=generator)
    names = ["bell", "horn", "dog", "rain", "saw", "wind", "car", "tap"]
    return {"waveform": waveform, "text": [f"a {name}" for name in names], "key": names}


def test_overfits_one_batch(stage, batch):
    losses = overfit(stage, batch, 40, learning_rate=2e-3)
    assert losses[-1] < 0.3 * losses[0]
    stage.eval()
    with torch.no_grad():
        audio = stage.clap.encode_audio(batch["waveform"], 16_000).embedding[:, 0]
        text = stage.clap.encode_text(batch["text"]).embedding[:, 0]
    similarity = audio @ text.T
    assert (similarity.argmax(0) == torch.arange(8)).all()
    assert (similarity.argmax(1) == torch.arange(8)).all()


def test_every_parameter_gets_a_gradient(stage, batch):
    stage.losses(batch)["contrastive"].backward()
    assert [name for name, p in stage.named_parameters() if p.grad is None] == []


def test_loss_is_the_mean_of_both_cross_entropies():
    audio, text = F.normalize(torch.randn(2, 5, 32), dim=-1)
    by_audio = -(torch.e * audio @ text.T).log_softmax(1).diagonal().mean()
    by_text = -(torch.e**2 * text @ audio.T).log_softmax(1).diagonal().mean()
    scales = torch.tensor(1.0), torch.tensor(2.0)
    torch.testing.assert_close(contrastive_loss(audio, text, *scales), (by_audio + by_text) / 2)


def test_clips_with_one_caption_are_no_negatives_of_each_other(stage, batch):
    stage.eval()
    twice = {**batch, "waveform": batch["waveform"][:2], "text": ["a bell", "a bell"]}
    assert stage.losses(twice)["contrastive"].item() == pytest.approx(0.0, abs=1e-6)
    stage.losses({**batch, "text": ["a bell"] * 4 + batch["text"][4:]})["contrastive"].backward()
    assert all(p.grad.isfinite().all() for p in stage.parameters())
    other = {**twice, "text": ["a bell", "a horn"]}
    assert stage.losses(other)["contrastive"].item() > 0.1


def test_logit_scales_stay_below_a_hundred(stage, batch):
    with torch.no_grad():
        stage.clap.model.logit_scale_a.fill_(9.0)
    stage.losses(batch)
    assert stage.clap.model.logit_scale_a.item() == pytest.approx(MAX_LOGIT_SCALE)
    assert set(stage.parts()) == {"text_encoder", "tokenizer", "feature_extractor"}
