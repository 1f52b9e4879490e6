"""What the README shows: its commands run, its longer ones are parsed, its map names what is there."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from audioldm2_pl.cli import main
from audioldm2_pl.config import load_experiment

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(language: str) -> list[list[str]]:
    """The words of each line of the README's blocks of a language; comments cut off, continued lines joined."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def tool(words: list[str]):
    """The command line that a line calls, and its arguments; launchers are taken off."""
    names = [word.removeprefix(".venv/bin/") for word in words]
    for place, name in enumerate(names):
        if name == "audioldm2" or name == "audioldm2_pl.cli":
            return main, names[place + 1 :]
        if name.startswith("data.") or name == "evaluation":
            module = importlib.import_module("evaluation.__main__" if name == "evaluation" else name)
            return module.main, names[place + 1 :]
    return None, names


def test_commands_run_on_smoke(smoke_run, shards, tmp_path, monkeypatch):
    """Every line of the blocks for newcomers, with the smoke experiment in the others' place."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to(smoke_run.run_folder.parent)
    (tmp_path / "shards").mkdir()
    ran = 0
    for words in commands("bash"):
        run, arguments = tool(words)
        if run is None:
            assert words[0] == "make", words
            continue
        arguments = [re.sub(r"^experiments/\w+\.yaml$", str(ROOT / "experiments/smoke.yaml"), a) for a in arguments]
        arguments = [argument.replace("runs/demo/", "runs/smoke/") for argument in arguments]
        if arguments[0] == "train":
            arguments += [f"data.train=[{shards}/train]", f"data.test={shards}/test", "trainer.progress_bar=false"]
        elif arguments[0] == "generate":
            arguments[arguments.index("--steps") + 1] = "2"
        elif "data." in run.__module__:
            arguments += ["--clips", "4", "--test-clips", "2", "--judge-clips", "2"]
        assert run(arguments) == 0, words
        ran += 1
    assert ran >= 6


def longer_commands() -> list[list[str]]:
    return [words for words in commands("sh") if "serve" not in words]


@pytest.mark.parametrize("words", longer_commands(), ids=" ".join)
def test_longer_commands_are_known(words, tmp_path, monkeypatch, capsys):
    """Corpora, weights and clusters are not here: the line has to be parsed, and to ask for what is missing."""
    run, arguments = tool(words)
    assert run is not None, words
    if arguments[0] == "train":
        overrides = [argument for argument in arguments if "=" in argument]
        assert load_experiment(ROOT / arguments[1], overrides).stages
        return
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2  # argparse would raise SystemExit
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and "\n" not in said


def test_the_longer_commands_are_found():
    assert len(longer_commands()) >= 12


def test_map_names_what_is_there():
    block = README.split("## Map")[1].split("\n## ")[0]
    folder, found = ROOT, 0
    for line in block.splitlines():
        entry = re.match(r"    ( *)([\w./]+) {2,}|    ( *)([\w./]+/)$", line)
        if entry:
            indent, name = entry[1] if entry[2] else entry[3], entry[2] or entry[4]
            path = ROOT / name if not indent else folder / name
            folder = path if not indent else folder
            assert path.exists(), path
            found += 1
        inside = folder if not entry or "/" not in (entry[2] or "") else path
        for name in re.findall(r"\b(\w+\.(?:py|yaml))\b", line):
            places = [place for place in (folder, inside) if (place / name).is_file()]
            assert places or list(folder.rglob(name)), f"{name} in {folder}"
            found += 1
    assert found > 50


def test_a_name_that_is_not_there_would_be_found(monkeypatch):
    monkeypatch.setattr("test_readme.README", README.replace("quarantine.py", "quarantined.py"))
    with pytest.raises(AssertionError, match="quarantined"):
        test_map_names_what_is_there()
