"""Accuracy of the nearest class mean: is a generated clip nearer to real clips of its own label than to others?

It makes a classifier of any embedding, without training: Snell et al. 2017, arXiv:1703.05175, §2.

Shapes: N clips, D embedding size, K labels.
"""

import numpy as np

from audioldm2_pl.errors import UserError

from .metric import Material, Measured, Metric


def class_means(embeddings: np.ndarray, labels: list[str]) -> tuple[list[str], np.ndarray]:
    """(N, D) and a label each => the labels, sorted, and their means (K, D) of length 1."""
    classes = sorted(set(labels))
    means = np.stack([embeddings[[label == name for label in labels]].mean(axis=0) for name in classes])
    return classes, means / np.linalg.norm(means, axis=1, keepdims=True).clip(min=1e-12)


def compute_nearest_mean(material: Material, settings: object) -> Measured:
    """Of clips with one label; the reference's clips of the same names carry the same labels."""
    if material.reference is None:
        raise UserError("the nearest class mean needs real clips; add --reference")
    chosen = np.array([len(labels) == 1 for labels in material.labels])
    labels = [labels[0] for labels in material.labels if len(labels) == 1]
    if len(set(labels)) < 2:
        raise UserError("the nearest class mean needs clips of two labels or more")
    classes, means = class_means(material.reference.embeddings.clip_means()[chosen], labels)
    nearest = (material.generated.embeddings.clip_means()[chosen] @ means.T).argmax(axis=1)  # (N',) by cosine
    right = np.full(len(chosen), np.nan)
    right[chosen] = [classes[k] == label for k, label in zip(nearest, labels)]
    names = [name for name, taken in zip(material.names, chosen) if taken]
    predictions = {name: classes[k] for name, k in zip(names, nearest)}
    return Measured({"values": right[chosen]}, right, {"classes": classes, "predictions": predictions})


NEAREST_MEAN = Metric(
    name="nearest_mean_accuracy",
    title="Accuracy of the nearest class mean",
    unit="share of clips",
    higher_is_better=True,
    reads=frozenset({"embeddings"}),
    needs="labels",
    range=(0.0, 1.0),
    is_share=True,
    compute=compute_nearest_mean,
)
