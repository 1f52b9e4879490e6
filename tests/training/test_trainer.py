"""What an experiment passes on to Lightning's Trainer."""

import pytest

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
