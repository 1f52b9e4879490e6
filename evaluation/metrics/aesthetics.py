"""Audiobox Aesthetics: what listeners would say of speech, music or sound, on four axes, without a reference.

Tjandra et al. 2025, arXiv:2502.05139: content enjoyment (CE), content usefulness (CU), production complexity (PC),
production quality (PQ). More complex is not always better: PC describes a set, and its arrow only says where it lies.
"""

from dataclasses import dataclass
from typing import Literal

from .metric import Metric, compute_rating


@dataclass
class AestheticsSettings:
    axis: Literal["CE", "CU", "PC", "PQ"] = "PQ"


AESTHETICS = Metric(
    name="aesthetics",
    title="Audiobox Aesthetics",
    unit="points of 1 to 10",
    higher_is_better=True,
    reads=frozenset({"aesthetics"}),
    needs=None,
    compute=compute_rating,
    settings=AestheticsSettings,
)
