"""What a network is conditioned on: a sequence of vectors and which of them are real, and what encodes them.

An experiment's `gpt2.conditions`, `unet.conditions` and `unet.film` name conditioners; "loa" names the language of
audio, which AudioMAE or GPT-2 gives.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

NAMES_FILE = "conditions.json"


@dataclass
class Condition:
    """A batch of sequences. Letters: B clips, L vectors a clip, D channels a vector."""

    embedding: Tensor  # (B, L, D)
    mask: Tensor  # (B, L), True or 1 where the vector is real, False or 0 where it is padding
    is_full: bool = False  # known to have no padding: attention goes without the mask, and may then use flash attention

    def __len__(self) -> int:
        """Number of clips, B."""
        return len(self.embedding)

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Condition:
        """The clips at `index`; an integer keeps the batch axis, as a batch of one."""
        rows = [index] if isinstance(index, int) else index
        return Condition(self.embedding[rows], self.mask[rows], self.is_full)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Condition:
        """The same on `device`, the embedding as `dtype`; the mask keeps its type."""
        return Condition(self.embedding.to(device, dtype), self.mask.to(device), self.is_full)

    def expand(self, batch_size: int) -> Condition:
        """One clip's condition for `batch_size` clips, without copying."""
        return Condition(self.embedding.expand(batch_size, -1, -1), self.mask.expand(batch_size, -1), self.is_full)

    def repeat(self, num_repeats: int) -> Condition:
        """Each clip `num_repeats` times in a row, for several candidates a prompt: (B · num_repeats, L, D)."""
        return Condition(
            self.embedding.repeat_interleave(num_repeats, dim=0),
            self.mask.repeat_interleave(num_repeats, dim=0),
            self.is_full,
        )

    def where(self, dropped: Tensor, empty: Condition) -> Condition:
        """The clips, with the one of `empty` (1, L', D) in the place of those that `dropped` (B,) marks."""
        if not dropped.any():
            return self
        rows = torch.arange(len(self), device=dropped.device).masked_fill(dropped, len(self))
        return Condition.cat([self, empty])[rows.to(self.mask.device)]

    def replaced(self, given: Sequence[Any] | None, encode: Callable[[list[Any]], Condition]) -> Condition:
        """The clips, with what is `given` for some of them, None for the others, encoded (N, L', D) in their place."""
        rows = [] if given is None else [row for row, value in enumerate(given) if value is not None]
        if given is None or not rows:
            return self
        index = torch.arange(len(self))
        index[rows] = len(self) + torch.arange(len(rows))
        return Condition.cat([self, encode([given[row] for row in rows])])[index.to(self.mask.device)]

    @staticmethod
    def of(embedding: Tensor) -> Condition:
        """Vectors that are all real: (B, L, D), or (B, D) as one vector a clip."""
        embedding = embedding[:, None] if embedding.dim() == 2 else embedding
        return Condition(embedding, torch.ones(embedding.shape[:2], dtype=torch.bool, device=embedding.device), True)

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        """Batches (B, L, D) one after another, padded to the longest; for guidance: [without, with]."""
        length = max(condition.embedding.shape[1] for condition in conditions)
        paddings = [length - condition.embedding.shape[1] for condition in conditions]
        return Condition(
            torch.cat([F.pad(c.embedding, (0, 0, 0, n)) for c, n in zip(conditions, paddings)]),
            torch.cat([F.pad(c.mask, (0, n)) for c, n in zip(conditions, paddings)]),
            all(condition.is_full for condition in conditions) and not any(paddings),
        )


class Conditioner(Protocol):
    """An encoder of one condition: an `nn.Module` with these attributes and methods.

    `inputs` below is a batch of the data loader or what a request gives: "text" and "transcript", a string a clip;
    "waveform" (B, T) with its "sample_rate" in Hz; "image", a picture (H, W, 3) a clip; and "features", outputs that
    were computed before. Of requests "image", "video" (F, H, W, 3) and "audio" (T,) hold None where there is none; who
    reads one of them names it in an attribute `media`.
    """

    name: str  # in `conditioners`, `gpt2.conditions` and `unet.conditions`
    reads: str  # the key of the inputs that it encodes
    hub_classes: dict[str, tuple[str, str]]  # sub-folder of the model folder -> (library, class) of what is in it
    width_key: str  # under which the encoder's config.json holds its width
    stored: tuple[str, ...]  # names of its outputs in shards of features; empty where none are stored
    has_own_stage: bool  # trained by a stage of its own, and frozen in the others

    @property
    def width(self) -> int:
        """Channels D of its vectors."""
        ...

    def encode(self, inputs: Mapping[str, Any]) -> Condition:
        """The condition of each clip, (B, L, D)."""
        ...

    def empty(self) -> Condition:
        """What stands in the place of a dropped or absent condition, (1, L, D)."""
        ...

    def unread(self, text: str) -> list[str]:
        """A line for each kind of thing that it does not read of a text."""
        ...

    def parts(self) -> dict[str, Any]:
        """Sub-folder of the model folder -> what is saved there with `save_pretrained`."""
        ...


def write_names(folder: Path, names: Mapping[str, Any]) -> None:
    """Notes beside a part's config.json which conditions it reads, in order; stock libraries do not look for it."""
    (folder / NAMES_FILE).write_text(json.dumps(names, indent=2) + "\n", encoding="utf-8")


def read_names(folder: Path) -> dict[str, Any]:
    """What `write_names` wrote; empty for a published folder. Raises ValueError where it is no such file."""
    path = folder / NAMES_FILE
    names = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    conditions = names.get("conditions", [])
    if not isinstance(conditions, list) or not all(isinstance(name, str) for name in conditions):
        raise ValueError(f"{NAMES_FILE}: conditions={conditions!r} is no list of names")
    return names


def warn_unread(conditioners: Iterable[Any], given: Mapping[str, Sequence[str]]) -> None:
    """Warns of what conditioners do not read of the texts that are `given` under the keys that they read."""
    pairs = [(conditioner, text) for conditioner in conditioners for text in given.get(conditioner.reads, ())]
    for conditioner, text in dict.fromkeys(pairs):
        for line in conditioner.unread(text):
            warnings.warn(f"{text[:40]!r}: {line}", stacklevel=5)
