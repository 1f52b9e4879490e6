"""What a run was made with, for whoever looks at it later.

runs/<name>/experiment.yaml    the experiment in full, as of the latest call; `train` takes it as it is
runs/<name>/calls.jsonl        a line a call of `train`: time, command, versions, commit, machine, data's digests
"""

import json
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from audioldm2_pl.atomic import write_text
from audioldm2_pl.config import ExperimentConfig, to_yaml
from audioldm2_pl.errors import UserError
from audioldm2_pl.training.records import corpora

PACKAGES = ("audioldm2-pl", "torch", "lightning", "diffusers", "transformers", "timm", "numpy", "soundfile", "soxr")


def note_call(experiment: ExperimentConfig, stages: list[str]) -> None:
    """Writes both files. Raises UserError where that cannot be done."""
    write_text(experiment.run_folder / "experiment.yaml", to_yaml(experiment))
    path = experiment.run_folder / "calls.jsonl"
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**environment_of(experiment), "stages": stages}) + "\n")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); free some space, or choose another runs="
        ) from None


def environment_of(experiment: ExperimentConfig) -> dict[str, Any]:
    """What is not in the experiment and may decide its result."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": {"python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}},
        "git": git_state(Path(__file__).parent),
        "machine": {
            "host": platform.node(),
            "cpus": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
            "ranks": distributed.get_world_size() if distributed.is_initialized() else 1,
        },
        "data": dict(zip(experiment.data.train, corpora(experiment.data))),
    }


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit of a clone, and whether tracked files have changed since; None of an installed package."""
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=30
            ).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": bool(changes)}
