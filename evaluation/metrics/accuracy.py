"""Accuracy of a sound classifier on labelled clips: does a clip hold the event that its caption names?

`class_accuracy` is of clips with one event, `order_accuracy` of clips with two events of different classes, whose
logits come in two halves. Both are means over the clips of their kind; the others have no score.

Shapes: N clips, K classes.
"""

from dataclasses import replace

import numpy as np

from audioldm2_pl.errors import UserError

from .kl import log_softmax
from .metric import ClipFeatures, Material, Measured, Metric

ORDER_DEFINITION = (
    "For a clip captioned A, then B, cut in the middle: right if log p(A|first half) + log p(B|second half) "
    "> log p(B|first half) + log p(A|second half); chance is 0.5. order_both_correct asks more: A is the "
    "classifier's first choice among all classes for the first half and B for the second."
)


def order_is_right(halves: np.ndarray, first: int, second: int) -> bool:
    """halves (2, K), log-probabilities of one clip: is `first, then second` likelier than the reverse?"""
    return bool(halves[0, first] + halves[1, second] > halves[0, second] + halves[1, first])


def classify(material: Material, num_events: int) -> Measured:
    """Predictions for all clips with `num_events` labels, from as many rows of logits each."""
    if unknown := {label for labels in material.labels for label in labels} - set(material.classes):
        raise UserError(f"the classifier does not know the classes {', '.join(sorted(unknown))}; train it on them, too")
    logits: ClipFeatures = material.generated.logits
    right = np.full(len(material.labels), np.nan)  # (N,)
    predictions = {}
    for clip, (name, labels) in enumerate(zip(material.names, material.labels)):
        if len(labels) != num_events:
            continue
        log_p = log_softmax(logits.take(np.array([clip])))  # (1 or 2, K)
        if len(log_p) != num_events:
            raise UserError(f"{name}: {num_events} labels need as many windows, not {len(log_p)}; set num_windows")
        predicted = [material.classes[k] for k in log_p.argmax(axis=1)]
        if num_events == 1:
            right[clip] = predicted == labels
        elif labels[0] != labels[1]:
            right[clip] = order_is_right(log_p, *map(material.classes.index, labels))
        predictions[name] = {"classes": predicted, "probability": float(np.exp(log_p.max(axis=1).min()))}
    details = {"predictions": predictions, "classes": material.classes}
    return Measured({"values": right[~np.isnan(right)]}, right, details)


CLASS_ACCURACY = Metric(
    name="class_accuracy",
    title="Class accuracy",
    unit="share of clips",
    higher_is_better=True,
    reads=frozenset({"logits", "classes"}),
    needs="labels",
    range=(0.0, 1.0),
    is_share=True,
    compute=lambda material, settings: classify(material, 1),
)
ORDER_ACCURACY = replace(
    CLASS_ACCURACY,
    name="order_accuracy",
    title="Order accuracy",
    compute=lambda material, settings: classify(material, 2),
)
