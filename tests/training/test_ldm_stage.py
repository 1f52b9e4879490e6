"""Stage `ldm`: what the T-UNet reads of a clip."""

from dataclasses import replace

import pytest
import torch

from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.shards.datamodule import AudioShards
from audioldm2_pl.training.ldm import LDMPretraining


@pytest.mark.parametrize(("dropped", "is_read"), [({}, True), ({"loa": 1.0}, False)])
def test_loa_alone_is_dropped(dropped, is_read, smoke_run, monkeypatch):
    stage = LDMPretraining.build(smoke_run, ModelFolder(smoke_run.model_folder)).train()
    monkeypatch.setattr(stage, "diffusion", replace(smoke_run.diffusion, condition_dropout=0.0, dropout_alone=dropped))
    batch = next(iter(AudioShards(smoke_run.data, smoke_run.audio, seed=0, batch_size=4).train_dataloader()))
    read = []
    stage.unet.register_forward_pre_hook(lambda module, args: read.extend(args[2]))
    stage.losses(batch)["diffusion"].backward()
    loa, text = read
    assert loa.embedding.any() == is_read and loa.mask.all()
    expected = stage.network("t5")(batch["text"])
    torch.testing.assert_close(text.embedding, expected.embedding)
