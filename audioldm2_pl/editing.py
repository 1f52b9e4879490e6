"""Edits of existing sound: what of a source stays in a sampled latent.

An ability is a function that gives the mask of what is kept, or the timestep that a source is noised to. Inpainting,
super-resolution and style transfer are those of AudioLDM (section 3.4); continuation is AudioLDM 2's (Figure 8).
Shapes: B clips, C × H × W latent, L' and D vectors of LOA and their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from audioldm2_pl.errors import UserError
from audioldm2_pl.generation import Mode


@dataclass
class Inversion:
    """What leads a sampler back to a source: see `models.diffusion.invert`."""

    latent: Tensor  # (B, C, H, W), the source noised to the first timestep
    noise: Tensor  # (N, B, C, H, W), which each of N steps adds


@dataclass
class Edit:
    """What of a source stays in the sampled latent; a batch of 1 serves all clips.

    Raises UserError for a mask or a start without a latent.
    """

    latent: Tensor | None = None  # (B, C, H, W) of the source, scaled
    keep: Tensor | None = None  # broadcastable to the latent, in [0, 1]: 1 keeps the source, 0 is sampled anew
    start_timestep: int | None = None  # the source is noised to it and sampled from there (SDEdit); None: from noise
    loa_prefix: Tensor | None = None  # (B, L', D), which GPT-2 continues
    loa_suffix: Tensor | None = None  # (B, L', D), in the place of GPT-2's last vectors
    inversion: Inversion | None = None  # of the source, with start_timestep
    # official: the source is noised one step of the grid further, what is kept gets fresh noise at each step and is one
    # denoising away from the source in the end
    mode: Mode = "exact"

    def __post_init__(self) -> None:
        if self.latent is None and (self.keep is not None or self.start_timestep is not None):
            raise UserError("an edit with keep or start_timestep needs the source's latent")

    def rows(self, index: Tensor | slice | list[int]) -> Edit:
        """The edit of the clips at `index` (N,); its latent is (N, C, H, W)."""

        def take(values: Tensor | None) -> Tensor | None:
            return values if values is None or len(values) == 1 else values[index]

        changed = {name: take(getattr(self, name)) for name in ("latent", "loa_prefix", "loa_suffix")}
        if self.keep is not None and self.keep.ndim == 4:
            changed["keep"] = take(self.keep)
        inversion = self.inversion and Inversion(self.inversion.latent[index], self.inversion.noise[:, index])
        return replace(self, inversion=inversion, **changed)

    def to(self, device: torch.device | str) -> Edit:
        """The same on another device."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {name: value.to(device) for name, value in given.items() if isinstance(value, Tensor)}
        inversion = self.inversion and Inversion(self.inversion.latent.to(device), self.inversion.noise.to(device))
        return replace(self, inversion=inversion, **moved)

    def blend(self, latent: Tensor, source: Tensor) -> Tensor:
        """The latent (B, C, H, W) with the source, noised as far as the latent is, where the mask keeps it."""
        return latent if self.keep is None else self.keep * source + (1 - self.keep) * latent

    def check(self, num_clips: int, model: Any) -> None:
        """UserError where the edit is of another number of clips, or not of the shapes of `model`, an AudioLDM2."""
        loa = ("B", "L'", model.unet.condition_widths.get("loa"))
        latent = ("B", model.unet.config.in_channels, "H", model.num_latent_bins)
        wanted = {"latent": latent, "loa_prefix": loa, "loa_suffix": loa}
        for name, sizes in wanted.items():
            values = getattr(self, name)
            if values is None:
                continue
            shape = tuple(values.shape)
            if len(shape) != len(sizes) or any(type(a) is int and a != b for a, b in zip(sizes, shape)):
                raise UserError(f"edit.{name}: its shape is {shape}, the model's is ({', '.join(map(str, sizes))})")
            if len(values) not in (1, num_clips):
                raise UserError(
                    f"edit.{name}: {len(values)} for {num_clips} prompts; give one for all, or one for each"
                )
        if self.latent is not None and self.keep is not None:
            latent, keep = (num_clips, *self.latent.shape[1:]), tuple(self.keep.shape)
            if len(keep) > 4 or any(a not in (1, b) for a, b in zip(keep[::-1], latent[::-1])):
                raise UserError(f"edit.keep: its shape {keep} does not broadcast to the latent's, {latent}")


NO_EDIT = Edit()


@dataclass
class Grid:
    """A sound's latent frames and bins, in seconds and Hz."""

    num_frames: int  # H
    frames_per_second: float
    bin_tops: list[float]  # Hz, the highest mel filter's centre in each of W latent bins

    def span(self, start: float, stop: float) -> tuple[int, int]:
        """The latent frames that seconds from `start` to `stop` touch."""
        last = min(self.num_frames, -int(-stop * self.frames_per_second // 1))
        return min(int(start * self.frames_per_second), last), last

    def keep_outside(self, spans: Sequence[tuple[float, float]]) -> Tensor:
        """Inpainting: 0 within spans of seconds, 1 outside, (H, W)."""
        keep = torch.ones(self.num_frames, len(self.bin_tops))
        for start, stop in spans:
            first, last = self.span(start, stop)
            keep[first:last] = 0
        return keep

    def keep_below(self, hz: float) -> Tensor:
        """Super-resolution: 1 in the latent bins that lie below a frequency, 0 above, (H, W)."""
        return torch.tensor([float(top <= hz) for top in self.bin_tops]).expand(self.num_frames, -1).clone()


def start_of(strength: float, num_steps: int, num_timesteps: int, mode: Mode = "exact") -> int:
    """The timestep at which a source of `strength` is sampled from. UserError where that leaves no step.

    The authors' code counts steps of its grid, strength · num_steps of them, and noises the source one step further.
    """
    if mode == "exact":
        return max(1, round(strength * num_timesteps) - 1)
    count = int(strength * num_steps)
    if not 1 <= count < num_steps:
        raise UserError(f"strength {strength} of {num_steps} steps: official mode needs 1 to {num_steps - 1} steps")
    return num_timesteps // num_steps * (count - 1) + 1
