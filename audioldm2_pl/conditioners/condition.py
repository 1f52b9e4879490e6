"""What a network is conditioned on: a sequence of vectors and which of them are real."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Condition:
    """A batch of sequences. Letters: B clips, L vectors a clip, D channels a vector."""

    embedding: Tensor  # (B, L, D)
    mask: Tensor  # (B, L), True or 1 where the vector is real, False or 0 where it is padding

    def __len__(self) -> int:
        """Number of clips, B."""
        return len(self.embedding)

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Condition:
        """The clips at `index`; an integer keeps the batch axis, as a batch of one."""
        rows = [index] if isinstance(index, int) else index
        return Condition(self.embedding[rows], self.mask[rows])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Condition:
        """The same on `device`, the embedding as `dtype`; the mask keeps its type."""
        return Condition(self.embedding.to(device, dtype), self.mask.to(device))

    def expand(self, batch_size: int) -> Condition:
        """One clip's condition for `batch_size` clips, without copying."""
        return Condition(self.embedding.expand(batch_size, -1, -1), self.mask.expand(batch_size, -1))

    def repeat(self, num_repeats: int) -> Condition:
        """Each clip `num_repeats` times in a row, for several candidates per prompt."""
        return Condition(
            self.embedding.repeat_interleave(num_repeats, dim=0),
            self.mask.repeat_interleave(num_repeats, dim=0),
        )

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        """The batches one after another, padded to the longest; for guidance: [without, with]."""
        length = max(condition.embedding.shape[1] for condition in conditions)
        paddings = [length - condition.embedding.shape[1] for condition in conditions]
        return Condition(
            torch.cat([F.pad(c.embedding, (0, 0, 0, n)) for c, n in zip(conditions, paddings)]),
            torch.cat([F.pad(c.mask, (0, n)) for c, n in zip(conditions, paddings)]),
        )
