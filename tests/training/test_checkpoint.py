"""A resumed run is the unbroken run, and says what it takes over; a finished stage knows what it was made of."""

import json
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
import torch
from breaking import break_off
from safetensors.torch import load_file
from test_stages import prepared

from audioldm2_pl.cli import main
from audioldm2_pl.errors import UserError
from audioldm2_pl.training.checkpoint import Resumable
from audioldm2_pl.training.records import checkpoint_of, locked, recipe
from audioldm2_pl.training.resume import go_back
from audioldm2_pl.training.run import train
from data.shards import write_shards
from data.synthetic import clips

SMOKE = Path(__file__).parents[2] / "experiments/smoke.yaml"


def files(experiment) -> dict[str, bytes]:
    """Every file of the model folder."""
    root = experiment.model_folder
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("stage", "validate", "accumulate"),
    [
        *((stage, True, 2) for stage in ("clap", "vae", "ldm", "gpt2", "joint")),
        ("vae", False, 2),
        ("ldm", False, 1),
        ("ldm", True, 1),
    ],
)
def test_resumed_with_accumulation_dropout_averages_and_validation(
    stage, validate, accumulate, smoke, smoke_run, tmp_path, monkeypatch
):
    overrides = [
        f"training.{stage}={{batches: 7, accumulate_batches: {accumulate}, save_every_batches: 3, ema_decay: 0.9}}",
        "gpt2.dropout=0.3", "conditioners.clap.dropout=0.3", "conditioners.t5.dropout=0.3",
        "diffusion.dropout_unit=sample", "diffusion.condition_dropout=0.5",
        *(["trainer.validate_every_batches=2"] if validate else []),
    ]  # fmt: skip
    straight = prepared(smoke, smoke_run, stage, tmp_path, "straight", *overrides)
    train(straight, stage)
    broken = prepared(smoke, smoke_run, stage, tmp_path, "broken", *overrides)
    break_off(broken, stage, 5, monkeypatch)
    checkpoint = torch.load(broken.run_folder / f"checkpoints/{stage}.ckpt", weights_only=True)
    assert checkpoint["AudioShards"]["batches"] == {1: 3, 2: 4}[accumulate]  # never in an accumulation
    train(broken, stage)
    assert files(broken) == files(straight)
    rows = [(run.run_folder / f"logs/{stage}/metrics.csv").read_text() for run in (straight, broken)]
    assert rows[0] == rows[1]


def test_the_scaling_factor_is_that_of_the_unbroken_run(smoke, tmp_path, monkeypatch):
    factors = []
    for name in ("straight", "broken"):
        experiment = smoke(f"name={name}", "stages=[vae]", "training.vae.scaling_batches=1", runs=tmp_path)
        if name == "broken":
            break_off(experiment, "vae", 3, monkeypatch)
        train(experiment)
        factors.append(json.loads((experiment.model_folder / "vae/config.json").read_text())["scaling_factor"])
    assert factors[0] == factors[1]


