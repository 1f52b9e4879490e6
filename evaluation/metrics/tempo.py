"""Tempo of music: is the tempo found in a clip within 10 % of the true one?

The truth is the one of a clip's labels that reads "92 BPM"; a clip without it has no score. With `octaves` a third,
half, twice and three times the true tempo are right as well (accuracy 2 of Gouyon et al. 2006, IEEE TASLP 14(5), whose
tolerance is 4 %).
"""

import re
from dataclasses import dataclass

import numpy as np

from audioldm2_pl.errors import UserError

from .metric import Material, Measured, Metric

TOLERANCE = 0.1  # of the true tempo
MULTIPLES = (1 / 3, 1 / 2, 1, 2, 3)


@dataclass
class TempoSettings:
    octaves: bool = False  # multiples of the true tempo are right, too


def true_tempo(labels: list[str]) -> float | None:
    """BPM, of the label that tells it."""
    found = [match for label in labels if (match := re.fullmatch(r"(\d+(?:\.\d+)?) BPM", label))]
    return float(found[0][1]) if found else None


def tempo_is_right(found: float, true: float, octaves: bool) -> bool:
    multiples = MULTIPLES if octaves else (1,)
    return any(abs(found / (true * multiple) - 1) <= TOLERANCE for multiple in multiples)


def compute_tempo(material: Material, settings: TempoSettings) -> Measured:
    found = material.ratings["tempo_bpm"]  # (N,)
    right = np.full(len(found), np.nan)  # (N,)
    for clip, labels in enumerate(material.labels):
        if (true := true_tempo(labels)) is not None:
            right[clip] = tempo_is_right(float(found[clip]), true, settings.octaves)
    if np.isnan(right).all():
        raise UserError('no clip has a label such as "92 BPM", the truth of tempo_accuracy')
    return Measured(
        {"values": right[~np.isnan(right)]}, right, {"tempo_bpm": dict(zip(material.names, found.tolist()))}
    )


TEMPO_ACCURACY = Metric(
    name="tempo_accuracy",
    title="Tempo accuracy",
    unit="share of clips",
    higher_is_better=True,
    reads=frozenset({"tempo_bpm"}),
    needs="labels",
    range=(0.0, 1.0),
    is_share=True,
    compute=compute_tempo,
    settings=TempoSettings,
)
