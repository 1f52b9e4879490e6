"""Kullback-Leibler divergence between a tagger's posteriors of paired clips.

Published numbers differ in its direction, in softmax or sigmoid, in an ε and in whether a clip or its segment is a
sample; a protocol fixes all four. Shapes: N samples (clips or segments), K classes.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torchmetrics.aggregation import MeanMetric

from ..uncertainty import linearised
from .metric import ClipFeatures, Material, Measured, Metric

Direction = Literal["reference||generated", "generated||reference"]
Pool = Literal["logits", "probabilities"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)


@dataclass
class KLSettings:
    activation: Literal["softmax", "sigmoid"] = "softmax"
    epsilon: float = 0.0  # added to the second posterior
    direction: Direction = "reference||generated"
    sample: Literal["clip", "window"] = "clip"  # "window": every window counts as one
    pool: Pool = "logits"  # of clips: mean over windows of the logits, or of the probabilities


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """(..., K) => (..., K)"""
    shifted = np.asarray(logits, dtype=np.float64)
    shifted = shifted - shifted.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """(..., K) => (..., K)"""
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


class KLDivergence(MeanMetric):
    """Streaming mean of `kl_of_logits` over samples."""

    higher_is_better = False

    def __init__(
        self, activation: str = "softmax", epsilon: float = 0.0, direction: str = DIRECTIONS[0], **options: Any
    ):
        super().__init__(**options)
        self.set_dtype(torch.float64)
        self.settings = {"activation": activation, "epsilon": epsilon, "direction": direction}

    def update(self, reference: Tensor, generated: Tensor) -> None:  # type: ignore[override]
        """Logits (N, K), (N, K) of paired samples."""
        divergence = kl_of_logits(reference.detach().cpu().numpy(), generated.detach().cpu().numpy(), **self.settings)
        super().update(torch.from_numpy(divergence))


def pooled_logits(logits: ClipFeatures, pool: Pool) -> np.ndarray:
    """(N, K): a clip's windows averaged as logits, or as log-probabilities of their mean probabilities"""
    if pool == "logits":
        return logits.clip_means()
    return np.log(ClipFeatures(np.exp(log_softmax(logits.rows)), logits.counts).clip_means())


def compute_kl(material: Material, settings: KLSettings) -> Measured:
    choices = {key: value for key, value in asdict(settings).items() if key not in ("sample", "pool")}
    reference, generated = material.reference.logits, material.generated.logits
    if settings.sample == "clip":
        pooled = [pooled_logits(side, settings.pool) for side in (reference, generated)]
        per_clip = kl_of_logits(pooled[0], pooled[1], **choices)
        return Measured({"values": per_clip}, per_clip)
    counts = np.minimum(reference.counts, generated.counts)  # windows that both clips of a pair have
    sums = np.array(
        [
            kl_of_logits(reference.take(clip)[:count], generated.take(clip)[:count], **choices).sum()
            for clip, count in zip(np.arange(len(counts))[:, None], counts)
        ]
    )
    return Measured({"values": linearised(sums, counts)}, sums / counts)


KL = Metric(
    name="kl",
    title="Kullback-Leibler divergence",
    unit="nats",
    higher_is_better=False,
    reads=frozenset({"logits"}),
    needs="reference",
    compute=compute_kl,
    settings=KLSettings,
)
