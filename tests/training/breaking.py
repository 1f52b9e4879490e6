"""A run that ends as by kill -9."""

import pytest

from audioldm2_pl.training.checkpoint import Resumable
from audioldm2_pl.training.run import train


def break_off(experiment, stage: str, num_batches: int, monkeypatch) -> None:
    """Trains so many batches, and dies before the next."""
    save = Resumable.on_train_batch_end

    def die(self, trainer, pl_module, outputs, batch, batch_idx):
        save(self, trainer, pl_module, outputs, batch, batch_idx)
        if batch_idx + 1 == num_batches:
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Resumable, "on_train_batch_end", die)
        with pytest.raises(RuntimeError, match="killed"):
            train(experiment, stage)
