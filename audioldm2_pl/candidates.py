"""Of several sounds that a prompt makes, the one that CLAP finds nearest to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from audioldm2_pl.conditioning import check_finite
from audioldm2_pl.generation import Generation


def best_of(model: Any, waveforms: Tensor, requests: Sequence[Generation]) -> Tensor:
    """Candidates (B · candidates, T) => the index (B,) of each request's best. UserError where one is not finite."""
    check_finite(waveforms, "the waveform", "the weights in vae/ or vocoder/ are damaged")
    count = len(waveforms) // len(requests)
    first = torch.arange(len(requests)) * count
    if count == 1:
        return first
    tries = waveforms.split(count)
    return first + torch.stack([model.similarity(t, r.prompt).argmax() for t, r in zip(tries, requests)])
