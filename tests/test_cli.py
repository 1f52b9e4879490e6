"""The command line as a user meets it: what it writes, what it says when something is wrong."""

import re
import shutil
from pathlib import Path

import pytest
import soundfile

from audioldm2_pl.cli import main

ROOT = Path(__file__).parent.parent


def refusal(capsys, *arguments: object) -> str:
    """The one line that a refused command prints; checks that it is one line and that the exit code is 2."""
    assert main([str(a) for a in arguments]) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def test_generate_writes_one_file_a_prompt(smoke_run, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("rain falling\n\nsirens/one | a siren\n")
    arguments = [
        "a bell, then a chirp",
        "--prompts",
        prompts,
        "--output",
        tmp_path / "out",
        "--steps",
        2,
        "--seconds",
        1.5,
    ]
    assert main(["generate", str(smoke_run.model_folder), *map(str, arguments), "--device", "cpu"]) == 0
    files = sorted((tmp_path / "out").rglob("*.wav"))
    assert [f.name for f in files] == ["0001_a_bell_then_a_chirp.wav", "0002_rain_falling.wav", "one.wav"]
    info = soundfile.info(files[0])
    assert (info.samplerate, info.frames, info.channels) == (16_000, 24_000, 1)
    assert str(files[0]) in capsys.readouterr().out


def test_describe_shows_lengths_parameters_and_memory(capsys):
    assert main(["describe", str(ROOT / "experiments/demo.yaml"), "seed=3"]) == 0
    text = capsys.readouterr().out
    assert "seed: 3" in text
    assert "16 × 8 patches" in text
    assert re.search(r"unet +\d+\.\d+ M", text)
    assert re.search(r"joint .* GiB", text)


def test_unknown_key_names_the_nearest(capsys):
    message = refusal(capsys, "describe", ROOT / "experiments/demo.yaml", "training.ldm.bathces=3")
    assert "training.ldm.bathces" in message and "'batches'" in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=x", "seed"),
        ("stages=[ldm,vea]", "no stage 'vea'"),
        ("unet.in_channels=4", "vae.latent_channels"),
        ("diffusion.sampler=dimm", "ddim"),
        ("seed", "key=value"),
    ],
)
def test_wrong_values_are_plain_errors(capsys, override, message):
    assert message in refusal(capsys, "describe", ROOT / "experiments/demo.yaml", override)


def test_missing_files_are_plain_errors(capsys, tmp_path, smoke_run):
    assert "no such experiment" in refusal(capsys, "train", tmp_path / "none.yaml")
    assert "no shards here" in refusal(
        capsys, "train", ROOT / "experiments/smoke.yaml", f"data.train=[{tmp_path}]", f"runs={tmp_path}"
    )
    assert "data.train is empty" in refusal(
        capsys, "train", ROOT / "experiments/smoke.yaml", "data.train=[]", f"runs={tmp_path}"
    )
    assert "no such model folder" in refusal(capsys, "generate", tmp_path / "none", "a bell")
    assert "not a model folder" in refusal(capsys, "generate", tmp_path, "a bell")
    assert "no such prompt file" in refusal(capsys, "generate", "m", "--prompts", tmp_path / "none.txt")
    assert "no such stage" in refusal(capsys, "train", ROOT / "experiments/smoke.yaml", "--stage", "vea")
    broken = tmp_path / "model"
    shutil.copytree(smoke_run.model_folder, broken)
    shutil.rmtree(broken / "vocoder")
    message = refusal(capsys, "generate", broken, "a bell")
    assert "vocoder/ is missing" in message and "from:" in message


def test_empty_prompt_and_unknown_device(capsys, smoke_run):
    assert "prompt 1 is empty" in refusal(capsys, "generate", smoke_run.model_folder, "")
    assert "no prompt" in refusal(capsys, "generate", smoke_run.model_folder)
    assert "not on this machine" in refusal(capsys, "generate", smoke_run.model_folder, "a", "--device", "cuda:7")


def test_an_output_that_is_a_file_is_refused_and_stays(capsys, smoke_run, tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for output in (taken, taken / "below"):
        message = refusal(capsys, "generate", smoke_run.model_folder, "a bell", "--output", output, "--device", "cpu")
        assert f"--output {output}: cannot be made a folder" in message
    assert taken.read_text() == "mine"


def test_unreadable_clip_stops_training_with_its_name(capsys, shards, tmp_path):
    folder = tmp_path / "train"
    shutil.copytree(shards / "train", folder)
    for tar in folder.glob("*.tar"):
        content = tar.read_bytes()
        tar.write_bytes(content.replace(b"fLaC", b"XXXX"))
    arguments = [
        "train",
        ROOT / "experiments/smoke.yaml",
        f"data.train=[{folder}]",
        f"runs={tmp_path}",
        "trainer.progress_bar=false",
    ]
    assert "cannot be read" in refusal(capsys, *arguments)
