"""The report of one experiment: audio for held-out prompts, the judge's scores, what each stage cost."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from audioldm2_pl.cli import pick_device
from audioldm2_pl.config import ExperimentConfig, to_plain
from audioldm2_pl.errors import UserError
from audioldm2_pl.training.records import peak_memory

from .clips import digest_of_index
from .costs import cost_of_stages, describe_device, loss_curves
from .judge import JudgeConfig, load_or_train_judge
from .page import render_page
from .systems import SYSTEMS, AudioFolder, digest_of_folder, select_clips, systems_of
from .verdicts import judge_clips, score_sound, score_verdicts

# What a sound demo reaches. `real` says whether the judge is to be believed at all, `shuffled_captions`
# whether generations follow their captions at all: it is the floor, near chance. Time and memory: of two CPU cores.
TARGETS = {
    "class_accuracy.real": ("at least", 0.95),
    "class_accuracy.reconstruction": ("at least", 0.90),
    "class_accuracy.loa_to_audio": ("at least", 0.75),
    "class_accuracy.text_to_audio": ("at least", 0.70),
    "class_accuracy.shuffled_captions": ("at most", 0.20),
    "order_accuracy.real": ("at least", 0.95),
    "order_accuracy.text_to_audio": ("at least", 0.70),
    "seconds.total": ("at most", 1200.0),
    "peak_memory_gib": ("at most", 6.0),
}


@dataclass
class ReportOptions:
    clips_per_class: int = 10  # one-event test clips of each class
    order_clips: int = 60  # two-event test clips
    batch_size: int = 10  # clips generated at a time
    device: str = "auto"  # of the system under test; the judge stays on the CPU
    fresh: bool = False  # forget the judge and the audio of earlier reports


def write_report(
    experiment: ExperimentConfig,
    options: ReportOptions,
    load_model: Callable[[Path, str], Any] | None = None,
    judge_config: JudgeConfig | None = None,
) -> dict:
    """Writes runs/<name>/report/report.json and report.html and prints the score table. => the scores

    `load_model` (model folder, device) stands in for AudioLDM2.from_pretrained, `judge_config` for the
    judge's defaults. Raises UserError where the model or a split is missing.
    """
    begin = time.perf_counter()
    model_folder = model_folder_of(experiment)
    test, judge_split = split_of(experiment, "test"), split_of(experiment, "judge")
    audio, folder = experiment.audio, experiment.run_folder / "report"
    if options.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    clips = select_clips(test, audio, options.clips_per_class, options.order_clips)
    judge_config = judge_config or JudgeConfig(audio, seed=experiment.seed)
    judge, judge_seconds = load_or_train_judge(judge_split, folder, judge_config)
    device = pick_device(options.device)
    sound = AudioFolder(folder / "audio", origin_of(experiment, test))
    kept_seconds = judge_seconds + sound.seconds
    if any(sound.missing(SYSTEMS, clips).values()):
        model = (load_model or load_pipeline)(model_folder, device)
        model.set_sampler(experiment.diffusion.sampler)
        sound.fill(systems_of(model, sound.origin), clips, audio.sample_rate, options.batch_size)
    verdicts = judge_clips(judge, clips, sound.folder, audio)
    results = {
        **score_verdicts(verdicts, judge.config.classes, experiment.seed),
        **score_sound(clips, sound.folder, audio),
        **costs(experiment, kept_seconds + time.perf_counter() - begin),
        "seed": experiment.seed,
        "device": describe_device(device),
        "torch": torch.__version__,
        "sampling": sampling_of(experiment),
    }
    results["targets"] = compare_with_targets(results)
    results["missed_targets"] = [k for k, t in results["targets"].items() if t["reached"] is False]
    write_text(folder / "report.json", json.dumps(results, indent=2) + "\n")
    curves, settings = loss_curves(experiment.run_folder), to_plain(experiment)
    page = render_page(settings, results, clips, verdicts, sound.folder, audio, curves)
    write_text(folder / "report.html", page)
    print(f"\n{score_table(results)}\n\n{folder / 'report.html'}\n{folder / 'report.json'}")
    return results


def sampling_of(experiment: ExperimentConfig) -> dict[str, Any]:
    """The sampler's name, and what AudioLDM2.generate takes."""
    return to_plain(experiment.diffusion.sampling)


def origin_of(experiment: ExperimentConfig, test: Path) -> dict[str, Any]:
    """All that decides the audio: with the same origin, an earlier report's audio is kept."""
    return {
        "model": digest_of_folder(model_folder_of(experiment)),
        "test": digest_of_index(test),
        "audio": to_plain(experiment.audio),
        "sampling": sampling_of(experiment),
        "seed": experiment.seed,
    }


def write_text(path: Path, text: str) -> None:
    """In one step: a reader never meets half a report."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def split_of(experiment: ExperimentConfig, name: str) -> Path:
    folder = getattr(experiment.data, name)
    if not folder:
        raise UserError(f"data.{name}: not set; the report needs the folder of that split's shards")
    return Path(folder)


def model_folder_of(experiment: ExperimentConfig) -> Path:
    folder = experiment.run_folder / "model"
    if not folder.is_dir():
        raise UserError(f"{folder}: no model here; train the experiment first (audioldm2 train)")
    return folder


def load_pipeline(model_folder: Path, device: str) -> Any:
    from audioldm2_pl.pipeline import AudioLDM2

    return AudioLDM2.from_pretrained(model_folder, device=device)


def costs(experiment: ExperimentConfig, report_seconds: float) -> dict:
    """Seconds of every stage and of the report, and in all; the largest memory of any one process.

    Stages that ran side by side count once in the total.
    """
    stages = cost_of_stages(experiment.run_folder, "seconds")
    spent = experiment.run_folder / "seconds.json"
    training = json.loads(spent.read_text())["train"] if spent.is_file() else sum(stages.values())
    seconds = {**stages, "report": report_seconds, "total": training + report_seconds}
    memory = cost_of_stages(experiment.run_folder, "peak_memory_gib")
    memory["report"] = peak_memory()["peak_memory_gib"]
    gpu_memory = cost_of_stages(experiment.run_folder, "peak_gpu_memory_gib")
    return {
        "seconds": seconds,
        "peak_memory_gib": max(memory.values()),
        "peak_memory_gib_by_stage": memory,
        "peak_gpu_memory_gib_by_stage": gpu_memory,
    }


def compare_with_targets(results: dict) -> dict[str, dict]:
    """score -> what is asked, what was measured, whether it was reached (None: not measured)"""
    compared = {}
    for key, (bound, target) in TARGETS.items():
        value: Any = results
        for name in key.split("."):
            value = value[name]
        reached = None
        if value is not None:
            reached = value >= target if bound == "at least" else value <= target
        compared[key] = {"bound": bound, "target": target, "value": value, "reached": reached}
    return compared


def score_table(results: dict) -> str:
    lines = [f"{'score':34} {'value':>7}  target"]
    for key, target in results["targets"].items():
        digits = 0 if key.startswith("seconds") else 2 if key.endswith("gib") else 3
        value = "-" if target["value"] is None else f"{target['value']:.{digits}f}"
        verdict = {True: "reached", False: "MISSED", None: "not measured"}[target["reached"]]
        lines.append(f"{key:34} {value:>7}  {target['bound']} {target['target']:g}: {verdict}")
    return "\n".join(lines)
