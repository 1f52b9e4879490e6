"""Several processes on this machine, over gloo: started by torchrun, or with the variables that srun gives them."""

import csv
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from audioldm2_pl.config import STAGES
from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.parts import HUB_CLASSES
from audioldm2_pl.training.ranks import build_trainer
from audioldm2_pl.training.trainer import TrainerConfig
from data.shards import write_shards
from data.synthetic import clips

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start(
    shards: Path,
    runs: Path,
    *overrides: str,
    launcher: tuple[str, ...] = (),
    variables: dict[str, str] | None = None,
    session: bool = False,
) -> subprocess.Popen:
    """`audioldm2 train smoke.yaml …`, in one process or under torchrun, with more environment variables.

    With `session` it has a process group of its own.
    """
    command = [
        sys.executable, *(("-m", "torch.distributed.run", *launcher) if launcher else ()), "-m", "audioldm2_pl.cli",
        "train", str(ROOT / "experiments/smoke.yaml"), f"data.train=[{shards}/train]", "data.test=null",
        f"runs={runs}", "trainer.progress_bar=false", "trainer.num_threads=1", *overrides,
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | (variables or {})
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=session,
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    return output


def losses(run: Path, stage: str) -> dict[tuple[int, str], float]:
    with (run / "logs" / stage / "metrics.csv").open(newline="") as file:
        return {(int(row["batch"]), row["name"]): float(row["value"]) for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def two_ranks(shards, tmp_path_factory) -> Path:
    """All stages of smoke.yaml in two processes of batches of 2."""
    runs = tmp_path_factory.mktemp("ddp")
    launcher = ("--nproc_per_node", "2", "--master_port", str(free_port()))
    finish(start(shards, runs, "trainer.devices=2", launcher=launcher))
    return runs / "smoke"


def test_two_processes_train_every_stage(two_ranks):
    stages = {path.stem for path in (two_ranks / "stages").glob("*.json")}
    assert stages == set(STAGES) - {"image", "distill"}  # which want pictures, and a teacher of another run
    assert {path.name for path in (two_ranks / "model").iterdir() if path.is_dir()} == {*HUB_CLASSES, "audiomae"}


def test_two_processes_are_one_with_twice_the_batch(two_ranks, shards, tmp_path):
    model = two_ranks / "model"
    parts = ", ".join(f"{part}: {model}" for part in ("clap", "audiomae", "vae", "vocoder"))
    finish(start(shards, tmp_path, f"from={{{parts}}}", "stages=[ldm]", "training.ldm.batch_size=4"))
    alone, together = losses(tmp_path / "smoke", "ldm"), losses(two_ranks, "ldm")
    assert set(alone) == set(together) and len(alone) == 4
    assert max(abs(alone[key] - together[key]) for key in alone) < 1e-4
    assert len(set(alone.values())) == 4  # each batch has another loss: there is something to be equal


def test_ranks_have_dropout_masks_of_their_own(two_ranks, shards, tmp_path):
    """On a corpus of one clip, ranks with the same mask would have the loss of one process."""
    one = tmp_path / "one"
    write_shards(clips("train", 1), one, num_workers=1)
    parts = ", ".join(f"{part}: {two_ranks / 'model'}" for part in ("clap", "audiomae"))
    found = {}
    for devices in (1, 2):
        launcher = ("--nproc_per_node", str(devices), "--master_port", str(free_port()))
        finish(start(shards, tmp_path / str(devices), f"from={{{parts}}}", "stages=[gpt2]",
                     f"trainer.devices={devices}", f"data.train=[{one}]", "gpt2.dropout=0.5",
                     "training.gpt2={batches: 1, batch_size: 1}", launcher=launcher))  # fmt: skip
        found[devices] = losses(tmp_path / str(devices) / "smoke", "gpt2")[0, "train/loa"]
    assert abs(found[1] - found[2]) > 1e-3 * found[1]


def test_validation_where_there_are_fewer_clips_than_ranks(two_ranks, shards, tmp_path):
    """Both ranks validate on a test split of one clip, and each draws a timestep of its own."""
    one = tmp_path / "one"
    write_shards(clips("test", 1), one, num_workers=1)
    parts = ", ".join(f"{part}: {two_ranks / 'model'}" for part in ("clap", "audiomae", "vae", "unet", "gpt2", "t5"))
    found = []
    for devices in (1, 2):
        runs = tmp_path / str(devices)
        launcher = ("--nproc_per_node", str(devices), "--master_port", str(free_port()))
        finish(start(shards, runs, f"start_from={{{parts}}}", "stages=[joint]", f"trainer.devices={devices}",
                     f"data.test={one}", "trainer.validate_every_batches=1",
                     "training.joint={batches: 2, batch_size: 1, optimizer: {learning_rate: 0.0}}",
                     launcher=launcher))  # fmt: skip
        rows = losses(runs / "smoke", "joint")
        found.append({key: value for key, value in rows.items() if key[1].startswith("val/")})
    assert found[0].keys() == found[1].keys() and len(found[0]) == 4
    assert found[0][0, "val/loa"] == pytest.approx(found[1][0, "val/loa"], rel=1e-4)
    for rows in found:  # the same draws in every validation
        assert rows[0, "val/diffusion"] == rows[1, "val/diffusion"]


def test_two_nodes(shards, tmp_path):
    port = str(free_port())
    nodes = [
        start(
            shards, tmp_path, "trainer.devices=1", "trainer.num_nodes=2", "stages=[audiomae,vae]",
            launcher=("--nnodes", "2", "--nproc_per_node", "1", "--node_rank", rank,
                      "--master_addr", "127.0.0.1", "--master_port", port),
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    output = [finish(node) for node in nodes]
    assert "vae: finished" in output[0] and "vae: finished" not in output[1]
    again = finish(start(shards, tmp_path, "stages=[audiomae,vae]"))
    assert "audiomae: finished\n" in again and "vae: finished\n" in again
    assert torch.isfinite(next(iter(load_file(tmp_path / "smoke/model/audiomae/model.safetensors").values()))).all()


def test_two_processes_that_lightning_starts(two_ranks, shards, tmp_path):
    output = finish(start(shards, tmp_path, "trainer.devices=2", "stages=[audiomae,vae]"))
    assert output.count("vae: finished") == 1
    for stage in ("audiomae", "vae"):
        assert losses(tmp_path / "smoke", stage) == pytest.approx(losses(two_ranks, stage), rel=1e-4)


def slurm_task(rank: int, num_tasks: int = 2) -> dict[str, str]:
    """What srun sets for one task of a job on one machine."""
    variables = {
        "JOB_ID": "4711", "JOB_NAME": "audioldm2", "NTASKS": str(num_tasks), "NTASKS_PER_NODE": str(num_tasks),
        "NNODES": "1", "NODELIST": "127.0.0.1", "NODEID": "0", "PROCID": str(rank), "LOCALID": str(rank),
    }  # fmt: skip
    return {f"SLURM_{name}": value for name, value in variables.items()}


def test_two_tasks_of_srun_are_two_processes_of_torchrun(two_ranks, shards, tmp_path):
    port = str(free_port())
    tasks = [
        start(
            shards, tmp_path, "trainer.devices=2", "stages=[audiomae,vae]",
            variables=slurm_task(rank) | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
        )
        for rank in (0, 1)
    ]  # fmt: skip
    output = [finish(task) for task in tasks]
    assert "vae: finished" in output[0] and "vae: finished" not in output[1]
    for stage in ("audiomae", "vae"):
        assert losses(tmp_path / "smoke", stage) == pytest.approx(losses(two_ranks, stage), rel=1e-4)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_that_is_killed_ends_the_others_in_one_line(lost, shards, tmp_path):
    """Without torchrun, which would end them itself."""
    port = str(free_port())
    tasks = [
        start(
            shards, tmp_path, "trainer.devices=2", "stages=[audiomae]",
            "training.audiomae={batches: 100000, save_every_batches: 5}",
            variables=slurm_task(rank) | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while not (tmp_path / "smoke/checkpoints/audiomae.ckpt").exists():
            assert time.monotonic() < deadline and tasks[0].poll() is None
            time.sleep(0.05)
        tasks[lost].kill()
        output, _ = tasks[1 - lost].communicate(timeout=60)
    finally:
        for task in tasks:
            task.kill()
            task.communicate()
    assert tasks[1 - lost].returncode == 2, output
    assert output.count("error: another rank has ended") == 1 and "Traceback" not in output


@pytest.mark.parametrize(
    ("config", "job", "said"),
    [
        (TrainerConfig(), slurm_task(0) | {"SLURM_NTASKS_PER_NODE": ""}, "--ntasks-per-node"),
        (TrainerConfig(accelerator="cpu", devices="2"), slurm_task(0, num_tasks=1), "devices=2"),
        (TrainerConfig(accelerator="tpu"), {}, "torch_xla"),
        (TrainerConfig(accelerator="abacus"), {}, "abacus"),
    ],
)
def test_devices_that_are_not_there_are_told_in_one_line(config, job, said, monkeypatch):
    for name, value in job.items():
        monkeypatch.setenv(name, value)
        if not value:
            monkeypatch.delenv(name)
    with pytest.raises(UserError, match=said) as error:
        build_trainer(config, logger=False)
    assert "\n" not in str(error.value)