def test_checkpoints_do_not_pass_through_the_temporary_folder(smoke, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    train(smoke("stages=[audiomae]", runs=tmp_path))


def test_a_kill_between_the_last_batch_and_the_parts_repeats_no_batch(smoke, tmp_path, monkeypatch):
    straight, broken = (smoke(f"name={name}", "stages=[vae]", runs=tmp_path) for name in ("straight", "broken"))
    train(straight)
    break_off(broken, "vae", 4, monkeypatch)
    curves = broken.run_folder / "logs/vae/metrics.csv"
    before = curves.read_text()
    train(broken)
    assert files(broken) == files(straight) and curves.read_text() == before


def test_changed_settings_of_the_optimiser_are_taken_over_and_told(smoke, tmp_path, monkeypatch, capsys):
    experiment = smoke("stages=[vae]", runs=tmp_path)
    break_off(experiment, "vae", 3, monkeypatch)
    changed = smoke(
        "stages=[vae]",
        "training.vae.optimizer={betas: [0.7, 0.8], weight_decay: 0.5, name: adamw}",
        "training.vae.optimizer.learning_rates={vae.encoder: 0.0}",
        runs=tmp_path,
    )
    groups = []

    class Spy(Resumable):
        def on_train_end(self, trainer, pl_module):
            groups.extend(trainer.optimizers[0].param_groups)
            super().on_train_end(trainer, pl_module)

    monkeypatch.setattr("audioldm2_pl.training.run.Resumable", Spy)
    monkeypatch.setattr(Spy, "state_key", "Resumable")
    train(changed)
    assert all(tuple(group["betas"]) == (0.7, 0.8) and group["weight_decay"] == 0.5 for group in groups)
    assert {group["lr"] for group in groups} > {0.0}
    said = next(line for line in capsys.readouterr().out.splitlines() if "other settings" in line)
    assert "betas was [0.8, 0.95] and is [0.7, 0.8]" in said and "learning_rates was {} and is" in said
    record = json.loads((changed.run_folder / "stages/vae.json").read_text())
    assert record["resumed_with_other_settings"][0]["batch"] == 2
    assert record["recipe"] == recipe(changed, "vae")


def test_a_budget_below_what_is_trained_is_refused_and_one_equal_to_it_ends_there(smoke, tmp_path, monkeypatch):
    experiment = smoke("stages=[audiomae]", runs=tmp_path)
    break_off(experiment, "audiomae", 3, monkeypatch)
    with pytest.raises(UserError, match=r"has trained 2 batches, more than training.audiomae.batches=1;"):
        train(smoke("stages=[audiomae]", "training.audiomae.batches=1", runs=tmp_path))
    checkpoint = torch.load(experiment.run_folder / "checkpoints/audiomae.ckpt", weights_only=True)
    train(smoke("stages=[audiomae]", "training.audiomae.batches=2", runs=tmp_path))
    saved = load_file(experiment.model_folder / "audiomae/model.safetensors")
    assert all(torch.equal(saved[key], checkpoint["state_dict"][f"audiomae.{key}"]) for key in saved)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read"),
        (b"not a checkpoint " * 100, "cannot be read"),
        ({"state_dict": {}}, "no checkpoint of a stage"),
        ("cut", "cannot be read"),
    ],
)
def test_a_checkpoint_that_is_none_is_one_line(content, said, smoke, tmp_path, monkeypatch):
    experiment = smoke("stages=[audiomae]", runs=tmp_path)
    break_off(experiment, "audiomae", 3, monkeypatch)
    path = experiment.run_folder / "checkpoints/audiomae.ckpt"
    if isinstance(content, dict):
        torch.save(content, path)
    else:
        path.write_bytes(path.read_bytes()[:-3000] if content == "cut" else content)
    with pytest.raises(UserError, match=said) as error:
        train(experiment)
    assert "\n" not in str(error.value) and "delete it" in str(error.value)


def test_another_width_is_refused_with_what_has_changed(smoke, tmp_path, monkeypatch):
    experiment = smoke("stages=[audiomae]", runs=tmp_path)
    break_off(experiment, "audiomae", 3, monkeypatch)
    with pytest.raises(UserError, match=r"its networks are others .* since audiomae.decoder_dim was 16 and is 32"):
        train(smoke("stages=[audiomae]", "audiomae.decoder_dim=32", runs=tmp_path))


@pytest.fixture
def finished(smoke, tmp_path):
    experiment = smoke("stages=[audiomae]", runs=tmp_path)
    train(experiment)
    return experiment


def told_of(capsys, *overrides, smoke, runs: Path) -> str:
    capsys.readouterr()
    train(smoke("stages=[audiomae]", *overrides, runs=runs))
    return capsys.readouterr().out


def test_a_finished_stage_knows_its_data_its_mix_and_its_precision(finished, smoke, shards, tmp_path, capsys):
    moved, other = tmp_path / "moved", tmp_path / "other"
    shutil.copytree(shards / "train", moved)
    write_shards(clips("train", 5), other, num_workers=1)
    assert "other settings" not in told_of(capsys, f"data.train=[{moved}]", smoke=smoke, runs=tmp_path)
    for override, key in (
        (f"data.train=[{other}]", "data.train"),
        ("data.weights=[2.0]", "data.weights"),
        ("trainer.precision=bf16-mixed", "precision"),
    ):
        assert key in told_of(capsys, override, smoke=smoke, runs=tmp_path)
    record = json.loads((finished.run_folder / "stages/audiomae.json").read_text())
    assert record["clips"] == 4 * 2


def test_how_often_a_stage_saves_is_no_other_recipe(finished, smoke, tmp_path, capsys):
    overrides = ("training.audiomae.save_every_batches=1", "training.audiomae.cache_features=true")
    assert "other settings" not in told_of(capsys, *overrides, smoke=smoke, runs=tmp_path)


