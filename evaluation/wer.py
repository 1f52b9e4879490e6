"""Word error rate of generated speech: what a recogniser hears against the transcript that was to be spoken.

A recogniser is any function `paths of audio => transcripts`; `RECOGNISERS` names those that a protocol can ask for.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchmetrics
from torch import Tensor

from audioldm2_pl.audio import load_waveform
from audioldm2_pl.errors import UserError

Recogniser = Callable[[Sequence[Path]], list[str]]


@dataclass
class WordErrors:
    substitutions: int
    deletions: int
    insertions: int
    num_words: int  # of the transcript

    @property
    def rate(self) -> float:
        return (self.substitutions + self.deletions + self.insertions) / self.num_words


def words_of(text: str) -> list[str]:
    """Lower case, no punctuation, apostrophes inside words kept: "Don't – stop!" => ["don't", "stop"]"""
    text = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    return re.findall(r"\w+(?:'\w+)*", text.replace("_", " "))


def word_errors(transcript: str, heard: str) -> WordErrors:
    """The fewest substitutions, deletions and insertions that turn the transcript into what was heard."""
    told, got = words_of(transcript), words_of(heard)
    if not told:
        raise UserError(f"transcript {transcript!r} holds no words; leave the clip out of the word error rate")
    # (errors, substitutions, deletions, insertions) of the best way from told[:i] to got[:j]
    row = [(j, 0, 0, j) for j in range(len(got) + 1)]
    for i, word in enumerate(told, start=1):
        previous, row = row, [(i, 0, i, 0)]
        for j, other in enumerate(got, start=1):
            errors, substitutions, deletions, insertions = previous[j - 1]
            ways = [
                (errors, substitutions, deletions, insertions)
                if word == other
                else (errors + 1, substitutions + 1, deletions, insertions)
            ]
            errors, substitutions, deletions, insertions = previous[j]
            ways.append((errors + 1, substitutions, deletions + 1, insertions))
            errors, substitutions, deletions, insertions = row[j - 1]
            ways.append((errors + 1, substitutions, deletions, insertions + 1))
            row.append(min(ways))
    return WordErrors(*row[-1][1:], num_words=len(told))


def word_error_rate(transcripts: Sequence[str], heard: Sequence[str]) -> float:
    """Errors in all clips over words in all transcripts: long clips count more than short ones; may exceed 1."""
    if len(transcripts) != len(heard):
        raise ValueError(f"{len(transcripts)} transcripts, {len(heard)} recognised texts")
    counts = [word_errors(told, got) for told, got in zip(transcripts, heard)]
    return sum(c.rate * c.num_words for c in counts) / sum(c.num_words for c in counts)


class WordErrorRate(torchmetrics.Metric):
    """Streaming form of `word_error_rate`."""

    higher_is_better = False
    full_state_update = False
    errors: Tensor
    num_words: Tensor

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.add_state("errors", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("num_words", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, transcripts: Sequence[str], heard: Sequence[str]) -> None:
        for told, got in zip(transcripts, heard, strict=True):
            counts = word_errors(told, got)
            self.errors += counts.substitutions + counts.deletions + counts.insertions
            self.num_words += counts.num_words

    def compute(self) -> Tensor:
        return self.errors.double() / self.num_words


def whisper(weights: Path, device: str = "cpu") -> Recogniser:
    """transformers' Whisper from the folder `weights`, greedy decoding, one clip at a time (30 s at most each)."""
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    from audioldm2_pl.conditioners.pretrained import load_pretrained

    if not (weights / "config.json").is_file():
        raise UserError(f"{weights}: no Whisper here; put the files of one there, e.g. of openai/whisper-base")
    processor = load_pretrained(WhisperProcessor, str(weights))
    model = load_pretrained(WhisperForConditionalGeneration, str(weights)).to(device).eval()

    @torch.no_grad()
    def recognise(paths: Sequence[Path]) -> list[str]:
        texts = []
        for path in paths:
            waveform = load_waveform(path, 16_000)
            features = processor(waveform, sampling_rate=16_000, return_tensors="pt").input_features
            tokens = model.generate(features.to(device), do_sample=False)
            texts += processor.batch_decode(tokens, skip_special_tokens=True)
        return texts

    return recognise


RECOGNISERS: dict[str, Callable[..., Recogniser]] = {"whisper": whisper}
