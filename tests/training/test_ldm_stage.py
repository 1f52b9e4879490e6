"""Stage `ldm`: what the T-UNet reads of a clip."""

import pytest
import torch

from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.shards.datamodule import AudioShards
from audioldm2_pl.training.ldm import LDMPretraining, drop_loa


@pytest.mark.parametrize(("loa_dropout", "is_read"), [(0.0, True), (1.0, False)])
def test_loa_alone_is_dropped(loa_dropout, is_read, smoke_run, monkeypatch):
    stage = LDMPretraining.build(smoke_run, ModelFolder(smoke_run.model_folder)).train()
    monkeypatch.setattr(stage.config, "loa_dropout", loa_dropout)
    monkeypatch.setattr(stage.diffusion, "condition_dropout", 0.0)
    batch = next(iter(AudioShards(smoke_run.data, smoke_run.audio, seed=0, batch_size=4).train_dataloader()))
    read = []
    stage.unet.register_forward_pre_hook(lambda module, args: read.extend(args[2]))
    stage.losses(batch)["diffusion"].backward()
    loa, text = read
    assert loa.embedding.any() == is_read and loa.mask.all()
    expected = stage.network("t5")(batch["text"])
    torch.testing.assert_close(text.embedding, expected.embedding)


def test_each_clip_loses_all_its_loa_or_none():
    torch.manual_seed(0)
    left = drop_loa(torch.ones(4000, 2, 3), 0.3).flatten(1)  # (B, L D)
    assert torch.equal(left.amin(1), left.amax(1))
    assert left[:, 0].mean().item() == pytest.approx(0.7, abs=0.03)


def test_a_probability_of_zero_draws_nothing():
    before = torch.get_rng_state()
    loa = torch.ones(4, 2, 3)
    assert drop_loa(loa, 0.0) is loa
    assert torch.equal(torch.get_rng_state(), before)