def test_a_part_that_is_gone_is_told(finished):
    shutil.rmtree(finished.model_folder / "audiomae")
    with pytest.raises(UserError, match=r"audiomae: finished, but .*audiomae is gone; put it back, or delete"):
        train(finished)


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000])
def test_a_damaged_record_is_one_line_and_damaged_seconds_stop_nothing(content, finished, capsys):
    (finished.run_folder / "seconds.json").write_text(content)
    train(finished)
    assert "damaged" in capsys.readouterr().out
    (finished.run_folder / "stages/audiomae.json").write_text(content)
    with pytest.raises(UserError, match="damaged"):
        train(finished)


def test_two_calls_of_one_run_at_once(smoke, tmp_path):
    experiment = smoke("stages=[audiomae]", runs=tmp_path)
    with locked(experiment.run_folder), pytest.raises(UserError, match=r"process \d+ on .* trains this run"):
        train(experiment)
    train(experiment)


def test_what_a_kill_leaves_half_written_stops_nothing(smoke, smoke_run, tmp_path):
    experiment = smoke("name=left", runs=tmp_path)
    shutil.copytree(smoke_run.run_folder, experiment.run_folder)
    (experiment.run_folder / "stages/joint.json").unlink()
    shutil.rmtree(experiment.run_folder / "stages/joint")
    for half in ("stages/.joint.part", "stages/.joint.1", "model/.unet.part"):
        (experiment.run_folder / half).mkdir()
    (experiment.model_folder / ".model_index.json.1.part").write_text("{")
    (experiment.model_folder / "vae").rename(experiment.model_folder / ".vae.old")  # killed between two renames
    train(experiment, "joint")
    left = {path.name for path in experiment.run_folder.rglob(".*")} - {".lock"}
    assert not left
    assert experiment.model_folder.joinpath("vae/config.json").is_file()


def test_a_model_folder_that_goes_under_a_stage_is_told_and_nothing_is_lost(smoke, smoke_run, tmp_path, monkeypatch):
    experiment = prepared(smoke, smoke_run, "gpt2", tmp_path, "gone")
    save = Resumable.on_train_batch_end

    def remove(self, trainer, pl_module, outputs, batch, batch_idx):
        save(self, trainer, pl_module, outputs, batch, batch_idx)
        shutil.rmtree(experiment.model_folder, ignore_errors=True)

    with monkeypatch.context() as patch:
        patch.setattr(Resumable, "on_train_batch_end", remove)
        with pytest.raises(UserError, match=r"gone since gpt2 began"):
            train(experiment, "gpt2")
    assert not (experiment.run_folder / "stages/gpt2.json").exists()
    assert (experiment.run_folder / "checkpoints/gpt2.ckpt").is_file()


KEPT = ("stages=[vae]", "training.vae={batches: 6, save_every_batches: 1}", "trainer.keep_checkpoints=3")


@pytest.fixture
def stopped(smoke, tmp_path, monkeypatch, capsys):
    """A VAE that died after 5 of 6 batches, with its last three checkpoints."""
    experiment = smoke(*KEPT, runs=tmp_path)
    break_off(experiment, "vae", 5, monkeypatch)
    capsys.readouterr()
    return experiment


def checkpoints(experiment) -> dict[str, int]:
    """The number of batches of each file."""
    folder = experiment.run_folder / "checkpoints"
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): torch.load(path, weights_only=True)["AudioShards"]["batches"] for path in paths
    }


def test_the_last_checkpoints_are_kept_until_the_stage_is_finished(stopped, smoke, tmp_path):
    assert checkpoints(stopped) == {"vae-0000003.ckpt": 3, "vae-0000004.ckpt": 4, "vae.ckpt": 5}
    train(smoke(*KEPT, "trainer.keep_checkpoints=2", "training.vae.save_every_batches=100", runs=tmp_path))
    assert not checkpoints(stopped)
    straight = smoke(*KEPT, "name=straight", runs=tmp_path)
    train(straight)
    assert files(stopped) == files(straight)


