"""SIGTERM, SIGUSR1 and Ctrl-C: the stage is saved, the exit code says so, and the run goes on to the same bits."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from subprocess import Popen

import pytest
from test_ddp import free_port, start

from audioldm2_pl.errors import Interrupted, run_tool
from audioldm2_pl.training.interruption import Interruption


def files(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in (run / "model").rglob("*") if path.is_file()}


def wait_for(path: Path, process: Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("signum", "workers", "whole_group"),
    [(signal.SIGTERM, 0, False), (signal.SIGTERM, 2, True), (signal.SIGINT, 2, True), (signal.SIGUSR1, 2, True)],
)
def test_a_signal_saves_and_the_run_ends_like_the_unbroken_one(signum, workers, whole_group, shards, tmp_path):
    recipe = ("stages=[audiomae]", "training.audiomae={batches: 60, save_every_batches: 20}")
    overrides = (*recipe, f"data.num_workers={workers}", "gpt2.dropout=0.1")
    process = start(shards, tmp_path / "broken", *overrides, session=True)
    wait_for(tmp_path / "broken/smoke/checkpoints/audiomae.ckpt", process)
    (os.killpg if whole_group else os.kill)(process.pid, signum)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == (75 if signum == signal.SIGUSR1 else 128 + signum), output
    assert "is saved; resume with: audioldm2 train " in output and "Traceback" not in output
    for runs in ("broken", "straight"):
        again = start(shards, tmp_path / runs, *overrides)
        output, _ = again.communicate(timeout=120)
        assert again.returncode == 0 and ("goes on from" in output) == (runs == "broken"), output
    assert files(tmp_path / "broken/smoke") == files(tmp_path / "straight/smoke")


def test_a_signal_to_one_rank_ends_all_of_them(shards, tmp_path):
    launcher = ("--nproc_per_node", "2", "--master_port", str(free_port()))
    overrides = ("trainer.devices=2", "stages=[audiomae]", "training.audiomae={batches: 2000, save_every_batches: 20}")
    process = start(shards, tmp_path, *overrides, launcher=launcher)
    wait_for(tmp_path / "smoke/checkpoints/audiomae.ckpt", process)
    os.kill(max(children_of(process.pid), key=rank_of), signal.SIGTERM)
    started = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and time.monotonic() - started < 60
    assert "exitcode  : 143" in output and "is saved" in output


def children_of(parent: int) -> list[int]:
    """Process ids, in order."""
    children = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"PPid:\t{parent}\n" in (folder / "status").read_text():
                children.append(int(folder.name))
    return sorted(children)


def stages_of(parent: int) -> list[int]:
    """Process ids of the stages that run side by side."""
    return [child for child in children_of(parent) if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def rank_of(process: int) -> int:
    """The rank that torchrun has given to a process."""
    variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    return next(int(variable.partition(b"=")[2]) for variable in variables if variable.startswith(b"RANK="))


def start_side_by_side(shards: Path, runs: Path) -> Popen:
    """Two stages that would train for long, both past their first checkpoint."""
    batches = "{batches: 100000, save_every_batches: 5}"
    overrides = (f"training.audiomae={batches}", f"training.vocoder={batches}")
    process = start(shards, runs, "stages=[audiomae,vocoder]", "trainer.parallel_stages=2", *overrides)
    for stage in ("audiomae", "vocoder"):
        wait_for(runs / f"smoke/checkpoints/{stage}.ckpt", process)
    return process


def test_stages_side_by_side_are_saved_too(shards, tmp_path):
    process = start_side_by_side(shards, tmp_path)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert "the stages are saved; resume with: audioldm2 train " in output and "Traceback" not in output


def test_stages_side_by_side_end_with_the_call_that_started_them(shards, tmp_path):
    process = start_side_by_side(shards, tmp_path)
    stages = stages_of(process.pid)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    assert len(stages) == 2
    while any(Path(f"/proc/{stage}").exists() for stage in stages):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_stage_that_is_killed_beside_another_is_one_line(shards, tmp_path):
    process = start_side_by_side(shards, tmp_path)
    stages = stages_of(process.pid)
    os.kill(stages[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and "error: a stage's process was killed" in output and "Traceback" not in output


def test_before_the_first_batch_there_is_nothing_to_save():
    interruption = Interruption()
    with interruption.handled(), pytest.raises(Interrupted):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    interruption.deferred = True
    interruption.receive(signal.SIGINT, None)
    interruption.receive(signal.SIGTERM, None)
    with pytest.raises(Interrupted):  # whoever presses Ctrl-C twice does not want to wait
        interruption.receive(signal.SIGINT, None)


def test_exit_codes(capsys):
    def interrupted() -> None:
        raise Interrupted(signal.SIGTERM, "saved")

    def full() -> None:
        raise OSError(28, "No space left on device", "runs/x")

    assert run_tool(interrupted) == 143
    assert run_tool(full) == 2
    assert capsys.readouterr().err.splitlines() == ["SIGTERM; saved", "error: runs/x: No space left on device"]
