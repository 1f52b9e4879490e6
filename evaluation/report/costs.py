"""What an experiment cost and how it was trained: seconds, memory, processor, energy, the machine, loss curves."""

import csv
import json
import math
import os
import platform
from pathlib import Path
from typing import Any

import torch

from audioldm2_pl.training.records import peak_memory

Curves = dict[str, dict[str, list[tuple[float, float]]]]  # stage -> train/<term> or val/<term> -> (batch, loss)

LOAD = ("cpu_cores", "gpu_utilization", "gpu_power_watts", "gpu_energy_kwh")  # of a stage's record


def cost_of_stages(run_folder: Path, fact: str) -> dict[str, float]:
    """stage -> `fact` ("seconds", "peak_memory_gib" …) of each stage that has it, oldest first."""
    paths = sorted((run_folder / "stages").glob("*.json"), key=lambda path: path.stat().st_mtime)
    facts = {path.stem: json.loads(path.read_text()).get(fact) for path in paths}
    return {stage: value for stage, value in facts.items() if value is not None}


def costs_of(run_folder: Path, report_seconds: float) -> dict[str, Any]:
    """Seconds of every stage and of the report, and in all; the largest memory of any one process.

    Stages that ran side by side count once in the total.
    """
    stages = cost_of_stages(run_folder, "seconds")
    spent = run_folder / "seconds.json"
    training = json.loads(spent.read_text())["train"] if spent.is_file() else sum(stages.values())
    memory = {**cost_of_stages(run_folder, "peak_memory_gib"), "report": peak_memory()["peak_memory_gib"]}
    return {
        "seconds": {**stages, "report": report_seconds, "total": training + report_seconds},
        "peak_memory_gib": max(memory.values()),
        "peak_memory_gib_by_stage": memory,
        "peak_gpu_memory_gib_by_stage": cost_of_stages(run_folder, "peak_gpu_memory_gib"),
        **{f"{fact}_by_stage": cost_of_stages(run_folder, fact) for fact in LOAD},
    }


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        return f"{device}: {torch.cuda.get_device_name(device)}"
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
    return f"{device}: {platform.machine()}, {cores}"


def loss_curves(run_folder: Path) -> Curves:
    """Out of the stages' metrics.csv, oldest stage first."""
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
