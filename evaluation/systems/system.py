"""A system: somebody's text-to-audio model behind one call. An opener says what it is called, whose library runs it and
which of that library's settings may be changed.

Letters: B clips, C channels, T samples.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from audioldm2_pl.conditioners.pretrained import load_pretrained
from audioldm2_pl.errors import UserError, reason_of

Settings = Mapping[str, Any]  # of the library's own call, those that were given


@dataclass(frozen=True)
class Request:
    """One clip that is asked for."""

    name: str  # of its file, without the suffix
    caption: str
    seed: int


@dataclass(frozen=True)
class System:
    """A system, open. A clip depends on its own request alone, not on the others of the call."""

    sample_rate: int  # Hz
    generate: Callable[[Sequence[Request], float], Sequence[Tensor]]  # requests, seconds => a (T,) or (C, T) each


@dataclass(frozen=True)
class Opener:
    """A file of `evaluation/systems/` holds one or more; `SYSTEMS` finds them."""

    name: str  # on the command line
    open: Callable[[str, str, Settings], System]  # folder or hub id, device, settings
    package: str | None  # the one whose version decides the sound
    settings: Mapping[str, type] = field(default_factory=dict)  # name -> int, float or str


def one_by_one(make: Callable[[Request, float], Tensor]) -> Callable[[Sequence[Request], float], list[Tensor]]:
    """For a library whose clips of a batch share random numbers or padding: `make` gives one clip, (T,) or (C, T)."""

    def generate(requests: Sequence[Request], seconds: float) -> list[Tensor]:
        return [make(request, seconds) for request in requests]

    return generate


def generators(requests: Sequence[Request]) -> list[torch.Generator]:
    """A source of noise for each clip, on the CPU: the same noise on every device."""
    return [torch.Generator().manual_seed(request.seed) for request in requests]


@contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """For a library that draws from torch's global generators: they begin at `seed`, and are put back."""
    forked = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(forked):
        torch.manual_seed(seed)
        yield


def open_pretrained(kind: Any, source: str, **options: Any) -> Any:
    """`kind.from_pretrained(source)`; UserError where the source holds none or a package that it needs is missing."""
    try:
        return load_pretrained(kind, source, **options)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot load {kind.__name__} from {source!r} ({reason_of(error)})") from None


def open_network(kind: Any, source: str, device: str) -> Any:
    """A network of transformers for inference, of .safetensors alone: a pickled file may run code."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    return open_pretrained(kind, source, use_safetensors=True, dtype=torch.float32).to(device).eval()
