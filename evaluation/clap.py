"""CLAP score: cosine between a clip's and its caption's embedding (Huang et al. 2023, arXiv:2301.12661).

Shapes: N pairs, D embedding size.
"""

from typing import Any

import numpy as np
import torch
import torchmetrics
from torch import Tensor


def cosines(audio: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Embeddings of pairs (N, D), (N, D) of any length => (N,), in [-1, 1]"""
    audio, text = np.asarray(audio, dtype=np.float64), np.asarray(text, dtype=np.float64)
    if audio.shape != text.shape or audio.ndim != 2:
        raise ValueError(f"audio and text embeddings do not pair: {audio.shape}, {text.shape}")
    lengths = np.linalg.norm(audio, axis=1) * np.linalg.norm(text, axis=1)
    if not lengths.all():
        raise ValueError("an embedding is zero: it has no direction")
    return (audio * text).sum(axis=1) / lengths


def clap_score(audio: np.ndarray, text: np.ndarray) -> float:
    """Mean cosine of the pairs; papers print it as it is or in per cent."""
    return float(cosines(audio, text).mean())


class CLAPScore(torchmetrics.Metric):
    """Streaming form of `clap_score`."""

    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, audio: Tensor, text: Tensor) -> None:
        """Embeddings (N, D), (N, D) of pairs."""
        values = cosines(audio.detach().cpu().numpy(), text.detach().cpu().numpy())
        self.total += float(values.sum())
        self.count += len(values)

    def compute(self) -> Tensor:
        return self.total / self.count
