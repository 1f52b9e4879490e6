"""`audioldm2 demo`: its steps, what it says, and that it goes on."""

import pytest

from audioldm2_pl.cli import main
from audioldm2_pl.demo import DemoOptions, run_demo
from audioldm2_pl.errors import Interrupted, UserError
from data.__main__ import main as data
from evaluation.__main__ import main as evaluation

RUN = {"audioldm2": main, "audioldm2-data": data, "audioldm2-eval": evaluation}
VAE_ALONE = DemoOptions(
    "smoke", 12, ["stages=[vae]", "data.test=none", "trainer.progress_bar=false"]
)  # nothing to report on


def here(command):
    """As `run_command`, without the seconds that a new process takes to import."""
    return RUN[command[0]]([*command[1:], *(["--workers", "1"] if "synthetic" in command else [])])


def test_it_makes_sounds_trains_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"step 3, .*: failed with code 2; put that right"):
        run_demo(VAE_ALONE, here)
    said = capsys.readouterr().out
    assert "[1 of 3] synthesise 12 clips" in said and "[2 of 3] took 0:" in said and "vae: finished in" in said
    assert "audioldm2-data synthetic shards/synthetic --clips 12 --test-clips 12 --judge-clips 12" in said
    assert (tmp_path / "runs/smoke/model/vae").is_dir() and (tmp_path / "shards/synthetic/judge").is_dir()
    with pytest.raises(UserError, match="step 3"):
        run_demo(VAE_ALONE, here)
    assert "vae: starts" not in capsys.readouterr().out


def test_bad_input_stops_it_before_the_first_step(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words in (["--experiment", "dmo"], ["--clips", "3"], ["seeed=1"]):
        assert main(["demo", *words]) == 2
        assert capsys.readouterr().out == ""
    assert not list(tmp_path.iterdir())


def test_an_interrupted_step_says_how_to_go_on():
    with pytest.raises(Interrupted, match="interrupted; the same command goes on"):
        run_demo(VAE_ALONE, lambda command: 130)
