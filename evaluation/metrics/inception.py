"""Inception score of a tagger's posteriors (Salimans et al. 2016, arXiv:1606.03498): clear clips, varied sets.

Shapes: N clips, K classes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torchmetrics
from torch import Tensor

from .kl import Pool, log_softmax, pooled_logits
from .metric import Material, Measured, Metric


@dataclass
class InceptionSettings:
    pool: Pool = "logits"  # mean over a clip's windows of the logits, or of the probabilities


def inception_score(logits: np.ndarray) -> float:
    """exp of the mean KL(p_i‖p̄) over the rows of softmax(logits (N, K)): between 1 and K."""
    log_p = log_softmax(logits)
    p = np.exp(log_p)
    return float(np.exp((p * log_p).sum(axis=1).mean() + entropy(p.mean(axis=0))))


def entropy(p: np.ndarray) -> float:
    """(K,) => nats"""
    return -float(np.sum(p * np.log(np.where(p > 0, p, 1.0))))


class InceptionScore(torchmetrics.Metric):
    """Streaming form over all clips in one split (`splits=10` of the original code depends on the clips' order)."""

    higher_is_better = True
    full_state_update = False
    probability: Tensor
    negative_entropy: Tensor
    count: Tensor

    def __init__(self, num_classes: int, **options: Any):
        super().__init__(**options)
        for name, shape in (("probability", (num_classes,)), ("negative_entropy", ()), ("count", ())):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor) -> None:
        """(N, K)"""
        log_p = logits.detach().to(self.device, torch.float64).log_softmax(dim=1)
        self.probability += log_p.exp().sum(dim=0)
        self.negative_entropy += (log_p.exp() * log_p).sum()
        self.count += len(logits)

    def compute(self) -> Tensor:
        """The score, a scalar."""
        mean = self.probability / self.count
        return (self.negative_entropy / self.count - torch.xlogy(mean, mean).sum()).exp()


def compute_inception(material: Material, settings: InceptionSettings) -> Measured:
    return Measured({"logits": pooled_logits(material.generated.logits, settings.pool)})


INCEPTION = Metric(
    name="inception",
    title="Inception score",
    unit="",
    higher_is_better=True,
    reads=frozenset({"logits"}),
    needs=None,
    compute=compute_inception,
    settings=InceptionSettings,
    statistic=lambda samples, clips: inception_score(samples["logits"][clips]),
)
