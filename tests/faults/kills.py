"""kill -9: of trainings, of builds of shards, of generations, reports and servers. The same command has to end with
the result of the unbroken run, with nothing half-written in the way."""

import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import http_faults as http
from bench import SMOKE, STAGES, Bench, Body, check_same, content, hidden, synthesis, write_prompts
from children import Child, Fault

FILE_CALLS = ("replace", "rename", "unlink", "fsync", "link", "mkdir")  # of os, at which files change their names
MAX_KILLS = 4  # of one run
PART = re.compile(r"\..*\.part$")  # what atomic.py writes to before the name is given


def at_file_call(number: int, act: Callable[[str, tuple[Any, ...]], None], below: Path) -> None:
    """Has `act` called before the call of that number, from 0, that changes files below a folder."""
    seen = -1

    def wrapped(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            nonlocal seen
            if name == "fsync" or str(below) in str(arguments[0]):
                seen += 1
                if seen == number:
                    act(name, arguments)
            return call(*arguments, **options)

        return run

    for name in FILE_CALLS:
        setattr(os, name, wrapped(name, getattr(os, name)))


def die(*_: Any) -> None:
    os.killpg(0, signal.SIGKILL)


def killed(bench: Bench, body: Body, rng: Random, seconds: float, below: Path) -> int:
    """Kills the command again and again, by the clock or between two changes of files, then lets it end => kills."""
    kills = 0
    for _ in range(rng.randint(1, MAX_KILLS)):
        if rng.random() < 0.5:
            child = Child(body, bench.log)
            time.sleep(rng.uniform(0, seconds))
            code = child.kill().code
        else:
            number = rng.randrange(24)

            def dying(number: int = number) -> int | None:
                at_file_call(number, die, below)
                return body()

            code = Child(dying, bench.log).wait(300).code
        kills += code == -signal.SIGKILL
        if code not in (0, -signal.SIGKILL):
            raise Fault(f"ended with code {code} before it was killed: {bench.log.read_text()[-1500:]}")
    outcome = bench.run(body)
    if outcome.code != 0 or "Traceback" in outcome.said:
        raise Fault(f"does not go on, code {outcome.code}: {outcome.said[-1500:]}")
    return kills


def training(bench: Bench, rng: Random, number: int) -> int:
    stage = STAGES[number % len(STAGES)]
    wanted = content(bench.after(stage) / "smoke/model")
    runs = bench.fresh() / "runs"
    shutil.copytree(bench.before(stage), runs)
    kills = killed(bench, bench.training(runs, stage), rng, bench.seconds[stage], runs)
    check_same(content(runs / "smoke/model"), wanted, f"weights of {stage}")
    if left := hidden(runs) + [str(path) for path in (runs / "smoke/checkpoints").rglob("*.ckpt")]:
        raise Fault(f"{stage}: left behind: {', '.join(left)}")
    return kills


def data(bench: Bench, rng: Random, number: int) -> int:
    straight, output = bench.folder / "straight_data", bench.fresh() / "shards"
    if "data" not in bench.seconds:
        shutil.rmtree(straight, ignore_errors=True)
        bench.must(synthesis(straight, 24, 6), "data")
    kills = killed(bench, synthesis(output, 24, 6), rng, bench.seconds["data"], output)
    check_same(content(output), content(straight), "shards")
    if left := hidden(output):
        raise Fault(f"left behind: {', '.join(left)}")
    return kills


def generation(bench: Bench, rng: Random, number: int) -> int:
    straight, folder = bench.folder / "straight_sounds", bench.fresh()
    prompts = write_prompts(bench.folder / "prompts.txt", 3)
    if "generation" not in bench.seconds:
        bench.must(bench.generation(straight, prompts), "generation")
    kills = killed(bench, bench.generation(folder / "sounds", prompts), rng, bench.seconds["generation"], folder)
    check_same(content(folder / "sounds"), content(straight), "sounds")
    if left := [name for name in hidden(folder) if not PART.search(name)]:
        raise Fault(f"left behind: {', '.join(left)}")
    return kills


def reporting(bench: Bench, runs: Path) -> Body:
    from evaluation.__main__ import main

    words = ["report", str(bench.folder / "report.yaml"), f"runs={runs}", "--protocol", "audiomae"]
    return lambda: main([*words, "--weights", str(runs / "smoke/model"), "--test-set", f"{bench.shards}/test"])


def report(bench: Bench, rng: Random, number: int) -> int:
    text = f"base: {SMOKE}\ndata: {{train: [{bench.shards}/train], test: {bench.shards}/test}}\n"
    (bench.folder / "report.yaml").write_text(text)
    straight = bench.folder / "straight_report"
    if "report" not in bench.seconds:
        shutil.rmtree(straight, ignore_errors=True)
        shutil.copytree(bench.after(STAGES[-1]), straight)
        bench.must(reporting(bench, straight), "report")
    runs = bench.fresh() / "runs"
    shutil.copytree(bench.after(STAGES[-1]), runs)
    kills = killed(bench, reporting(bench, runs), rng, bench.seconds["report"], runs)
    sounds, wanted = (sounds_below(folder / "smoke/report") for folder in (runs, straight))
    check_same(sounds, wanted, "the report's sounds")
    if not list((runs / "smoke/report").glob("*.html")):
        raise Fault("no page")
    return kills


def sounds_below(folder: Path) -> dict[str, bytes]:
    return {name: sound for name, sound in content(folder).items() if name.endswith(".wav")}


def serving(bench: Bench, rng: Random, number: int) -> int:
    """Jobs are asked for, and the server is killed while it makes them: each ends, and no finished sound is lost."""
    folder, kills = bench.fresh() / "served", 0
    accepted: set[str] = set()
    finished: dict[str, bytes] = {}
    rounds = rng.randint(2, MAX_KILLS)
    for last in [False] * rounds + [True]:
        child, address = http.start(bench, folder)
        for _ in range(0 if last else rng.randint(1, 3)):
            body = {"prompt": "a bell", "num_steps": rng.randint(1, 4), "seed": rng.randrange(1000)}
            accepted.add(http.accepted(address, body))
        deadline = time.monotonic() + (120 if last else rng.uniform(0, 1.5))
        while time.monotonic() < deadline and (waiting := accepted - finished.keys()):
            for job in waiting:
                if (sound := http.finished(address, job)) is not None:
                    finished[job] = sound
            time.sleep(0.02)
        for job, sound in finished.items():
            if http.finished(address, job) != sound:
                raise Fault(f"the finished sound of job {job} is lost or another")
        kills += child.kill().code == -signal.SIGKILL and not last
    if missing := accepted - finished.keys():
        raise Fault(f"jobs that never end: {', '.join(sorted(missing))}")
    with suppress(OSError):
        shutil.rmtree(folder)
    return kills
