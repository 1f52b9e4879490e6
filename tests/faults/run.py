"""Faults of every kind at once: kills, disks, hostile inputs, lost shards and ranks; docs/results/faults.json.

    python tests/faults/run.py --scale 0.05

A kind that the JSON has with this seed and scale is not run again without --again. A case that failed is repeated alone
by its name: `--case settings:17`. `make faults`.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
sys.path.insert(0, str(Path(__file__).parents[2]))  # the tools in data/ and evaluation/ are no installed modules

import broken_trainings
import disk
import hostile
import hostile_shards
import http_faults
import kills
from bench import ROOT, Bench, import_everything
from children import Fault

from audioldm2_pl.atomic import write_text

MAX_TOLD, MAX_LETTERS = 5, 600  # failures of a kind that the JSON tells, and letters of each
CHUNK = 20  # faults between two writes of the JSON


class Kind(NamedTuple):
    """So many faults of one kind, and what is checked after each."""

    count: int
    case: Callable[[Bench, Random, int], int]  # => faults that it made; raises Fault
    checked: str


SAME = "the same command ends as the unbroken run does, byte for byte; nothing half-written is left"
PLAIN = "code 0 or 2 with one line, no traceback, within 60 s and 4 GiB"
KINDS = {
    "training_kills": Kind(120, kills.training, f"{SAME}; the eight stages by turns"),
    "data_kills": Kind(30, kills.data, SAME),
    "generation_kills": Kind(20, kills.generation, SAME),
    "report_kills": Kind(10, kills.report, "the same command ends with the sounds of the unbroken run and a page"),
    "serve_kills": Kind(20, kills.serving, "no finished sound is lost, every job that was taken ends"),
    "disk": Kind(50, disk.disk, f"{PLAIN}; nothing earlier is lost; the same command goes on once the disk is well"),
    "shards": Kind(250, hostile_shards.shards, f"{PLAIN}; nothing is run or written outside"),
    "checkpoints": Kind(150, hostile.checkpoints, f"{PLAIN}; nothing is unpickled or run"),
    "settings": Kind(200, hostile.settings, PLAIN),
    "prompts": Kind(100, hostile.prompts, f"{PLAIN}; nothing is written outside of --output"),
    "audio": Kind(150, hostile.audio, PLAIN),
    "http": Kind(150, http_faults.http, "a job or 4xx with a reason, within 60 s; the server lives, under 4 GiB"),
    "lost_shards": Kind(12, broken_trainings.lost_shards, f"{PLAIN}; the same command goes on once they are back"),
    "lost_ranks": Kind(6, broken_trainings.lost_rank, "the other rank ends with one line; the run goes on"),
    "two_runs": Kind(6, broken_trainings.two_runs, "the second is refused in one line, the first ends as if alone"),
}


def run_case(name: str, bench: Bench, seed: int, number: int) -> int:
    return KINDS[name].case(bench, Random(f"{seed} {name} {number}"), number)


def run_kind(name: str, bench: Bench, seed: int, figures: dict[str, Any], deadline: float) -> None:
    """Goes on with the cases of one kind for a while, and adds to its figures."""
    started, until = time.monotonic(), min(figures["wanted"], figures["done"] + CHUNK)
    while figures["done"] < until and time.monotonic() < deadline:
        number = figures["cases"]
        figures["cases"] += 1
        try:
            figures["done"] += run_case(name, bench, seed, number)
        except Fault as fault:
            figures["done"] += 1
            figures["failures"] += 1
            figures["told"] = [*figures["told"], f"{name}:{number}: {fault}"[:MAX_LETTERS]][:MAX_TOLD]
            print(f"FAILED {name}:{number}: {fault}\n", flush=True)
    figures["seconds"] = round(figures["seconds"] + time.monotonic() - started, 1)


def page(result: dict[str, Any]) -> str:
    columns = ("done", "wanted", "checked", "failures", "seconds")
    rows = [
        f"| {name} | {' | '.join(str(kind[column]) for column in columns)} |" for name, kind in result["kinds"].items()
    ]
    done, failures = (sum(kind[key] for kind in result["kinds"].values()) for key in ("done", "failures"))
    return "\n".join(
        (
            "# Faults", "",
            f"`{result['command']}`, seed {result['seed']}, on {result['machine']}, Python {result['python']}: "
            f"{done} faults, {failures} failures. One that failed is repeated by its name in faults.json: "
            "`--case KIND:NUMBER`.", "",
            "| kind | faults | wanted | checked after each | failures | seconds |", "|---|--:|--:|---|--:|--:|", *rows,
        )
    ) + "\n"  # fmt: skip


def read_result(options: argparse.Namespace) -> dict[str, Any]:
    """What the JSON has of this seed and scale, the kinds in their order."""
    found = json.loads(options.output.read_text()) if options.output.is_file() else {}
    if (found.get("seed"), found.get("scale")) != (options.seed, options.scale):
        found = {}
    return {
        "command": f"python tests/faults/run.py --scale {options.scale:g} --seed {options.seed}",
        "seed": options.seed,
        "scale": options.scale,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "kinds": {name: kind for name in KINDS if (kind := found.get("kinds", {}).get(name))},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the faults (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(KINDS), metavar="KIND,KIND")
    parser.add_argument("--case", metavar="KIND:NUMBER", help="repeat one case alone")
    parser.add_argument("--again", action="store_true", help="run kinds again that are finished")
    parser.add_argument("--minutes", type=float, default=600.0, help="of each kind (%(default)s)")
    parser.add_argument("--work", type=Path, help="folder to work in, kept (a temporary one)")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/results/faults.json", help="and .md beside it")
    options = parser.parse_args()
    if unknown := set(options.only) - KINDS.keys():
        parser.error(f"no such kind: {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    import_everything()
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench((options.work or Path(temporary)).resolve())
        if options.case:
            name, _, number = options.case.partition(":")
            print(f"{run_case(name, bench, options.seed, int(number))} faults, as they should be")
            return 0
        found = [run_until(name, bench, options) for name in options.only]
    return 1 if any(kind["failures"] for kind in found) else 0


def run_until(name: str, bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """All faults of one kind, or those that the time is enough for => its figures, which the files have, too."""
    kind, deadline = KINDS[name], time.monotonic() + 60 * options.minutes
    wanted = max(1, round(kind.count * options.scale))
    new = {"done": 0, "wanted": wanted, "cases": 0, "checked": kind.checked, "failures": 0, "told": [], "seconds": 0.0}
    figures = read_result(options)["kinds"].get(name, new)
    if options.again:
        figures = new
    while figures["done"] < wanted and time.monotonic() < deadline:
        run_kind(name, bench, options.seed, figures, deadline)
        result = read_result(options)  # another call may have added other kinds
        result["kinds"][name] = figures
        write_text(options.output, json.dumps(result, indent=2) + "\n")
        write_text(options.output.with_suffix(".md"), page(result))
        print(f"{name}: {figures['done']} of {wanted}, {figures['failures']} failures", flush=True)
    http_faults.close()
    return figures


if __name__ == "__main__":
    sys.exit(main())
