"""Kullback-Leibler divergence between a tagger's posteriors of paired clips.

Published numbers differ in its direction, in softmax or sigmoid, in an ε and in whether a clip or its segment is a
sample; a protocol fixes all four. Shapes: N samples (clips or segments), K classes.
"""

from typing import Any

import numpy as np
import torch
import torchmetrics
from torch import Tensor

DIRECTIONS = ("reference||generated", "generated||reference")


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """(..., K) => (..., K)"""
    shifted = np.asarray(logits, dtype=np.float64)
    shifted = shifted - shifted.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(logits, dtype=np.float64)))


def kl_divergence(p: np.ndarray, q: np.ndarray, epsilon: float = 0.0) -> np.ndarray:
    """KL(p‖q) = Σ p log(p / (q + ε)) of each row: (N, K), (N, K) => (N,) nats.

    Rows need not add up to one: of sigmoid outputs it is the sum over classes that AudioLDM's evaluation code prints.
    A q of zero where p is not gives infinity unless ε is positive.
    """
    p, q = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    if p.shape != q.shape or p.ndim != 2:
        raise ValueError(f"posteriors of paired samples differ in shape: {p.shape}, {q.shape}")
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = p * (np.log(p) - np.log(q + epsilon))
    return np.where(p > 0, terms, 0.0).sum(axis=1)


def kl_of_logits(
    reference: np.ndarray,
    generated: np.ndarray,
    activation: str = "softmax",
    epsilon: float = 0.0,
    direction: str = DIRECTIONS[0],
) -> np.ndarray:
    """Logits (N, K) of paired samples => KL (N,). Softmax without ε never leaves the logarithm: no underflow."""
    p, q = (reference, generated) if direction == DIRECTIONS[0] else (generated, reference)
    if activation == "sigmoid":
        return kl_divergence(sigmoid(p), sigmoid(q), epsilon)
    log_p, log_q = log_softmax(p), log_softmax(q)
    if epsilon:
        return kl_divergence(np.exp(log_p), np.exp(log_q), epsilon)
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=1)


class KLDivergence(torchmetrics.Metric):
    """Streaming mean of `kl_of_logits` over samples."""

    higher_is_better = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(
        self, activation: str = "softmax", epsilon: float = 0.0, direction: str = DIRECTIONS[0], **options: Any
    ):
        super().__init__(**options)
        self.settings = {"activation": activation, "epsilon": epsilon, "direction": direction}
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, reference: Tensor, generated: Tensor) -> None:
        """Logits (N, K), (N, K) of paired samples."""
        divergence = kl_of_logits(reference.detach().cpu().numpy(), generated.detach().cpu().numpy(), **self.settings)
        self.total += float(divergence.sum())
        self.count += len(divergence)

    def compute(self) -> Tensor:
        return self.total / self.count
