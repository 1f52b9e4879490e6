"""The command line as a user meets it: what it writes, what it says when something is wrong."""

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import soundfile

from audioldm2_pl.cli import main
from audioldm2_pl.generation import Generation, Sampling
from audioldm2_pl.pipeline import AudioLDM2
from audioldm2_pl.prompts import read_prompts

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
        ("stages=[ldm,vea]", "stages: vea: did you mean 'vae'"),
        ("unet.in_channels=4", "vae.latent_channels"),
        ("sampling.sampler=dimm", "ddim"),
        ("seed", "key=value"),
    ],
)
def test_wrong_values_are_plain_errors(capsys, override, message):
    assert re.search(message, refusal(capsys, "describe", ROOT / "experiments/demo.yaml", override))


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


def test_prompts_may_stand_behind_options(smoke_run, tmp_path, capsys):
    options = ["--steps", "2", "--output", str(tmp_path)]
    assert main(["generate", str(smoke_run.model_folder), "a bell", *options, "- rain", "a siren"]) == 0
    assert [f.name for f in sorted(tmp_path.iterdir())] == ["0001_a_bell.wav", "0002_rain.wav", "0003_a_siren.wav"]
    options[-1] = str(tmp_path / "first")
    assert main(["generate", str(smoke_run.model_folder), *options, "a bell", "rain"]) == 0
    assert [f.name for f in sorted((tmp_path / "first").iterdir())] == ["0001_a_bell.wav", "0002_rain.wav"]
    with pytest.raises(SystemExit) as left:
        main(["generate", str(smoke_run.model_folder), "a bell", "--stpes", "2"])
    assert left.value.code == 2 and "unrecognized arguments: --stpes" in capsys.readouterr().err


@pytest.mark.parametrize("schema", [Generation, Sampling])
def test_every_field_of_a_request_is_a_flag(schema, capsys):
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for f in fields(schema):
        assert f.metadata["help"].split("; ")[0] in text
        assert f.name == "prompt" or f"--{f.name.replace('_', '-')} " in text
    assert "--num-steps STEPS, --steps STEPS sampling steps (from 1 to 100000; default: the model's own)" in text
    assert "--sampler {ddim,ddpm,dpm-solver++,unipc,euler,heun,pndm,lcm}" in text


def test_flags_set_fields_and_the_folder_the_others(smoke_run, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(AudioLDM2, "generate", lambda self, requests, **s: made.append((requests, s)) or [])
    options = ["--num-steps", "2", "--sampler", "euler", "--seed", "4", "--seconds", "1.5", "--negative-prompt", "rain"]
    assert main(["generate", str(smoke_run.model_folder), *options, "a", "b", "--output", str(tmp_path)]) == 0
    shared = {"negative_prompt": "rain", "seconds": 1.5}
    expected = [Generation("a", seed=4, **shared), Generation("b", seed=5, **shared)]
    assert made == [(expected, {"num_steps": 2, "sampler": "euler"})]


def test_a_wrong_command_line_is_one_line(capsys):
    for arguments in (["generate"], ["generate", "m", "a", "--steps", "many"], ["generate", "m", "--precision", "8"]):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        lines = capsys.readouterr().err.splitlines()
        assert left.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: ")


def test_bfloat16_from_the_command_line(smoke_run, tmp_path):
    options = ["--precision", "bf16", "--steps", "1", "--output", str(tmp_path), "--device", "cpu"]
    assert main(["generate", str(smoke_run.model_folder), "a bell", *options]) == 0
    assert soundfile.info(tmp_path / "0001_a_bell.wav").frames == 40_960


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "num_steps=0 has to be from 1 to 100000"),
        (["--seconds", "0"], "seconds=0.0 has to be above 0 and at most 86400"),
        (["--unconditional", "none"], "choose one of zero, gpt2"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--batch-size", "-1"], "--batch-size -1"),
        (["--eta", "5"], "eta=5.0 has to be from 0 to 1"),
        (["--guidance-scale", "nan"], "guidance_scale=nan is not finite"),
        (["--seed", "-1"], "seed=-1"),
        (["--sampler", "dimm"], "did you mean 'ddim'"),
    ],
)
def test_settings_out_of_range_make_no_file(capsys, smoke_run, tmp_path, options, message):
    out = tmp_path / "out"
    arguments = ("generate", smoke_run.model_folder, "a bell", "--output", out, "--device", "cpu", *options)
    assert message in refusal(capsys, *arguments)
    assert not out.exists() or not list(out.iterdir())


