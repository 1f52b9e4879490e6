"""Seeds that follow from what a draw is for."""

import hashlib
import random
from collections.abc import Callable

import torch
from torch import Tensor, distributed


def seed_of(*parts: object) -> int:
    """A 63-bit seed out of any values: the same on every machine and in every process."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class SharedRandom:
    """Random numbers that are the same on all ranks. Torch's own differ from rank to rank: dropout masks do."""

    def __init__(self, seed: int):
        self.seed = seed
        self.python = random.Random(seed)
        self.generators: dict[torch.device, torch.Generator] = {}

    def on(self, device: torch.device | str) -> torch.Generator:
        """The generator of tensors on a device."""
        device = torch.device(device)
        if device not in self.generators:
            self.generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self.generators[device]


def draw_rows(draw: Callable[[int], Tensor], batch_size: int) -> Tensor:
    """Random rows (B, ...), one a clip: `draw(n)` makes those of the whole global batch, and each rank keeps its own.

    It has to draw from a generator that is the same on all ranks (`SharedRandom`): two processes with batches of 2 then
    draw what one with batches of 4 does, and a run may resume with another number of ranks.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return draw(batch_size)
    world_size, rank = distributed.get_world_size(), distributed.get_rank()
    return draw(batch_size * world_size)[rank::world_size]


def noise_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Normal noise (B, ...) of the shape of `x`, by `draw_rows`.

    Not randn_like, which fills in the order of memory: that may differ between a cached latent and a fresh one.
    """
    return draw_rows(lambda n: torch.randn(n, *x.shape[1:], device=x.device, generator=generator), len(x))
