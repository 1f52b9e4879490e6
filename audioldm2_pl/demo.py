"""`audioldm2 demo`: synthetic sounds, all stages, a report; each step says what comes and how long it took.

The same command goes on where it was stopped: shards, stages and clips that are there stay.
"""

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from audioldm2_pl.config import load_experiment
from audioldm2_pl.errors import Interrupted, UserError
from audioldm2_pl.fields import bounded, check_fields
from audioldm2_pl.processes import STOPPED, run_command

SHARDS = "shards/synthetic"


@dataclass
class DemoOptions:
    experiment: str = "demo"  # that reads shards/synthetic
    clips: int = bounded(4800, ge=12, le=1_000_000)  # of training; tests and judge follow from it
    overrides: list[str] = field(default_factory=list)  # key=value, changes to the experiment

    def __post_init__(self) -> None:
        check_fields(self)


def steps(options: DemoOptions) -> list[tuple[str, list[str]]]:
    """(what it does, its command) of each step."""
    numbers = {"clips": options.clips, "test-clips": options.clips // 20, "judge-clips": options.clips // 4}
    sizes = [word for name, number in numbers.items() for word in (f"--{name}", str(max(12, number)))]
    training = [options.experiment, *options.overrides]
    return [
        (
            f"synthesise {options.clips} clips of twelve sounds",
            ["audioldm2-data", "synthetic", SHARDS, *sizes, "--captions", "4"],
        ),
        ("train all stages", ["audioldm2", "train", *training]),
        ("generate held-out prompts, score them, write a page", ["audioldm2-eval", "report", *training]),
    ]


def run_demo(options: DemoOptions, runner: Callable[[Sequence[str]], int] = run_command) -> None:
    """UserError where a step fails, Interrupted where a signal ends it."""
    experiment = load_experiment(options.experiment, options.overrides)
    todo, started = steps(options), time.perf_counter()
    for number, (title, command) in enumerate(todo, 1):
        print(f"\n[{number} of {len(todo)}] {title}\n  {shlex.join(command)}", flush=True)
        begun = time.perf_counter()
        code = runner(command)
        if code in STOPPED:
            raise Interrupted(STOPPED[code], "the same command goes on")
        if code:
            raise UserError(
                f"step {number}, {title}: failed with code {code}; put that right, the same command goes on"
            )
        print(f"[{number} of {len(todo)}] took {clock(time.perf_counter() - begun)}", flush=True)
    print(f"\nall of it took {clock(time.perf_counter() - started)}")
    print(f"listen:   {experiment.run_folder / 'report' / 'report.html'}")
    print(f'generate: audioldm2 generate {experiment.model_folder} "a bell rings softly" --steps 50')


def clock(seconds: float) -> str:
    """Seconds => 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
