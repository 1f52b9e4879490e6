"""A stranger's way: a folder of 20 clips to a sound of one's own, by the commands of docs/own_data.md and nothing else.

    python tests/benchmarks/stranger.py runs/demo/model

Runs the lines of the section "From your folder to a sound" in an empty folder with 20 tones in `recordings/`, and tells
the seconds of each to docs/results/stranger.json: `make stranger`.
"""

import argparse
import csv
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import soundfile

ROOT = Path(__file__).parents[2]
SECTION = "From your folder to a sound"
NUM_CLIPS, SECONDS, RATE = 20, 2.5, 22_050
MAX_COMMANDS, MAX_SECONDS = 8, 15 * 60


def commands_of(page: str) -> list[str]:
    """The shell lines of the section's first block, continued lines joined."""
    section = page.split(f"\n## {SECTION}\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    return [line for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines() if line.strip()]


def write_recordings(folder: Path, num_clips: int = NUM_CLIPS) -> None:
    """Struck tones that fade, and captions of them in metadata.csv."""
    rng = np.random.default_rng(0)
    seconds = np.arange(round(SECONDS * RATE)) / RATE
    folder.mkdir()
    with (folder / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("file_name", "text"))
        for number in range(num_clips):
            hz, fade = rng.uniform(300, 2_000), rng.uniform(1, 4)
            tones = sum(np.sin(2 * np.pi * hz * ratio * seconds) / ratio for ratio in (1, 2.76, 5.4))
            soundfile.write(folder / f"bell_{number:02d}.wav", 0.25 * tones * np.exp(-fade * seconds), RATE)
            table.writerow((f"bell_{number:02d}.wav", f"a {'high' if hz > 1_000 else 'low'} pitched bell rings"))


def way(model: Path) -> dict[str, Any]:
    """The figures: seconds of each command and in all, and what the last one tells."""
    steps, said = [], ""
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_recordings(folder / "recordings")
        (folder / "runs/demo").mkdir(parents=True)
        (folder / "runs/demo/model").symlink_to(model.resolve())
        (folder / "experiments").symlink_to(ROOT / "experiments")
        (folder / ".venv").symlink_to(Path(sys.prefix))
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        for line in commands_of((ROOT / "docs/own_data.md").read_text(encoding="utf-8")):
            started = time.monotonic()
            done = subprocess.run(line, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
            steps.append({"command": line, "seconds": round(time.monotonic() - started, 1), "code": done.returncode})
            print(f"{steps[-1]['seconds']:7.1f} s  {line}", flush=True)
            said = done.stdout
            if done.returncode:
                raise SystemExit(f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        pages = [str(path.relative_to(folder)) for path in folder.glob("runs/mine/report/*.html")]
        sounds = [str(path.relative_to(folder)) for path in folder.glob("output/*.wav")]
    return {
        "commands": len(steps),
        "seconds": round(sum(step["seconds"] for step in steps), 1),
        "steps": steps,
        "pages": pages,
        "sounds": sounds,
        "provenance_names_the_adapter": "adapter" in said,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the demo's model folder")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/results/stranger.json")
    options = parser.parse_args()
    result = way(options.model)
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    threads = {"threads": os.environ.get("OMP_NUM_THREADS", "all")}
    options.output.write_text(json.dumps({**result, **machine, **threads}, indent=2) + "\n")
    held = result["commands"] <= MAX_COMMANDS and result["seconds"] <= MAX_SECONDS
    held = held and bool(result["pages"] and result["sounds"]) and result["provenance_names_the_adapter"]
    print(f"{result['commands']} commands, {result['seconds'] / 60:.1f} minutes: {'held' if held else 'missed'}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
