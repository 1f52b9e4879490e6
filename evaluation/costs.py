"""What an experiment cost and how it learned: seconds, memory, the machine, loss curves."""

import csv
import json
import math
import os
import platform
from pathlib import Path

import torch


def cost_of_stages(run_folder: Path, fact: str) -> dict[str, float]:
    """stage -> `fact` ("seconds", "peak_memory_gib") of each stage that tells it, oldest first."""
    paths = sorted((run_folder / "stages").glob("*.json"), key=lambda path: path.stat().st_mtime)
    facts = {path.stem: json.loads(path.read_text()).get(fact) for path in paths}
    return {stage: value for stage, value in facts.items() if value is not None}


def describe_device(device: str) -> str:
    if device.startswith("cuda"):
        return f"{device}: {torch.cuda.get_device_name(device)}"
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
    return f"{device}: {platform.machine()}, {cores}"


def loss_curves(run_folder: Path) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """stage -> column (train/<term>, val/<term>) -> (batch, loss) points, out of the stages' metrics.csv,
    oldest stage first."""
    curves = {}
    paths = (run_folder / "logs").glob("*/metrics.csv")
    for path in sorted(paths, key=lambda path: path.stat().st_mtime):
        columns: dict[str, list[tuple[float, float]]] = {}
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if math.isfinite(loss := float(row["value"])):
                    columns.setdefault(row["name"], []).append((float(row["batch"]), loss))
        if columns:
            curves[path.parent.name] = columns
    return curves
