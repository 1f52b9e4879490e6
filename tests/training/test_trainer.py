"""What an experiment passes on to Lightning's Trainer."""

import pytest
import torch

from audioldm2_pl.config import STAGES
from audioldm2_pl.describe import build_on_meta
from audioldm2_pl.errors import UserError
from audioldm2_pl.training.ranks import build_trainer
from audioldm2_pl.training.run import train


@pytest.mark.parametrize(
    ("name", "holds"), [("simple", "run_training_batch"), ("advanced", "cumtime"), ("pytorch", "aten::")]
)
def test_a_profile_lies_beside_the_logs(name, holds, smoke, tmp_path):
    experiment = smoke("stages=[audiomae]", f"trainer.profiler={name}", runs=tmp_path)
    train(experiment)
    files = list((experiment.run_folder / "logs" / "audiomae").glob("*profile*"))
    assert any(holds in path.read_text() for path in files), files


def test_settings_are_passed_on(smoke, tmp_path):
    experiment = smoke("trainer.lightning={strategy: ddp, benchmark: true}", runs=tmp_path)
    trainer = build_trainer(experiment.trainer, logger=False)
    assert type(trainer.strategy).__name__ == "DDPStrategy"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("strategie: ddp", "trainer.lightning.strategie: no such name; did you mean 'strategy'"),
        ("max_time: 3", "trainer.lightning.max_time: no such name"),
        ("strategy: magic", "trainer: .*magic"),
    ],
)
def test_what_lightning_does_not_take_is_one_line(given, said, smoke, tmp_path):
    with pytest.raises(UserError, match=said) as error:
        train(smoke("stages=[audiomae]", f"trainer.lightning={{{given}}}", runs=tmp_path))
    assert "\n" not in str(error.value)


def test_every_stage_names_networks_that_it_has(smoke):
    experiment = smoke()
    for name in experiment.stages:
        stage = build_on_meta(experiment, STAGES[name])
        assert stage.compiles and all(stage.get_submodule(path) for path in stage.compiles)


@pytest.mark.parametrize("name", ["vae", "gpt2"])  # tests/models/test_unet.py compiles the T-UNet
def test_compiled_networks_train_as_eager_ones(name, smoke, smoke_run, monkeypatch):
    """Through torch's tracer; its code generator, which takes minutes, is torch's own affair."""
    torch._dynamo.reset()  # what another stage has compiled
    frames = torch._dynamo.utils.counters["frames"]
    compiled, before = torch.compile, frames["ok"]
    monkeypatch.setattr(torch, "compile", lambda call, mode: compiled(call, backend="eager"))
    parts = ("clap", "audiomae", "vae", "vocoder", "unet", "gpt2", "t5")
    given = {part: smoke_run.model_folder for part in parts if part != STAGES[name].makes}
    started = [f"start_from.vae={given.pop('vae')}"] if name == "decoder" else []
    options = [*started, *(f"from.{part}={path}" for part, path in given.items())]
    losses = []
    for mode in ("null", "default"):
        experiment = smoke(f"stages=[{name}]", f"trainer.compile={mode}", f"training.{name}.batches=2", *options)
        train(experiment)
        losses.append((experiment.run_folder / f"logs/{name}/metrics.csv").read_text())
    assert frames["ok"] > before
    rows = [[line.split(",") for line in text.splitlines()[1:]] for text in losses]
    assert [row[:-1] for row in rows[0]] == [row[:-1] for row in rows[1]] and rows[0]
    for eager, traced in zip(*rows):
        assert float(traced[-1]) == pytest.approx(float(eager[-1]), rel=1e-3, abs=1e-5)
