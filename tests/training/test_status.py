"""`audioldm2 status`: finished, stopped and changed stages, a run in training, and damaged files in one line."""

import json
import shutil

import pytest

from audioldm2_pl.cli import main
from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.training.records import locked
from audioldm2_pl.training.run import train
from audioldm2_pl.training.status import describe_status, duration, status_of
from audioldm2_pl.training.vocoder import VocoderTraining


@pytest.fixture
def run(smoke, smoke_run, tmp_path):
    """A copy of the finished run, and the overrides that name it."""
    shutil.copytree(smoke_run.run_folder, tmp_path / "smoke", symlinks=True)
    return [f"runs={tmp_path}"]


def status(smoke, overrides: list[str]) -> list[str]:
    return describe_status(smoke(*overrides), "audioldm2 train smoke.yaml").splitlines()


def test_a_finished_run(smoke, run):
    lines = status(smoke, run)
    assert len(lines) == 2 + len(smoke().stages)
    assert all(" finished " in line and "4 of 4 batches" in line for line in lines[1:-1])
    assert lines[-1].startswith("finished: ") and lines[-1].endswith("smoke/model")


def test_changed_settings_and_lost_parts_are_named(smoke, run, tmp_path):
    shutil.rmtree(tmp_path / "smoke/model/vocoder")
    lines = status(smoke, [*run, "training.ldm.batches=6", "vae.norm_num_groups=8"])
    text = "\n".join(lines)
    assert "4 of 6 batches" in text and "training.batches was 4 and is 6" in text
    assert "vae.norm_num_groups was 4 and is 8" in text and "vocoder/ is gone from the model folder" in text


def test_a_stage_that_is_not_begun_one_in_training_and_a_damaged_checkpoint(smoke, run, tmp_path):
    experiment = smoke(*run)
    record = tmp_path / "smoke/stages/joint.json"
    record.unlink()
    shutil.rmtree(tmp_path / "smoke/logs/joint")
    lines = status(smoke, run)
    assert "not begun" in lines[-2] and "0 of 4 batches" in lines[-2]
    assert lines[-1] == "next: joint, by audioldm2 train smoke.yaml"
    with locked(tmp_path / "smoke"):
        assert status(smoke, run)[-1].startswith("in training: joint, batch 0, by process ")
    checkpoint = tmp_path / "smoke/checkpoints/joint.ckpt"
    checkpoint.parent.mkdir(exist_ok=True)
    checkpoint.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"joint.ckpt: cannot be read"):
        status_of(experiment, "joint", ModelFolder(experiment.model_folder))


def test_a_stopped_stage_tells_its_batch(smoke, monkeypatch):
    step = VocoderTraining.training_step

    def broken(self, batch, batch_idx):
        if batch_idx == 3:
            raise UserError("stopped by the test")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(VocoderTraining, "training_step", broken)
    experiment = smoke("stages=[vocoder]", "name=half")
    with pytest.raises(UserError):
        train(experiment)
    lines = describe_status(experiment, "again").splitlines()
    assert "stopped" in lines[1] and "2 of 4 batches" in lines[1] and lines[-1] == "next: vocoder, by again"


def test_the_command(run, tmp_path, capsys):
    smoke = "experiments/smoke.yaml"
    assert main(["status", smoke, *run, "stages=[vae]", "from.clap=somewhere"]) == 0
    assert "finished" in capsys.readouterr().out
    assert main(["status", smoke, f"runs={tmp_path}", "name=other", "stages=[clap,vae]"]) == 0
    assert "next: clap, by audioldm2 train experiments/smoke.yaml" in capsys.readouterr().out
    (tmp_path / "smoke/stages/vae.json").write_text("{")
    assert main(["status", smoke, *run]) == 2
    assert "vae.json" in capsys.readouterr().err


def test_a_stage_taken_from_elsewhere(smoke, run, smoke_run):
    lines = status(smoke, [*run, f"from.vae={smoke_run.model_folder}"])
    assert any(line.split()[:3] == ["vae", "taken", "from"] for line in lines)


@pytest.mark.parametrize(("seconds", "text"), [(None, ""), (5.4, "5 s"), (600, "10 min"), (9_000, "2.5 h")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_an_older_record_without_a_recipe(smoke, run, tmp_path):
    path = tmp_path / "smoke/stages/clap.json"
    content = json.loads(path.read_text())
    del content["recipe"], content["batches"], content["seconds"]
    path.write_text(json.dumps(content))
    assert "settings have changed" not in "\n".join(status(smoke, run))
