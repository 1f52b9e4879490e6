"""Tables of the papers: the plan says what is there; two rows and two seeds run from shards to a table."""

import csv
import importlib
import json
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from audioldm2_pl.config import load_experiment
from audioldm2_pl.errors import Interrupted, UserError
from audioldm2_pl.processes import module_of, run_command
from audioldm2_pl.training.records import record_of
from evaluation.__main__ import main
from evaluation.reproduce import steps
from evaluation.reproduce.corpora import facts_of
from evaluation.reproduce.plan import plan_of
from evaluation.reproduce.results import published_cells, write_results
from evaluation.reproduce.run import reproduce, run_step
from evaluation.reproduce.steps import Step, steps_of
from evaluation.reproduce.table import TABLES, Choices, built_in_tables, load_table, open_table
from evaluation.sound_classifier import SoundClassifierConfig
from evaluation.uncertainty import interval_over_seeds

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.mark.parametrize("name", built_in_tables())
def test_every_row_has_its_experiment_and_its_published_numbers(name):
    found = open_table(name, Choices(seeds=2))
    printed = found.published
    if printed is not None:
        rows = [row for row in found.rows if any(cell != "-" for cell in published_cells(found, row).values())]
        named = [row.settings.published or row.name for row in rows]
        assert sorted(named) == sorted(system for system, _ in printed.rows)  # each printed row once
    folders = [training.folder for training in found.trainings]
    assert len(set(folders)) == len(folders)
    planned = steps_of(found)
    for corpus in [step.title for step in planned if step.kind == "data"]:
        facts = facts_of(corpus)
        assert facts is not None and facts.hours and facts.command and len(facts.origin) > 20, corpus
    trained: set[Path] = set()
    for step in (step for step in planned if step.kind == "train"):
        started = [path for path in step.reads if path.parts[0] == "runs"]
        assert set(started) <= trained, step.title  # chains are in order
        trained |= set(step.makes)


def test_what_a_command_says_is_what_the_plan_has():
    places = {"runs": Path("/data/runs"), "shards": Path("/data/shards")}
    found = open_table("table_4", Choices(**places, seeds=2, rows=["AudioLDM 2-LJS-Pretrained"]))
    for training in found.trainings:
        assert load_experiment(training.path, training.overrides) == training.experiment
    words = found.trainings[-1].overrides
    assert "start_from.gpt2=/data/runs/audioldm2_gigaspeech/model" in words and "seed=1" in words


def test_rows_of_one_name_are_told_apart():
    found = open_table("table_2", Choices())
    cells = {row.name: published_cells(found, row)["FAD ↓"] for row in found.rows}
    assert cells["AudioLDM 2-Full"] == "2.13" and cells["AudioLDM 2-Full without T5 in the T-UNet"] == "1.78"


def test_hours_are_those_of_the_docstrings():
    hours = {name: facts_of(name).hours for name in ("audiocaps", "audioset", "fma", "ljspeech", "msd", "gigaspeech")}
    assert hours == {
        "audiocaps": 138, "audioset": 5_800, "fma": 8_232, "ljspeech": 23.9, "msd": 4_250, "gigaspeech": 10_000,
    }  # fmt: skip


def test_the_plan_of_table_1_names_all_that_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = ["GroundTruth", "TANGO", "AudioLDM 2-AC"]
    assert main(["reproduce", "table_1", "--dry-run", "--seeds", "2", "--rows", *rows, "--shards", "/data/shards"]) == 0
    plan = capsys.readouterr().out
    for line in (
        "AudioLDM 2-AC: Duration (h) 145, Param 346 M, FAD ↓ 1.67",
        '--system "TANGO=FOLDER"',
        "/data/shards/audiocaps/train: missing; the whole corpus has 138.0 h",
        "MIT; the recordings are YouTube's",
        "python -m data.audiocaps AudioCaps /data/shards/audiocaps --evaluation-list",
        "cvssp/audioldm2 (clap, vae, vocoder):",
        "models/audiomae (audiomae): missing",
        "vggish: weights/vggish-10086976.pth: not there",
        "runs/audioldm2_ac-seed1: not trained; unknown for ldm, gpt2, joint",
        "T-UNet 346.94 M parameters",
        "name=audioldm2_ac-seed1 seed=1",
        "'data.train=[/data/shards/audiocaps/train]'",
        "--protocol audioldm2-paper --test-set /data/shards/audiocaps/test",
        "(needs AudioCaps)",
        "--questions OVL REL",
    ):
        assert line in plan, line
    assert not list(tmp_path.iterdir())


