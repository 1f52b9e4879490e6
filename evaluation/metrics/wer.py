"""Word error rate of generated speech: a recogniser's transcript of the audio against the text it was made from.

Words are counted by jiwer on texts in lower case without punctuation.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torchmetrics.aggregation import MeanMetric

from audioldm2_pl.errors import UserError

from ..libraries import import_library
from ..uncertainty import linearised
from .metric import Material, Measured, Metric, NoSettings


def normalise_text(text: str) -> str:
    """Lower case, no punctuation, apostrophes inside words kept: "Don't – stop!" => "don't stop" """
    text = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    return " ".join(re.findall(r"\w+(?:'\w+)*", text.replace("_", " ")))


def word_errors(transcript: str, recognised: str) -> tuple[int, int]:
    """=> substitutions + deletions + insertions, and the transcript's words. UserError where it has none."""
    reference = normalise_text(transcript)
    if not reference:
        raise UserError(f"transcript {transcript!r} has no words; leave the clip out of the word error rate")
    counts = import_library("jiwer").process_words(reference, normalise_text(recognised))
    return counts.substitutions + counts.deletions + counts.insertions, len(reference.split())


def count_errors(transcripts: Sequence[str], recognised: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """=> errors (N,) and words (N,) of each pair of texts"""
    pairs = [word_errors(*pair) for pair in zip(transcripts, recognised, strict=True)]
    errors, words = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return errors, words


def word_error_rate(transcripts: Sequence[str], recognised: Sequence[str]) -> float:
    """Errors in all clips over words in all transcripts: long clips count more than short ones; may exceed 1."""
    errors, words = count_errors(transcripts, recognised)
    return float(errors.sum() / words.sum())


class WordErrorRate(MeanMetric):
    """Streaming form of `word_error_rate`."""

    higher_is_better = False

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.set_dtype(torch.float64)

    def update(self, transcripts: Sequence[str], recognised: Sequence[str]) -> None:  # type: ignore[override]
        errors, words = count_errors(transcripts, recognised)
        super().update(torch.from_numpy(errors / words), torch.from_numpy(words))


def compute_wer(material: Material, settings: NoSettings) -> Measured:
    errors, words = count_errors([texts[0] for texts in material.captions], material.transcripts)
    details = {"recognised": dict(zip(material.names, material.transcripts))}
    return Measured({"values": linearised(errors, words)}, errors / words, details)


WER = Metric(
    name="wer",
    title="Word error rate",
    unit="errors a word",
    higher_is_better=False,
    reads=frozenset({"transcripts"}),
    needs="captions",
    compute=compute_wer,
    range=(0.0, math.inf),
)
