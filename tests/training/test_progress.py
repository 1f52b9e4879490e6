"""What a stage shows of itself while it trains."""

import re
import sys
import time

from audioldm2_pl.training.progress import StageProgress
from audioldm2_pl.training.run import train


def test_a_stage_has_one_bar_with_its_name(smoke, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    train(smoke("stages=[vae]", "trainer.progress_bar=true"))
    said = capsys.readouterr().out
    assert re.search(r"vae: 100%\|.*\| 4 of 4 batches, 00:\d\d, 00:00 left", said)
    assert "Epoch" not in said


def test_without_a_terminal_it_writes_lines():
    progress = StageProgress("vae", 40)
    progress.begun = time.perf_counter() - 10
    assert progress.line(10, {"loss": "0.5"}) == "vae: 10 of 40 batches, 00:30 left, loss=0.5"
    progress.first = 5  # a resumed stage: 10 s for 5 batches
    assert progress.line(10, {}) == "vae: 10 of 40 batches, 01:00 left"
