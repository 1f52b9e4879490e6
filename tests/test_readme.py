"""What README and docs show: commands run, or are parsed and name what is missing; code runs; names and links exist."""

import importlib
import re
import shlex
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile

from audioldm2_pl.cli import build_parser, main
from audioldm2_pl.config import load_experiment
from audioldm2_pl.flags import parse_with_overrides
from audioldm2_pl.shards.reader import ShardFolder

ROOT = Path(__file__).parents[1]
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]}
SMOKE = str(ROOT / "experiments/smoke.yaml")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.DOTALL)


def commands(page: str, language: str) -> list[list[str]]:
    """The words of each line of a page's blocks of a language; comments cut off, continued lines joined."""
    lines = [line for block in blocks(page, language) for line in block.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def having(*languages: str) -> list[str]:
    return [page for page in PAGES if any(blocks(page, language) for language in languages)]


def tool(words: list[str]):
    """The command line that a line calls, and its arguments; launchers are taken off."""
    names = [word.removeprefix(".venv/bin/") for word in words]
    for position, name in enumerate(names):
        if name == "audioldm2" or name == "audioldm2_pl.cli":
            return main, names[position + 1 :]
        if name.startswith("data.") or name == "evaluation":
            module = importlib.import_module("evaluation.__main__" if name == "evaluation" else name)
            return module.main, names[position + 1 :]
    return None, names


def on_smoke(arguments: list[str], shards: Path) -> list[str]:
    """A command of audioldm2 on the smoke experiment and its shards."""
    arguments = [re.sub(r"^experiments/demo\.yaml$", SMOKE, argument) for argument in arguments]
    arguments = [argument.replace("runs/demo/", "runs/smoke/") for argument in arguments]
    added = {
        "train": [f"data.train=[{shards}/train]", f"data.test={shards}/test", "trainer.progress_bar=false"],
        "generate": ["--steps", "2"],  # the last one counts
    }
    return [*arguments, *added.get(arguments[0], [])]


@pytest.fixture
def clone(smoke_run, tmp_path, monkeypatch):
    """A folder like a clone's root after the smoke experiment."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to(smoke_run.run_folder.parent)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    (tmp_path / "shards").mkdir()
    return tmp_path


@pytest.mark.parametrize("page", having("bash"))
def test_commands_run_on_smoke(page, clone, shards):
    """Every line of the blocks for newcomers, with the smoke experiment for the demo."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in commands(page, "bash"):
        run, arguments = tool(words)
        if run is None:
            assert words[0] == "make" and words[1] in targets, words
        elif arguments[0] == "demo":  # tests/test_demo.py runs it
            assert build_parser().parse_args(arguments).experiment == "smoke"
        elif "data." in run.__module__:
            assert run([*arguments, "--clips", "4", "--test-clips", "2", "--judge-clips", "2"]) == 0, words
        else:
            assert run(on_smoke(arguments, shards)) == 0, words


@pytest.mark.parametrize("page", [page for page in having("python") if page != "own_data"])
def test_code_runs_on_smoke(page, clone, monkeypatch):
    """A page's Python blocks one after another, with the smoke experiment for the demo."""
    namespace: dict = {}
    for block in blocks(page, "python"):
        code = block.replace("experiments/demo.yaml", SMOKE).replace("runs/demo/", "runs/smoke/")
        exec(compile(re.sub(r"num_steps=\d+", "num_steps=5", code), f"{page}.md", "exec"), namespace)


@pytest.fixture
def mine(monkeypatch) -> ModuleType:
    """`data/mine.py` as docs/own_data.md writes it."""
    (code,) = blocks("own_data", "python")
    assert code.startswith("# data/mine.py\n")
    module = ModuleType("data.mine")
    monkeypatch.setitem(sys.modules, "data.mine", module)
    exec(compile(code, "data/mine.py", "exec"), vars(module))
    return module


def test_a_corpus_of_your_own_becomes_shards(mine, tmp_path):
    for split in ("train", "test"):
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, 32_000)
        soundfile.write(tmp_path / f"{split}.wav", noise, 16_000)
        (tmp_path / f"{split}.csv").write_text(f"filename,caption\n{split}.wav,rain falls\n")
    assert mine.main([str(tmp_path), str(tmp_path / "shards"), "--workers", "1"]) == 0
    assert ShardFolder(tmp_path / "shards/train").index["num_clips"] == 1


def test_your_own_sounds_become_shards_and_train(tmp_path, monkeypatch):
    """The first two lines of docs/own_data.md, the second with the smallest experiment."""
    monkeypatch.chdir(tmp_path)
    Path("recordings").mkdir()
    for n in range(16):
        noise = np.random.default_rng(n).uniform(-0.5, 0.5, 16_000)
        soundfile.write(f"recordings/{n}.wav", noise, 16_000)
    Path("recordings/metadata.csv").write_text("file_name,text\n" + "".join(f"{n}.wav,rain {n}\n" for n in range(16)))
    (folder, arguments), (train, settings) = map(tool, commands("own_data", "sh")[:2])
    assert folder([*arguments, "--workers", "1"]) == 0
    assert {path.name for path in Path("shards/mine").iterdir()} == {"train", "test"}
    settings = [re.sub(r"^experiments/.*", SMOKE, word) for word in settings]
    assert train([*settings, "stages=[vae]", "trainer.progress_bar=false"]) == 0


