"""What a network gives to metrics: a backend says what, and where its checkpoints come from; its loader opens one.

Shapes: B waveforms, T samples, R rows of an embedding (frames; one where a network gives one), D size, K classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audioldm2_pl.errors import UserError

from ...checkpoints import CheckpointSource, find_checkpoint

Encoded = tuple[Tensor, Tensor | None]  # embeddings (B, R, D), class logits (B, K) of a classifier


@dataclass
class Embedder:
    """A loaded network."""

    sample_rate: int  # Hz
    encode: Callable[[Tensor], Encoded] | None = None  # waveforms (B, T)
    min_samples: int = 1  # the shortest waveform that it encodes
    encode_text: Callable[[list[str]], Tensor] | None = None  # captions => (N, D)
    logit_scale: float | None = None  # what cosines of captions and waveforms are multiplied by before a softmax
    transcribe: Callable[[list[Path]], list[str]] | None = None  # files => their text
    rate: Callable[[list[Path]], dict[str, np.ndarray]] | None = None  # files => axis -> its ratings (N,)
    classes: list[str] = field(default_factory=list)  # of the logits, where they are known by name
    weights: dict[str, str] = field(default_factory=dict)  # file name -> sha256


@dataclass(frozen=True)
class Backend:
    """`evaluation/metrics/embeddings/<name>.py` holds one as `BACKEND`; `BACKENDS` finds it."""

    load: Callable[[Path, str], Embedder]  # checkpoint, device
    # "embeddings", "logits", "classes", "caption_embeddings", "prompt_embeddings", "transcripts", or a kind of ratings
    gives: frozenset[str]
    sources: Mapping[str, CheckpointSource] = field(default_factory=dict)  # by their names in the weights folder
    companions: tuple[str, ...] = ()  # of the sources: what it needs beside any checkpoint
    package: str = ""  # that has the checkpoints in its wheel: the weights folder is not asked

    def fetch(self, folder: Path, name: str, download: bool = False) -> Path:
        """The checkpoint `name`, with its companions beside it; UserError where one is missing."""
        if self.package:
            spec = find_spec(self.package)
            if spec is None or spec.origin is None:
                raise UserError(f"{self.package} is not installed; pip install 'audioldm2-pl[eval]'")
            return find_checkpoint(Path(spec.origin).parent, name)
        for needed in (*self.companions, name):
            find_checkpoint(folder, needed, self.sources.get(needed), download)
        return folder / name


def on_device(model: Any, device: str) -> Any:
    """Ready to encode. On a CPU channels last: no convolution's output has to be reordered for the next one."""
    layout = torch.channels_last if device == "cpu" else torch.preserve_format
    return model.eval().to(device).to(memory_format=layout)
