"""Losses that are no number, and the speed that is logged beside the losses."""

import csv
import json
import math
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.training.finite import FiniteLoss
from audioldm2_pl.training.ldm import LDMPretraining
from audioldm2_pl.training.run import train
from audioldm2_pl.training.stage import Stage
from audioldm2_pl.training.vae import VAETraining


def break_at(monkeypatch, stage: type[Stage], batches: tuple[int, ...]) -> None:
    """Makes the losses of those batches NaN."""
    original = stage.total

    def total(self, terms):
        value = original(self, terms)
        return value * math.nan if self.batch_idx in batches else value

    monkeypatch.setattr(stage, "total", total)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for part in ("unet", "vae") if (folder / part).is_dir() for name, value in
            ModelFolder(folder).load(part).state_dict().items()}  # fmt: skip


def curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    rows = defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            rows[row["name"]].append((int(row["batch"]), float(row["value"])))
    return dict(rows)


@pytest.mark.parametrize(("name", "stage"), [("ldm", LDMPretraining), ("vae", VAETraining)])
def test_a_loss_that_is_no_number_stops_before_any_weight_is_lost(smoke, smoke_run, monkeypatch, name, stage):
    """Of automatic and of manual optimisation; the same command then goes on from the checkpoint of two batches."""
    model = smoke_run.model_folder
    given = {"clap": model, "audiomae": model} | ({"vae": model} if name == "ldm" else {})
    experiment = smoke(f"stages=[{name}]", "name=broken", *(f"from.{part}={path}" for part, path in given.items()))
    with monkeypatch.context() as patch:
        break_at(patch, stage, (3,))
        with pytest.raises(UserError, match=rf"{name}: batch 3: the loss is not finite \(clips .*on_nan=skip"):
            train(experiment)
    checkpoint = torch.load(experiment.run_folder / f"checkpoints/{name}.ckpt", weights_only=True)
    assert checkpoint["AudioShards"]["batches"] == 2
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    train(experiment)
    assert all(value.isfinite().all() for value in weights_of(experiment.model_folder).values())


@pytest.mark.parametrize(("broken", "saved"), [(0, None), (1, None), (2, 2)])
def test_where_a_look_waits_for_the_device_several_losses_are_looked_at_together(
    smoke, smoke_run, monkeypatch, broken, saved
):
    """Before every checkpoint, which `saved` batches have, and after `log_every_batches`."""
    monkeypatch.setattr(FiniteLoss, "at_once", ())
    break_at(monkeypatch, LDMPretraining, (broken,))
    given = [f"from.{part}={smoke_run.model_folder}" for part in ("clap", "audiomae", "vae")]
    experiment = smoke("stages=[ldm]", "trainer.log_every_batches=3", *given)
    with pytest.raises(UserError, match=rf"ldm: batch {broken}: the loss is not finite \(clips "):
        train(experiment)
    path = experiment.run_folder / "checkpoints/ldm.ckpt"
    assert path.is_file() == (saved is not None)
    if saved:
        assert torch.load(path, weights_only=True)["AudioShards"]["batches"] == saved


@pytest.mark.parametrize(("name", "stage"), [("ldm", LDMPretraining), ("vae", VAETraining)])
def test_a_skipped_batch_moves_no_weight(smoke, smoke_run, monkeypatch, name, stage, capsys):
    """All four batches skipped: the weights are those of the start, whatever weight decay and momentum would do."""
    model = smoke_run.model_folder
    given = {"clap": model, "audiomae": model} | ({"vae": model} if name == "ldm" else {})
    start = "unet" if name == "ldm" else "vae"
    options = [f"from.{part}={path}" for part, path in given.items()]
    experiment = smoke(
        f"stages=[{name}]", "name=skipped", "trainer.on_nan=skip", f"start_from.{start}={model}",
        f"training.{name}.ema_decay=null", *options,
    )  # fmt: skip
    break_at(monkeypatch, stage, (0, 1, 2, 3))
    train(experiment)
    before, after = ModelFolder(model).load(start), ModelFolder(experiment.model_folder).load(start)
    for key, value in before.state_dict().items():
        torch.testing.assert_close(after.state_dict()[key], value, atol=0, rtol=0)
    lines = (experiment.run_folder / f"logs/{name}/skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["batch"] for line in lines] == [0, 1, 2, 3]
    assert all(len(json.loads(line)["keys"]) == 2 for line in lines)
    assert "the loss is not finite; skipped clips" in capsys.readouterr().out


def guarded_losses(guard: FiniteLoss, losses: list[float], optimizer: int = 0) -> None:
    """Sends losses through the callback, one a batch."""
    trainer = SimpleNamespace(strategy=SimpleNamespace(reduce_boolean_decision=lambda value, all: value), global_rank=0)
    for batch_idx, loss in enumerate(losses):
        stage = SimpleNamespace(name="ldm", batch_idx=batch_idx, parameters=lambda: [torch.ones(1, requires_grad=True)])
        guard.on_train_batch_start(trainer, stage, {"key": [f"clip{batch_idx}"]}, batch_idx)  # type: ignore[arg-type]
        guard.guarded(trainer, stage, torch.tensor(loss), optimizer)


def test_a_spike_stops_or_is_skipped(tmp_path):
    usual = [1.0 + 0.1 * (i % 3) for i in range(25)]
    path = tmp_path / "skipped.jsonl"
    with pytest.raises(
        UserError, match=r"ldm: batch 25: the loss is 6, 1.1 before \(trainer.spike_factor=5\) \(clips clip25\)"
    ):
        guarded_losses(FiniteLoss("stop", path, spike_factor=5), [*usual, 6.0])
    guarded_losses(FiniteLoss("stop", path), [*usual, 6.0])  # none is a spike without a factor
    guarded_losses(FiniteLoss("stop", path, spike_factor=5), [*usual[:10], 6.0])  # too few to compare with
    skipping = FiniteLoss("skip", path, spike_factor=5)
    guarded_losses(skipping, [*usual, 6.0, 1.0])
    assert [json.loads(line)["keys"] for line in path.read_text().splitlines()] == [["clip25"]]
    assert 6.0 not in skipping.losses[0] and len(skipping.losses[0]) == 26
    resumed = FiniteLoss("stop", path, spike_factor=5)
    resumed.load_state_dict(skipping.state_dict())
    guarded_losses(resumed, [6.0], optimizer=1)  # another optimiser's loss has a size of its own
    with pytest.raises(UserError, match="the loss is 6"):
        guarded_losses(resumed, [6.0])


def test_speed_and_gradients_are_logged(smoke_run):
    for stage, optimizers in [("ldm", ("main",)), ("vocoder", ("generator", "discriminator"))]:
        rows = curves(smoke_run.run_folder / f"logs/{stage}/speed.csv")
        names = {f"{kind}/{name}" for kind in ("learning_rate", "gradient_norm") for name in optimizers}
        assert set(rows) == {"clips_per_second", "data_wait", "memory_gib"} | names
        assert [batch for batch, _ in rows["clips_per_second"]] == [0, 1, 2, 3]
        assert all(0 <= value <= 1 for _, value in rows["data_wait"])
        assert all(value > 0 for name, row in rows.items() if name != "data_wait" for _, value in row[1:3]), rows