def test_a_run_is_steered(smoke_run, shards, tmp_path, monkeypatch):
    """The first `sh` lines of docs/train.md, with the stage joint of the smallest experiment."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(smoke_run.model_folder, "runs/smoke/model")
    Path("captions.csv").write_text("filename,caption\nbell.wav,a bell\n")
    (train, settings), (generate, prompt), (evaluation, system) = map(tool, commands("train", "sh")[:3])
    settings = [re.sub("=100$", "=2", word) for word in on_smoke(settings, shards)]
    assert train([*settings, "--stage", "joint"]) == 0
    assert generate(on_smoke([word.replace("0000100", "0000002") for word in prompt], shards)) == 0
    system = [word.replace("runs/demo/exports/joint-0000100", "runs/smoke/exports/joint-0000002") for word in system]
    assert evaluation(system) == 0 and Path("output/joint-100/bell.wav").is_file()


def longer_commands() -> list[list[str]]:
    return [words for page in having("sh") for words in commands(page, "sh")]


@pytest.mark.parametrize("words", longer_commands(), ids=" ".join)
def test_longer_commands_are_known(words, mine, tmp_path, monkeypatch, capsys):
    """Corpora, weights and clusters are not here: the line has to be parsed, and to name what is missing."""
    run, arguments = tool(words)
    assert run is not None, words
    if arguments[0] == "train":
        args = parse_with_overrides(build_parser(), arguments)
        assert load_experiment(ROOT / args.experiment, args.overrides).stages
        return
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "experiments", "experiments")
    assert run(arguments) == 2  # argparse would raise SystemExit
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and "\n" not in said
    assert "experiments/" not in said  # it is there


def test_the_longer_commands_are_found():
    assert len(longer_commands()) >= 20


@pytest.mark.parametrize("page", having("yaml"))
def test_experiments_load(page, tmp_path):
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    for block in blocks(page, "yaml"):
        path = tmp_path / "experiments" / "mine.yaml"
        path.write_text(block)
        assert load_experiment(path).stages


def headings(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    lines = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    folder = ROOT if page == "README" else ROOT / "docs"
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", PAGES[page]):
        path, _, anchor = target.partition("#")
        assert (folder / path).is_file(), target
        assert not anchor or anchor in headings(folder / path), target


@pytest.mark.parametrize("page", PAGES)
def test_files_that_pages_name_exist(page):
    prose = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    for name in re.findall(r"`((?:audioldm2_pl|data|evaluation|experiments|tests|docs)/[\w./]*)`", prose):
        assert (ROOT / name).exists() or name in ("data/mine.py", "experiments/mine.yaml"), name


def test_every_experiment_is_in_the_table():
    for path in (ROOT / "experiments").rglob("*.yaml"):
        assert path.name in PAGES["reproduce"], path


def test_every_page_is_linked_from_the_readme():
    assert all(page == "README" or f"(docs/{page}.md" in PAGES["README"] for page in PAGES)


def map_entries() -> list[tuple[int, str, str]]:
    """(depth, name, line) of each line of the map; a line that continues the one above has its depth and no name."""
    block = PAGES["architecture"].split("## Map")[1].split("\n## ")[0]
    entries: list[tuple[int, str, str]] = []
    for line in filter(None, block.splitlines()):
        indent = len(line) - len(line.lstrip()) - 4
        entries.append((indent // 2, line.split()[0], line) if indent <= 4 else (entries[-1][0], "", line))
    return entries


def test_map_names_what_is_there():
    folders, found = [ROOT], 0
    for depth, name, line in map_entries():
        if name:
            path = folders[depth] / name
            folders = [*folders[: depth + 1], path]
            assert path.exists(), path
        for file in re.findall(r"\b(\w+\.(?:py|yaml))\b", line):
            assert any((folder / file).is_file() for folder in folders[-2:]), f"{file} in {folders[-2:]}"
            found += 1
    assert found > 50


def test_map_goes_down_a_level_at_a_time():
    assert all(below[0] <= above[0] + 1 for above, below in pairwise(map_entries()))


def test_a_name_that_is_not_there_would_be_found(monkeypatch):
    monkeypatch.setitem(PAGES, "architecture", PAGES["architecture"].replace("quarantine.py", "quarantined.py"))
    with pytest.raises(AssertionError, match="quarantined"):
        test_map_names_what_is_there()


def test_every_package_is_installed():
    listed = (ROOT / "pyproject.toml").read_text()
    for folder in ("audioldm2_pl", "data", "evaluation", "experiments"):
        for path in (ROOT / folder).rglob("__init__.py"):
            name = ".".join(path.parent.relative_to(ROOT).parts)
            assert f'"{name if folder == "audioldm2_pl" else f"audioldm2_pl.{name}"}"' in listed, name
