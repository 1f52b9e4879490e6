"""Model folders while a stage trains: what the stage would leave if it ended there, at the price of its own parts."""

import json
import shutil
from pathlib import Path

import pytest
from test_adapter import adapting
from test_stages import prepared

from audioldm2_pl.cli import main
from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.pipeline import AudioLDM2
from audioldm2_pl.training.run import train

EVERY = "trainer.export_every_batches=2"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def exports(experiment) -> list[str]:
    return sorted(path.name for path in (experiment.run_folder / "exports").iterdir())


@pytest.mark.parametrize("stage", ["clap", "vae", "vocoder", "joint"])
def test_an_export_is_what_the_stage_leaves_there_and_training_keeps_its_bits(stage, smoke, smoke_run, tmp_path):
    recipe = (f"training.{stage}={{batches: 4, accumulate_batches: 2, ema_decay: 0.9}}", "gpt2.dropout=0.3")
    plain = prepared(smoke, smoke_run, stage, tmp_path, "plain", *recipe)
    train(plain, stage)
    exported = prepared(smoke, smoke_run, stage, tmp_path, "exported", *recipe, EVERY)
    train(exported, stage)
    assert files(exported.model_folder) == files(plain.model_folder)
    assert exports(exported) == [f"{stage}-0000002", f"{stage}-0000004"]
    folders = [exported.run_folder / "exports" / name for name in exports(exported)]
    assert files(folders[1]) == files(exported.model_folder)

    short = prepared(smoke, smoke_run, stage, tmp_path, "short", *recipe, f"training.{stage}.batches=2")
    train(short, stage)
    assert files(folders[0]) == files(short.model_folder)
    written = json.loads((short.run_folder / f"stages/{stage}.json").read_text())["parts"]
    for part in ModelFolder(folders[0]).parts():
        config = next((folders[0] / part).glob("*.json"))
        assert (config.stat().st_nlink > 1) == (part not in written)  # the others are links


def test_generate_takes_an_export(smoke, smoke_run, tmp_path):
    experiment = prepared(smoke, smoke_run, "joint", tmp_path, "run", EVERY)
    train(experiment, "joint")
    folder = experiment.run_folder / "exports/joint-0000002"
    command = ["generate", str(folder), "a bell", "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main(command) == 0 and (tmp_path / "out/0001_a_bell.wav").is_file()
    assert ModelFolder(folder).sampling().num_steps == 3  # as the experiment has it


def test_a_resumed_run_replaces_what_it_reaches_again_and_leaves_no_half_folder(smoke, tmp_path, monkeypatch):
    straight = smoke("name=straight", "stages=[vae]", EVERY, runs=tmp_path)
    train(straight)
    broken = smoke("name=broken", "stages=[vae]", "training.vae.save_every_batches=3", EVERY, runs=tmp_path)
    write = ModelFolder.note_sampling

    def die(self, sampling):
        write(self, sampling)
        if self.path.name == ".vae-0000004.part":
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(ModelFolder, "note_sampling", die)
        patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)  # as by kill -9
        with pytest.raises(RuntimeError, match="killed"):
            train(broken)
    folder = broken.run_folder / "exports"
    assert {path.name for path in folder.glob("[!.]*")} == {"vae-0000002"}
    shutil.copytree(folder / "vae-0000002", folder / "vae-0000004")  # of another training
    train(broken)
    assert files(folder) == files(straight.run_folder / "exports") and exports(broken) == exports(straight)
    assert files(folder / "vae-0000004") == files(broken.model_folder)


def test_the_latest_exports_of_each_stage_are_kept(smoke, tmp_path):
    keep = ("trainer.export_every_batches=1", "trainer.keep_exports=2")
    experiment = smoke("stages=[audiomae, vae]", *keep, runs=tmp_path)
    ahead = experiment.run_folder / "exports/vae-0000007"  # of an earlier call that was further
    ahead.mkdir(parents=True)
    train(experiment)
    assert exports(experiment) == [
        "audiomae-0000003", "audiomae-0000004", "vae-0000003", "vae-0000004", "vae-0000007",
    ]  # fmt: skip
    assert ahead.is_dir() and (experiment.run_folder / "exports/vae-0000004/audiomae").is_dir()


def test_an_export_that_cannot_be_written_is_told_and_training_goes_on(smoke, tmp_path, capsys):
    experiment = smoke("stages=[audiomae]", EVERY, runs=tmp_path)
    experiment.run_folder.mkdir()
    (experiment.run_folder / "exports").write_text("a file")
    train(experiment)
    lines = [line for line in capsys.readouterr().out.splitlines() if "not exported" in line]
    assert len(lines) == 2 and "exports/audiomae-0000002: not exported (" in lines[0]
    assert (experiment.model_folder / "audiomae").is_dir()


def test_a_run_that_trains_an_adapter_exports_adapters(smoke, smoke_run, tmp_path):
    experiment = adapting(smoke, smoke_run, tmp_path, "adapted", EVERY)
    train(experiment)
    folders = [experiment.run_folder / "exports" / name for name in exports(experiment)]
    assert [folder.name for folder in folders] == ["joint-0000002", "joint-0000004"]
    assert files(folders[1]) == files(experiment.adapter_folder)
    base = str(smoke_run.model_folder)
    AudioLDM2.from_pretrained(base, adapters={str(folders[0]): 1.0}).generate("a bell", num_steps=2)


@pytest.mark.parametrize("key", ["export_every_batches", "keep_exports", "keep_checkpoints"])
def test_numbers_below_1_are_refused(key, smoke):
    with pytest.raises(UserError, match=rf"trainer\.{key}=0 has to be at least 1"):
        smoke(f"trainer.{key}=0")
