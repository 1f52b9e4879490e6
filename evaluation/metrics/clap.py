"""CLAP score: cosine between a clip's and its caption's embedding (Huang et al. 2023, arXiv:2301.12661).

Shapes: N pairs, D embedding size.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.aggregation import MeanMetric

from .metric import ClipFeatures, Material, Measured, Metric, NoSettings


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


class CLAPScore(MeanMetric):
    """Streaming form of `clap_score`."""

    higher_is_better = True

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.set_dtype(torch.float64)

    def update(self, audio: Tensor, text: Tensor) -> None:  # type: ignore[override]
        """Embeddings (N, D), (N, D) of pairs."""
        super().update(torch.from_numpy(cosines(audio.detach().cpu().numpy(), text.detach().cpu().numpy())))


def compute_clap(material: Material, settings: NoSettings) -> Measured:
    """A clip's score is the mean over its captions; its embedding, the mean over its windows."""
    assert material.caption_embeddings is not None
    counts = np.array([len(captions) for captions in material.captions])
    audio = material.generated.embeddings.clip_means()
    similarity = cosines(np.repeat(audio, counts, axis=0), material.caption_embeddings)
    per_clip = ClipFeatures(similarity[:, None], counts).clip_means()[:, 0]
    return Measured({"values": per_clip}, per_clip)


CLAP = Metric(
    name="clap",
    title="CLAP score",
    unit="cosine",
    higher_is_better=True,
    reads=frozenset({"embeddings", "caption_embeddings"}),
    needs="captions",
    compute=compute_clap,
)