def test_a_stage_goes_back_to_a_batch_and_says_where_later_checkpoints_are(
    stopped, smoke, tmp_path, monkeypatch, capsys
):
    go_back(checkpoint_of(stopped, "vae"), 3)
    later = {"set_aside/vae-0000004.ckpt": 4, "set_aside/vae-0000005.ckpt": 5}
    assert checkpoints(stopped) == {**later, "vae.ckpt": 3}
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("vae: back at batch 3") and all(f"checkpoints/{name}" in line for name in later)
    break_off(smoke(*KEPT, "training.vae.optimizer.learning_rate=0.01", runs=tmp_path), "vae", 5, monkeypatch)
    train(stopped, "vae", resume=3)
    straight = smoke(*KEPT, "name=straight", runs=tmp_path)
    train(straight)
    assert files(stopped) == files(straight) and not checkpoints(stopped)
    curves = [(run.run_folder / "logs/vae/metrics.csv").read_text() for run in (stopped, straight)]
    assert curves[0] == curves[1]


def test_going_back_again_overwrites_nothing(stopped):
    path = checkpoint_of(stopped, "vae")
    go_back(path, 4)
    shutil.copy2(path, path.with_name("vae-0000005.ckpt"))  # another 5
    go_back(path, 3)
    go_back(path, 3)  # where it is already
    assert checkpoints(stopped) == {
        "set_aside/vae-0000004.ckpt": 4, "set_aside/vae-0000005-2.ckpt": 4, "set_aside/vae-0000005.ckpt": 5,
        "vae.ckpt": 3,
    }  # fmt: skip


def test_there_is_a_way_back_from_a_damaged_checkpoint(stopped, capsys):
    path = checkpoint_of(stopped, "vae")
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"cannot be read .*; go back with --resume 4, or delete it"):
        train(stopped)
    go_back(path, 4)
    assert path.with_name("set_aside").joinpath("vae-damaged.ckpt").read_bytes() == b"damaged"
    train(stopped)
    assert "vae: goes on from" in capsys.readouterr().out


def test_a_stage_that_begins_anew_sets_the_older_ones_aside(stopped, smoke, tmp_path, monkeypatch, capsys):
    checkpoint_of(stopped, "vae").unlink()
    break_off(stopped, "vae", 2, monkeypatch)
    assert "vae: begins anew, for vae.ckpt is gone; kept until vae is finished" in capsys.readouterr().out
    assert checkpoints(stopped) == {
        "set_aside/vae-0000003.ckpt": 3, "set_aside/vae-0000004.ckpt": 4, "vae-0000001.ckpt": 1, "vae.ckpt": 2,
    }  # fmt: skip


def test_what_cannot_be_gone_back_to_is_one_line_and_changes_nothing(stopped, smoke, tmp_path):
    before = checkpoints(stopped)
    with pytest.raises(UserError, match=r"--resume 1: vae has no checkpoint of that batch; there are: 3, 4, 5$"):
        train(stopped, resume=1)
    with pytest.raises(UserError, match="--resume 4: no stage is stopped at a checkpoint; leave --resume out"):
        train(smoke("stages=[clap]", runs=tmp_path), resume=4)
    shutil.copy2(checkpoint_of(stopped, "vae"), checkpoint_of(stopped, "vocoder"))
    with pytest.raises(UserError, match="--resume 4: vae, vocoder are stopped; say with --stage"):
        train(smoke("stages=[vae, vocoder]", runs=tmp_path), resume=4)
    checkpoint_of(stopped, "vocoder").unlink()
    assert checkpoints(stopped) == before
    train(stopped)
    with pytest.raises(UserError, match=r"no stage is stopped .*; a finished stage keeps none \(vae\)"):
        train(stopped, resume=4)


def test_the_command_line_goes_back_once(stopped, shards, tmp_path, monkeypatch, capsys):
    command = [
        "train", str(SMOKE), "--resume", "4", *KEPT, f"data.train=[{shards}/train]", f"runs={tmp_path}",
        "trainer.progress_bar=false",
    ]  # fmt: skip
    save = Resumable.on_train_batch_end

    def stop(self, *args):
        signal.raise_signal(signal.SIGTERM)
        save(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Resumable, "on_train_batch_end", stop)
        assert main(command) == 128 + signal.SIGTERM
    said = capsys.readouterr()
    assert "vae: back at batch 4" in said.out
    assert "batch 5 is saved; resume with: audioldm2 train" in said.err and "--resume" not in said.err
    with pytest.raises(SystemExit):
        main([*command[:3], "first", *command[4:]])
    assert "'first' is neither last nor the number of a batch" in capsys.readouterr().err
    assert main([*command[:3], "last", *command[4:]]) == 0
    assert "vae: finished" in capsys.readouterr().out
