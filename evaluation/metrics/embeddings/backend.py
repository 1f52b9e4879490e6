"""What a network gives to metrics: a backend says what, and where its checkpoints come from; its loader opens one.

Shapes: B waveforms, T samples, R rows of an embedding (frames; one where a network gives one), D size, K classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...checkpoints import CheckpointSource, find_checkpoint

Encoded = tuple[Tensor, Tensor | None]  # embeddings (B, R, D), class logits (B, K) of a classifier


@dataclass
class Embedder:
    """A loaded network."""

    sample_rate: int  # Hz
    encode: Callable[[Tensor], Encoded] | None = None  # waveforms (B, T)
    min_samples: int = 1  # the shortest waveform that it encodes
    encode_text: Callable[[list[str]], Tensor] | None = None  # captions => (N, D)
    transcribe: Callable[[list[Path]], list[str]] | None = None  # files => their text
    classes: list[str] = field(default_factory=list)  # of the logits, where they are known by name
    weights: dict[str, str] = field(default_factory=dict)  # file name -> sha256


@dataclass(frozen=True)
class Backend:
    """`evaluation/metrics/embeddings/<name>.py` holds one as `BACKEND`; `BACKENDS` finds it."""

    load: Callable[[Path, str], Embedder]  # checkpoint, device
    gives: frozenset[str]  # "embeddings", "logits", "classes", "caption_embeddings", "transcripts"
    sources: Mapping[str, CheckpointSource] = field(default_factory=dict)  # by their names in the weights folder
    companions: tuple[str, ...] = ()  # of the sources: what it needs beside any checkpoint

    def fetch(self, folder: Path, name: str, download: bool = False) -> Path:
        """The checkpoint `name`, with its companions beside it; UserError where one is missing."""
        for needed in (*self.companions, name):
            find_checkpoint(folder, needed, self.sources.get(needed), download)
        return folder / name


def on_device(model: Any, device: str) -> Any:
    """Ready to encode. On a CPU channels last: no convolution's output has to be reordered for the next one."""
    layout = torch.channels_last if device == "cpu" else torch.preserve_format
    return model.eval().to(device).to(memory_format=layout)