def test_nothing_that_can_run_is_one_plain_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "table_1", "--rows", "AudioLDM 2-AC"]) == 2
    assert capsys.readouterr().err == (
        "error: table_1: nothing could be run (data audiocaps: needs AudioCaps); --dry-run prints what it needs\n"
    )
    with (tmp_path / "runs/reproduce/table_1/table.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["published FAD ↓"] == "1.67" and row["measured FAD ↓"] == "" and row["state"] == "not trained"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("rows: []", "rows: is empty"),
        ("rows: [{name: a}, {name: a}]", "two are called 'a'"),
        ("rows: [{name: a, systen: real}]", "did you mean 'system'"),
        ("rows: [{name: a, system: text}]", "system='text'"),
        ("rows: [{name: a}]\nscores: {fda: null}", "did you mean 'fad'"),
        ("rows: [{name: a}]\npublished: table_9", "published=table_9"),
        ("rows: [{name: a}]\npublished: table_1\nscores: {fad: FAD}", r"scores.fad='FAD'.*FAD ↓"),
        ("rows: [{name: a, occurrence: 0}]", "occurrence=0"),
        ("rows: [{name: a}]\nshared: {experiment: a.yaml, run: b, parts: [vea]}", "did you mean 'vae'"),
    ],
)
def test_wrong_tables_are_refused(content, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"title: Mine\nprotocol: audioldm2-paper\ntest_set: shards/a/test\n{content}\n")
    with pytest.raises(UserError, match=message):
        load_table(path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tabel_1"], "tabel_1: no such table; did you mean 'table_1'"),
        (["mine.yaml"], "mine.yaml: no such table file"),
        (["table_1", "--rows", "AudioLDM-2-AC"], "did you mean 'AudioLDM 2-AC'"),
        (["table_1", "--system", "TANGO"], "write ROW=FOLDER"),
        (["table_1", "--system", "TANGO=tnago:a"], "--system TANGO=tnago:a: tnago: choose one of"),
        (["table_1", "--seeds", "0"], "seeds=0 has to be"),
        (["table_5_synthetic", "--system", "AudioLDM 2=clips"], "asks for labels"),
        (["table_1", "traner.devices=2"], "did you mean 'trainer'"),
    ],
)
def test_wrong_command_lines_are_one_line(words, message, capsys):
    assert main(["reproduce", *words, "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("error: ") and said.count("\n") == 1


def in_process(command) -> int:
    """As `run_command`, without the seconds that a new process takes to import."""
    name, *arguments = module_of(command)
    module = importlib.import_module("evaluation.__main__" if name == "evaluation" else name)
    return module.main(arguments)


@pytest.fixture
def small(smoke_run, shards, tmp_path):
    """A table of the smoke experiment, whole and without joint finetuning; the other parts are `smoke_run`'s."""
    runs = tmp_path / "runs"
    runs.mkdir()
    shutil.copytree(smoke_run.run_folder, runs / "parts")
    path = tmp_path / "small.yaml"
    budget = ", ".join(f"training.{stage}.batches=2" for stage in ("ldm", "gpt2", "joint"))
    path.write_text(
        f"""
title: Ablations, small
published: table_5
protocol: audiomae
test_set: shards/test
scores: {{fd_audiomae: FAD ↓}}
overrides: ["data.train=[shards/train]", data.test=shards/test, trainer.progress_bar=false, {budget}]
shared: {{experiment: {EXPERIMENTS}/smoke.yaml, run: parts, parts: [clap, audiomae, vae, vocoder],
  overrides: ["stages=[clap,audiomae,vae,vocoder]"]}}
rows:
  - {{name: AudioLDM 2, experiment: {EXPERIMENTS}/smoke.yaml, run: whole, overrides: ["stages=[ldm,gpt2,joint]"]}}
  - name: a. w/o Joint finetuning
    experiment: {EXPERIMENTS}/smoke.yaml
    run: without_joint
    overrides: ["stages=[ldm,gpt2]"]
  - {{name: c. w/o FLAN-T5 embedding (GPT)}}
  - {{name: from LOA, experiment: {EXPERIMENTS}/smoke.yaml, run: whole, system: loa_to_audio,
     overrides: ["stages=[ldm,gpt2,joint]"]}}
"""
    )
    return str(path), {"runs": runs, "shards": shards, "weights": runs / "parts" / "model"}


@pytest.mark.parametrize(
    ("code", "signum"), [(130, signal.SIGINT), (143, signal.SIGTERM), (75, signal.SIGUSR1), (-10, signal.SIGUSR1)]
)
def test_a_command_that_a_signal_ended_ends_the_table(code, signum):
    step = Step("train", "a run", ["audioldm2", "train"], is_done=False)
    with pytest.raises(Interrupted) as stop:
        run_step(step, lambda command: code)
    assert stop.value.signum == signum
    assert run_step(step, lambda command: 2) == 2  # an error leaves out the rows that need it


def test_two_rows_and_two_seeds_from_shards_to_a_table(small, capsys, tmp_path):
    path, places = small
    rival = "c. w/o FLAN-T5 embedding (GPT)"
    rows = ["AudioLDM 2", "a. w/o Joint finetuning", rival]
    choices = Choices(**places, seeds=2, device="cpu", rows=rows)
    found = open_table(path, choices)
    kinds = [step.kind for step in steps_of(found) if not step.is_done]
    assert kinds == ["train"] * 4 + ["score"] * 4  # the shared parts are there
    told: list[list[str]] = []

    def stopping(command) -> int:
        """A machine that goes down before the third training."""
        told.append(list(command))
        return 130 if len(told) == 3 else in_process(command)

    with pytest.raises(Interrupted, match="the same command goes on"):
        reproduce(found, stopping)
    again: list[list[str]] = []

    def counting(command) -> int:
        again.append(list(command))
        return in_process(command)

    reproduce(open_table(path, choices), counting)
    assert [command[:2] for command in again].count(["audioldm2", "train"]) == 2  # the first two are finished
    folder = places["runs"] / "reproduce" / "small"
    rows = read_rows(folder)
    whole = rows["AudioLDM 2"]
    assert (whole["published FAD ↓"], whole["seeds"], whole["clips"], whole["state"]) == ("1.67", "2", "4", "measured")
    assert float(whole["low fd_audiomae"]) < float(whole["measured FAD ↓"]) < float(whole["high fd_audiomae"])
    assert whole["protocol"] == "audiomae" and whole["protocol sha256"] == found.protocol.digest
    assert rows[rival]["published FAD ↓"] == "2.73" and rows[rival]["state"] == "published only"
    assert rows[rival]["measured FAD ↓"] == ""
    scores = [places["runs"] / f"whole{seed}/report/scores/audiomae.text_to_audio.json" for seed in ("", "-seed1")]
    values = [json.loads(score.read_text())["scores"]["fd_audiomae"]["value"] for score in scores]
    assert values[0] != values[1] and float(whole["measured FAD ↓"]) == pytest.approx(np.mean(values), rel=1e-3)
    page = (folder / "table.md").read_text()
    assert "| FAD ↓, published | KL ↓, published | CLAP (%) ↑, published | FAD ↓, measured [95 %]" in page
    assert "Intervals are over seeds and clips" in page and "Published: arXiv:2308.05734, Table V (2023)" in page

    again.clear()
    reproduce(open_table(path, choices), counting)
    assert not again  # nothing is left to do
    check_others(path, choices, folder, rival)
    check_changes(path, choices)


def read_rows(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "table.csv").open(newline="", encoding="utf-8") as file:
        return {row["row"]: row for row in csv.DictReader(file)}


def check_others(path: str, choices: Choices, folder: Path, rival: str) -> None:
    """A folder of anybody's clips, and what the T-UNet makes of the recordings' LOA, are measured on the same clips."""
    clips = folder.parent.parent / "whole" / "report" / "audio" / "reference"
    given = {**vars(choices), "systems": {rival: str(clips)}, "rows": [rival, "from LOA"], "seeds": 1}
    found = open_table(path, Choices(**given))
    assert [step.kind for step in steps_of(found) if not step.is_done] == ["test set", "generate", "score", "score"]
    reproduce(found, in_process)
    rows = read_rows(folder)
    measured = rows[rival]
    assert measured["state"] == "measured" and measured["of"] == str(clips) and measured["seeds"] == ""
    assert abs(float(measured["measured FAD ↓"])) < 0.1 < float(rows["from LOA"]["measured FAD ↓"])  # recordings
    assert not [step for step in steps_of(open_table(path, Choices(**given))) if not step.is_done]


def check_changes(path: str, choices: Choices) -> None:
    """A stage that is trained anew is scored anew; a failing step leaves out its own row alone."""
    found = open_table(path, choices)
    record_of(found.rows[0].seeds[1].experiment, "joint").unlink()
    left = [step.title for step in steps_of(open_table(path, choices)) if not step.is_done]
    assert left == [str(choices.runs / "whole-seed1")]
    reproduce(open_table(path, choices), lambda command: 1)
    assert write_results(found) == 2  # what was measured stays
    plan = plan_of(found)
    (line,) = [line for line in plan.splitlines() if "whole-seed1:" in line]
    assert "begun: ldm, gpt2" in line and "s of one device left, by measured pace" in line


def test_one_classifier_measures_all_rows(smoke_run, shards, tmp_path, monkeypatch):
    """A protocol that asks for a sound classifier: it is trained once, beside the table."""
    monkeypatch.setattr(steps, "SoundClassifierConfig", partial(SoundClassifierConfig, batches=2, batch_size=4))
    shutil.copytree(smoke_run.run_folder, tmp_path / "runs" / "smoke")
    path = tmp_path / "labelled.yaml"
    path.write_text(
        f"title: Labelled\nprotocol: classification\ntest_set: shards/test\njudge: shards/train\n"
        f"scores: {{class_accuracy: null, order_accuracy: null}}\n"
        f'overrides: ["data.train=[shards/train]"]\n'
        f"rows: [{{name: smoke, experiment: {EXPERIMENTS}/smoke.yaml}}]\n"
    )
    choices = Choices(runs=tmp_path / "runs", shards=shards, device="cpu")
    found = open_table(str(path), choices)
    assert [step.kind for step in steps_of(found) if not step.is_done] == ["classifier", "score"]
    reproduce(found, in_process)
    folder = choices.runs / "reproduce" / "labelled"
    assert (folder / "report" / "classifier.safetensors").is_file()
    row = read_rows(folder)["smoke"]
    shares = [float(row[f"measured {name} accuracy ↑"]) for name in ("Class", "Order")]
    assert all(0.0 <= share <= 1.0 for share in shares) and row["state"] == "measured"
    assert not (choices.runs / "smoke" / "report" / "classifier.safetensors").exists()


def test_a_command_runs_in_a_process_of_its_own(capfd):
    assert run_command(["audioldm2", "train"]) == 2
    assert "error: the following arguments are required: experiment" in capfd.readouterr().err


def test_intervals_over_seeds_hold_the_truth():
    """Seeds and clips are drawn; the mean of both is in the interval about as often as it says."""
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        seeds, clips = draw.normal(0.0, 1.0, 3), draw.normal(0.0, 4.0, 64)
        values = seeds + clips.mean()
        found = interval_over_seeds(values, clips.var(ddof=1) / 64, 64)
        held += found.low <= 0.0 <= found.high
    assert 0.92 <= held / 400 <= 0.99
    with pytest.raises(ValueError, match="two or more"):
        interval_over_seeds(np.array([1.0]), 0.1, 10)


def test_the_table_of_the_guide_loads(tmp_path):
    text = (EXPERIMENTS.parent / "docs" / "reproduce.md").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(text.split("```yaml table\n")[1].split("```")[0])
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.yaml").write_text(f"base: {EXPERIMENTS}/table_1/audioldm2_ac.yaml\nname: mine\n")
    found = open_table(str(tmp_path / "mine.yaml"), Choices())
    assert [training.experiment.name for training in found.trainings] == ["parts", "short", "long"]
    assert found.trainings[1].experiment.from_["vae"] == "runs/parts/model"


def test_the_built_in_tables_are_those_of_the_papers():
    assert built_in_tables() == ["table_1", "table_2", "table_3", "table_4", "table_5", "table_5_synthetic"]
    assert all((TABLES / f"{name}.yaml").read_text().startswith("# ") for name in built_in_tables())
