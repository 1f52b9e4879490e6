"""Key of music: is the key whose profile correlates best with a clip's chroma the true one?

The profiles are Krumhansl and Kessler's of 1982 (Krumhansl 1990, Cognitive Foundations of Musical Pitch, ch. 4). The
truth is the one of a clip's labels that reads "E-flat major"; a clip without it has no score.
"""

import numpy as np

from audioldm2_pl.errors import UserError

from .metric import Material, Measured, Metric, NoSettings

PROFILES = {
    "major": (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),
    "minor": (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17),
}
PITCH_CLASSES = {
    name: pitch
    for pitch, names in enumerate(
        ("C", "C-sharp D-flat", "D", "D-sharp E-flat", "E", "F", "F-sharp G-flat", "G", "G-sharp A-flat", "A",
         "A-sharp B-flat", "B")
    )
    for name in names.split()
}  # fmt: skip
Key = tuple[int, str]  # pitch class from C on, mode


def true_key(labels: list[str]) -> Key | None:
    for label in labels:
        tonic, _, mode = label.partition(" ")
        if tonic in PITCH_CLASSES and mode in PROFILES:
            return PITCH_CLASSES[tonic], mode
    return None


def krumhansl_kessler(chroma: np.ndarray) -> Key:
    """The likeliest of the 24 keys, of how strong each pitch class is (12,), from C on."""
    fits = {
        (tonic, mode): np.corrcoef(np.roll(profile, tonic), chroma)[0, 1]
        for mode, profile in PROFILES.items()
        for tonic in range(12)
    }
    return max(fits, key=fits.__getitem__)


def compute_key(material: Material, settings: NoSettings) -> Measured:
    found = [krumhansl_kessler(chroma) for chroma in material.ratings["chroma"]]
    right = np.full(len(found), np.nan)  # (N,)
    for clip, labels in enumerate(material.labels):
        if (true := true_key(labels)) is not None:
            right[clip] = found[clip] == true
    if np.isnan(right).all():
        raise UserError('no clip has a label such as "E-flat major", the truth of key_accuracy')
    return Measured({"values": right[~np.isnan(right)]}, right)


KEY_ACCURACY = Metric(
    name="key_accuracy",
    title="Key accuracy",
    unit="share of clips",
    higher_is_better=True,
    reads=frozenset({"chroma"}),
    needs="labels",
    range=(0.0, 1.0),
    is_share=True,
    compute=compute_key,
)
