"""What the sound classifier found in each system's clips, levels and distances beside it, and the targets of the demo.

Shapes: N clips, T samples, K classes.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from audioldm2_pl.audio import AudioConfig, LogMel

from ..metrics.accuracy import CLASS_ACCURACY, ORDER_ACCURACY, ORDER_DEFINITION
from ..score import Result
from .audio import AudioFolder
from .generate import SYSTEMS

# What a sound demo reaches. `real` says whether the classifier is to be believed at all, `shuffled_captions`
# whether generations follow their captions at all: it is the floor, near chance. Clipped samples: bursts that no
# classifier hears. Time and memory: of two CPU cores.
TARGETS = {
    "class_accuracy.real": ("at least", 0.95),
    "class_accuracy.reconstruction": ("at least", 0.90),
    "class_accuracy.loa_to_audio": ("at least", 0.75),
    "class_accuracy.text_to_audio": ("at least", 0.70),
    "class_accuracy.shuffled_captions": ("at most", 0.20),
    "order_accuracy.real": ("at least", 0.95),
    "order_accuracy.text_to_audio": ("at least", 0.70),
    "levels.reconstruction.share_of_clipped_samples": ("at most", 0.001),
    "levels.text_to_audio.share_of_clipped_samples": ("at most", 0.001),
    "seconds.total": ("at most", 1200.0),
    "peak_memory_gib": ("at most", 6.0),
}


@dataclass
class Prediction:
    """What the classifier found in one clip of one system."""

    labels: list[str]  # the caption's events
    classes: list[str]  # predicted, of the whole clip or of its two halves
    probability: float  # of the predicted class; of two halves, the less certain one's
    right: bool  # the class or, of two events, their order


Predictions = dict[str, dict[str, Prediction]]  # system -> clip -> prediction


def predictions_of(results: dict[str, Result], labels: dict[str, list[str]]) -> Predictions:
    """Out of the systems' results under a protocol with labels."""
    found: Predictions = {system: {} for system in results}
    for system, result in results.items():
        for score in result["scores"].values():
            for clip, prediction in score.get("predictions", {}).items():
                right = bool(score["per_clip"][clip])
                found[system][clip] = Prediction(labels[clip], **prediction, right=right)
    return found


def derangement(num_items: int, seed: int) -> list[int]:
    """A random permutation of range(num_items) that moves every item, by rejection."""
    if num_items < 2:
        raise ValueError("a derangement needs at least two items")
    draw = random.Random(seed)
    order = list(range(num_items))
    while any(i == item for i, item in enumerate(order)):
        draw.shuffle(order)
    return order


def share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None


def summarise(predictions: Predictions, classes: list[str], seed: int) -> dict[str, Any]:
    """Accuracies of all systems, by class too, and confusions [label][predicted]."""
    single = {s: [p for p in found.values() if len(p.labels) == 1] for s, found in predictions.items()}
    pairs = {s: [p for p in found.values() if len(p.labels) == 2] for s, found in predictions.items()}
    order = derangement(len(classes), seed)
    shuffled = {name: classes[order[i]] for i, name in enumerate(classes)}
    class_accuracy = {s: share([p.right for p in found]) for s, found in single.items()}
    class_accuracy["shuffled_captions"] = share([p.classes == [shuffled[p.labels[0]]] for p in single["text_to_audio"]])
    order_accuracy = {s: share([p.right for p in found]) for s, found in pairs.items()}
    return {
        "class_accuracy": class_accuracy,
        "order_accuracy": {s: order_accuracy[s] for s in ("real", "text_to_audio")},
        "order_accuracy_definition": ORDER_DEFINITION,
        "order_both_correct": {s: share([p.classes == p.labels for p in found]) for s, found in pairs.items()},
        "order_accuracy_of_all_systems": order_accuracy,
        "class_accuracy_by_class": {
            s: {name: share([p.right for p in found if p.labels == [name]]) for name in classes}
            for s, found in single.items()
        },
        "confusion": {
            s: [[sum((p.labels, p.classes) == ([a], [b]) for p in found) for b in classes] for a in classes]
            for s, found in single.items()
        },
        "classes": classes,
        "num_clips": {CLASS_ACCURACY.name: len(single["real"]), ORDER_ACCURACY.name: len(pairs["real"])},
    }


def measure_sound(sound: AudioFolder, keys: Sequence[str], audio: AudioConfig) -> dict[str, Any]:
    """Levels of each system, and how far the reconstructions' log-mels are from the real ones."""
    waveforms = {system: sound.read(system, keys, audio) for system in SYSTEMS}  # (N, T) each
    distance = log_mel_distance(waveforms["reconstruction"], waveforms["real"], audio)
    return {
        "levels": {system: levels(waveform) for system, waveform in waveforms.items()},
        "log_mel_distance_db": {"reconstruction": distance},
    }


def levels(waveform: Tensor) -> dict[str, float]:
    """Of clips (N, T). A clip counts as silent where its RMS is under -60 dB of full scale."""
    rms = waveform.square().mean(dim=1).sqrt()  # (N,)
    magnitude = waveform.abs()
    return {
        "rms_db": (20 * rms.clamp(min=1e-6).log10()).mean().item(),
        "peak": magnitude.max().item(),
        "share_of_clipped_samples": (magnitude >= 0.999).float().mean().item(),
        "share_of_silent_clips": (rms < 1e-3).float().mean().item(),
    }


@torch.no_grad()
def log_mel_distance(waveform: Tensor, reference: Tensor, audio: AudioConfig) -> float:
    """Mean absolute difference between the log-mels of (N, T) and (N, T), in dB."""
    log_mel = LogMel(audio)
    total = 0.0
    for ours, theirs in zip(waveform.split(64), reference.split(64)):
        total += (log_mel(ours) - log_mel(theirs)).abs().mean(dim=(1, 2, 3)).sum().item()
    return 20 / math.log(10) * total / len(waveform)


def compare_with_targets(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
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


def target_table(targets: dict[str, dict[str, Any]]) -> str:
    """The targets for a terminal."""
    width = max(map(len, targets))
    lines = [f"{'score':{width}} {'value':>7}  target"]
    for key, target in targets.items():
        digits = 0 if key.startswith("seconds") else 2 if key.endswith("gib") else 3
        value = "-" if target["value"] is None else f"{target['value']:.{digits}f}"
        mark = {True: "reached", False: "MISSED", None: "not measured"}[target["reached"]]
        lines.append(f"{key:{width}} {value:>7}  {target['bound']} {target['target']:g}: {mark}")
    return "\n".join(lines)