def test_what_is_not_read_is_one_line_on_stderr(smoke_run, tmp_path):
    command = [sys.executable, "-m", "audioldm2_pl.cli", "generate", str(smoke_run.model_folder), "a gong " * 40]
    ran = subprocess.run([*command, "--steps", "1", "--output", str(tmp_path)], capture_output=True, text=True)
    lines = ran.stderr.strip().splitlines()
    assert len(lines) == 2 and all(line.startswith("warning: 'a gong") for line in lines)
    assert "CLAP reads 128 of" in lines[0] and "T5 reads 128 of" in lines[1]


def test_a_full_disk_leaves_no_cut_file(smoke_run, tmp_path):
    command = [sys.executable, "-m", "audioldm2_pl.cli", "generate", str(smoke_run.model_folder), "a bell"]
    limited = f"ulimit -f 32; exec {shlex.join([*command, '--steps', '1', '--output', str(tmp_path)])}"
    ran = subprocess.run(["bash", "-c", limited], capture_output=True, text=True)
    assert ran.returncode == 2 and "cannot be written (File too large)" in ran.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"\xef\xbb\xbfbell | a bell\r\nrain | rain", [("bell", "a bell"), ("rain", "rain")]),
        (b"a.wav | x\nb.FLAC | y\nc/d.mp3 | z\nv1.5 | w", [("a", "x"), ("b", "y"), ("c/d", "z"), ("v1.5", "w")]),
        ("one | two\u2028three".encode(), [("one", "two\u2028three")]),
        ("cafe\u0301 | a bell".encode(), [("caf\xe9", "a bell")]),
        (b"./a//b | x", [("a/b", "x")]),
    ],
)
def test_prompt_files_of_other_editors(tmp_path, content, named):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    assert read_prompts(path, first=1) == named


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"caf\xe9 | a bell", "UTF-8"),
        ("a | b".encode("utf-16"), "UTF-8"),
        (b"a | x\na.wav | y", "two clips would be named 'a'"),
        ("\u00e9 | x\ne\u0301 | y".encode(), "two clips would be named"),
        (b"../a | x", "inside the output folder"),
        (b".. | x", "inside the output folder"),
        (b"/a | x", "inside the output folder"),
        (b"a\0b | x", "inside the output folder"),
        (b"n" * 300 + b" | x", "inside the output folder"),
        (b"0001_a_bell | x", "two clips would be named '0001_a_bell'"),
    ],
)
def test_prompt_files_that_would_lose_a_clip(capsys, smoke_run, tmp_path, content, message):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    refused = refusal(capsys, "generate", smoke_run.model_folder, "a bell", "--prompts", path, "--output", tmp_path)
    assert str(path) in refused and message in refused


def test_commands_of_shards_are_permitted_by_the_command_line_alone(capsys, shards, tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIOLDM2_ALLOW_PIPE", "0")
    smoke, folder = ROOT / "experiments/smoke.yaml", f"data.train=['pipe:cat {shards}/train/{{name}}']"
    options = [
        "--stage",
        "audiomae",
        folder,
        f"data.cache={tmp_path}",
        f"runs={tmp_path}",
        "trainer.progress_bar=false",
    ]
    assert "--allow-pipe" in refusal(capsys, "train", smoke, *options)
    assert "--allow-pipe" in refusal(capsys, "train", smoke, *options, "data.allow_pipe=true")
    assert main(["train", str(smoke), *options, "--allow-pipe"]) == 0


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
