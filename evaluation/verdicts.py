"""What the judge heard in each system's clips, the shares of it that are right, and levels and distances beside.

Shapes: N clips, T samples, K classes.
"""

import math
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from audioldm2_pl.audio import AudioConfig, LogMel
from audioldm2_pl.errors import UserError

from .clips import LabelledClip
from .judge import Judge
from .systems import SYSTEMS, read_audio

ORDER_DEFINITION = (
    "For a clip captioned A, then B, cut in the middle: right if log p(A|first half) + log p(B|second half) "
    "> log p(B|first half) + log p(A|second half); chance is 0.5. order_both_correct asks more: A is the "
    "judge's first choice among all classes for the first half and B for the second."
)


@dataclass
class Verdict:
    """What the judge heard in one clip of one system."""

    told: list[str]  # the caption's events
    heard: list[str]  # the judge's: of the whole clip, or of its two halves
    probability: float  # of what it heard; of two halves, the less certain one's
    right: bool  # the class or, of two events, their order


def derangement(num_items: int, seed: int) -> list[int]:
    """A random permutation of range(num_items) that leaves no item in its place, by rejection."""
    if num_items < 2:
        raise ValueError("a derangement needs at least two items")
    draw = random.Random(seed)
    order = list(range(num_items))
    while any(i == item for i, item in enumerate(order)):
        draw.shuffle(order)
    return order


@torch.no_grad()
def log_probabilities(judge: Judge, waveform: Tensor) -> Tensor:
    """waveform (N, T) => (N, K)"""
    return torch.cat([judge.logits(part).log_softmax(dim=1) for part in waveform.split(64)])


def half_log_probabilities(judge: Judge, waveform: Tensor) -> Tensor:
    """waveform (N, T) => (N, 2, K): the first and the second half of each clip"""
    middle = waveform.shape[1] // 2
    halves = [waveform[:, :middle], waveform[:, middle:]]
    return torch.stack([log_probabilities(judge, half) for half in halves], dim=1)


def order_is_right(halves: Tensor, first: int, second: int) -> bool:
    """halves (2, K), log-probabilities of one clip: is `first, then second` likelier than the reverse?"""
    return bool(halves[0, first] + halves[1, second] > halves[0, second] + halves[1, first])


def judge_clips(
    judge: Judge, clips: list[LabelledClip], folder: Path, audio: AudioConfig
) -> dict[str, dict[str, Verdict]]:
    """The audio in <folder>/<system>/ => system -> key -> verdict, for the clips that a system has."""
    classes = judge.config.classes
    if unknown := {name for clip in clips for name in clip.names} - set(classes):
        raise UserError(f"The judge's split lacks classes of the test split: {', '.join(sorted(unknown))}.")
    verdicts: dict[str, dict[str, Verdict]] = {system: {} for system in SYSTEMS}
    for system in SYSTEMS:
        for num_events, classify in ((1, log_probabilities), (2, half_log_probabilities)):
            group = [clip for clip in clips if len(clip.events) == num_events]
            if not group:
                continue
            log_p = classify(judge, read_audio(folder, system, group, audio))
            log_p = log_p.reshape(len(group), num_events, len(classes))  # (N, 1 or 2, K)
            for clip, rows in zip(group, log_p):
                best = rows.max(dim=1)
                heard = [classes[k] for k in best.indices.tolist()]
                told = [classes.index(name) for name in clip.names]
                right = heard == clip.names if num_events == 1 else order_is_right(rows, *told)
                probability = best.values.min().exp().item()
                verdicts[system][clip.key] = Verdict(clip.names, heard, probability, right)
    return verdicts


def share(flags: list[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None


def score_verdicts(verdicts: dict[str, dict[str, Verdict]], classes: list[str], seed: int) -> dict:
    """Accuracies of all systems, by class too, and confusions [told][heard]."""
    single = {s: [v for v in found.values() if len(v.told) == 1] for s, found in verdicts.items()}
    pairs = {s: [v for v in found.values() if len(v.told) == 2] for s, found in verdicts.items()}
    order = derangement(len(classes), seed)
    shuffled = {name: classes[order[i]] for i, name in enumerate(classes)}
    class_accuracy = {s: share([v.right for v in found]) for s, found in single.items()}
    class_accuracy["shuffled_captions"] = share([v.heard == [shuffled[v.told[0]]] for v in single["text_to_audio"]])
    return {
        "class_accuracy": class_accuracy,
        "order_accuracy": {s: share([v.right for v in pairs[s]]) for s in ("real", "text_to_audio")},
        "order_accuracy_definition": ORDER_DEFINITION,
        "order_both_correct": {s: share([v.heard == v.told for v in pairs[s]]) for s in SYSTEMS},
        "order_accuracy_of_all_systems": {s: share([v.right for v in pairs[s]]) for s in SYSTEMS},
        "class_accuracy_by_class": {
            s: {name: share([v.right for v in found if v.told == [name]]) for name in classes}
            for s, found in single.items()
        },
        "confusion": {
            s: [[sum(v.told == [told] and v.heard == [heard] for v in found) for heard in classes] for told in classes]
            for s, found in single.items()
        },
        "classes": classes,
        "num_clips": {"class_accuracy": len(single["real"]), "order_accuracy": len(pairs["real"])},
    }


def score_sound(clips: list[LabelledClip], folder: Path, audio: AudioConfig) -> dict:
    """Levels of each system, and how far the reconstructions' log-mels are from the real ones."""
    real = read_audio(folder, "real", clips, audio)
    reconstruction = read_audio(folder, "reconstruction", clips, audio)
    return {
        "levels": {s: levels(read_audio(folder, s, clips, audio)) for s in SYSTEMS},
        "log_mel_distance_db": {"reconstruction": log_mel_distance(reconstruction, real, audio)},
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
