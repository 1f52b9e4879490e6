"""What breaks under a training: shards that go or are cut, a rank that is killed, a second call of the same run."""

import os
import shutil
import signal
import socket
import time
from pathlib import Path
from random import Random

from bench import SMOKE, Bench, Body, check_same, content
from children import Child, Fault, check_plain

from audioldm2_pl.cli import main as audioldm2

LONG = "training.audiomae={batches: 400, batch_size: 2, save_every_batches: 10}"


def wait_for(path: Path, child: Child, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        if child.poll() or time.monotonic() > deadline:
            raise Fault(f"{path.name} does not come: {child.log.read_text()[-1500:]}")
        time.sleep(0.005)


def words(shards: Path, runs: Path, *overrides: str) -> list[str]:
    return [
        "train", str(SMOKE), "--stage", "audiomae", f"data.train=[{shards}]", "data.test=null", f"runs={runs}",
        "trainer.progress_bar=false", "trainer.num_threads=1", *overrides,
    ]  # fmt: skip


def training(shards: Path, runs: Path, *overrides: str) -> Body:
    given = words(shards, runs, *overrides)
    return lambda: audioldm2(given)


def lost_shards(bench: Bench, rng: Random, number: int) -> int:
    """A shard is deleted, cut, overwritten or made a folder while a training reads it; then it comes back."""
    whole, folder = bench.shards / "train", bench.fresh()
    shards = folder / "shards"
    shutil.copytree(whole, shards)
    body = training(shards, folder / "runs", LONG)
    child = Child(body, bench.log)
    wait_for(folder / "runs/smoke/checkpoints/audiomae.ckpt", child)
    kind = ("deleted", "cut", "overwritten", "all deleted", "the index deleted", "a folder")[number % 6]
    tars = sorted(shards.glob("*.tar"))
    tar = rng.choice(tars)
    if kind == "all deleted":
        shutil.rmtree(shards)
    elif kind == "the index deleted":
        (shards / "index.json").unlink()
    elif kind == "cut":
        os.truncate(tar, rng.randrange(tar.stat().st_size))
    elif kind == "overwritten":
        tar.write_bytes(rng.randbytes(tar.stat().st_size))
    else:
        tar.unlink()
        if kind == "a folder":
            tar.mkdir()
    try:
        check_plain(child.wait(120))
        shutil.rmtree(shards, ignore_errors=True)
        shutil.copytree(whole, shards)
        check_plain(bench.run(body), (0,))
    except Fault as fault:
        raise Fault(f"{kind}: {fault}") from None
    return 1


def rank(number: int, port: int, body: Body) -> Body:
    """The body as one of two ranks of torchrun."""
    variables = {
        "RANK": str(number), "LOCAL_RANK": str(number), "GROUP_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "faults",
    }  # fmt: skip

    def run() -> int | None:
        os.environ.update(variables)
        return body()

    return run


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def lost_rank(bench: Bench, rng: Random, number: int) -> int:
    """One of two ranks is killed; the other ends with one line, and the same command goes on."""
    folder, lost = bench.fresh(), number % 2
    body = training(bench.shards / "train", folder / "runs", LONG, "trainer.devices=2")
    port = free_port()
    children = [Child(rank(n, port, body), bench.folder / f"rank_{n}") for n in (0, 1)]
    try:
        wait_for(folder / "runs/smoke/checkpoints/audiomae.ckpt", children[0])
        time.sleep(rng.uniform(0, 0.5))
        if children[lost].kill().code != -signal.SIGKILL:
            return 0  # it had ended
        check_plain(children[1 - lost].wait(60), (2,))
    finally:
        for child in children:
            child.kill()
    alone = training(bench.shards / "train", folder / "runs", LONG)
    check_plain(bench.run(alone), (0,))
    return 1


def two_runs(bench: Bench, rng: Random, number: int) -> int:
    """A second call of a run that trains: it is refused in one line, and the first one does not notice."""
    folder, straight = bench.fresh(), bench.folder / "straight_two"
    setting = "training.audiomae={batches: 60, batch_size: 2, save_every_batches: 10}"
    if not (straight / "smoke/stages/audiomae.json").is_file():
        bench.must(training(bench.shards / "train", straight, setting))
    body = training(bench.shards / "train", folder / "runs", setting)
    first = Child(body, bench.folder / "first")
    wait_for(folder / "runs/smoke/checkpoints/audiomae.ckpt", first)
    time.sleep(rng.uniform(0, 0.1))
    second = bench.run(body, 60)
    check_plain(second, (0, 2))
    if second.code == 2 and "trains this run" not in second.said:
        raise Fault(f"refused for another reason: {second.said[-500:]}")
    check_plain(first.wait(120), (0,))
    check_same(content(folder / "runs/smoke/model"), content(straight / "smoke/model"), "weights")
    return int(second.code == 2)  # else the first had ended before
