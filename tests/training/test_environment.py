"""What a run notes of how it was made."""

import json
import subprocess

from audioldm2_pl.config import load_experiment
from audioldm2_pl.training.environment import environment_of, git_state, note_call


def test_a_run_holds_its_experiment_in_full(smoke, tmp_path):
    experiment = smoke(runs=tmp_path)
    experiment.run_folder.mkdir()
    note_call(experiment, ["vae"])
    assert load_experiment(experiment.run_folder / "experiment.yaml") == experiment


def test_each_call_is_a_line(smoke_run):
    calls = [json.loads(line) for line in (smoke_run.run_folder / "calls.jsonl").read_text().splitlines()]
    assert calls[0]["stages"] and calls[0]["machine"]["ranks"] == 1
    assert calls[0]["versions"]["torch"] and calls[0]["versions"]["python"]
    assert list(calls[0]["data"]) == smoke_run.data.train
    assert calls[0]["data"] == environment_of(smoke_run)["data"]  # the digests of shards that are the same


def test_git_tells_of_changes(tmp_path):
    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    assert git_state(tmp_path) is None
    git("init")
    (tmp_path / "a").write_text("a")
    git("add", "a")
    git("commit", "-m", "a")
    found = git_state(tmp_path)
    assert found and len(found["commit"]) == 40 and not found["changed"]
    (tmp_path / "b").write_text("b")
    assert git_state(tmp_path) == found  # a file that git does not know changes no code
    (tmp_path / "a").write_text("c")
    assert git_state(tmp_path) == {**found, "changed": True}
