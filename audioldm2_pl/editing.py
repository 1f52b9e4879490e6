"""Edits of existing sound: each function makes of a source the Edit that `AudioLDM2.generate(edit=...)` samples with.

Shapes: B clips, T samples, C × H × W latent, L' and D vectors of LOA and their width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from audioldm2_pl.errors import UserError


@dataclass
class Edit:
    """What of a source stays in the sampled latent; a batch of 1 serves all clips.

    Raises UserError for a mask or a start without a latent.
    """

    latent: Tensor | None = None  # (B, C, H, W) of the source, scaled
    keep: Tensor | None = None  # broadcastable to the latent, in [0, 1]: 1 keeps the source, 0 is sampled anew
    start_timestep: int | None = None  # the source is noised to it and sampled from there (SDEdit); None: from noise
    loa_prefix: Tensor | None = None  # (B, L', D), which GPT-2 continues

    def __post_init__(self) -> None:
        if self.latent is None and (self.keep is not None or self.start_timestep is not None):
            raise UserError("an edit with keep or start_timestep needs the source's latent")

    def rows(self, index: Tensor | slice) -> Edit:
        """The edit of the clips at `index` (N,); its latent is (N, C, H, W)."""

        def take(values: Tensor | None) -> Tensor | None:
            return values if values is None or len(values) == 1 else values[index]

        keep = self.keep if self.keep is None or self.keep.ndim < 4 else take(self.keep)
        return replace(self, latent=take(self.latent), keep=keep, loa_prefix=take(self.loa_prefix))

    def to(self, device: torch.device | str) -> Edit:
        """The same on another device."""
        tensors = {name: getattr(self, name) for name in ("latent", "keep", "loa_prefix")}
        return replace(self, **{name: t.to(device) for name, t in tensors.items() if t is not None})

    def blend(self, latent: Tensor, source: Tensor) -> Tensor:
        """The latent (B, C, H, W) with the source, noised as far as the latent is, where the mask keeps it."""
        return latent if self.keep is None else self.keep * source + (1 - self.keep) * latent

    def check(self, num_clips: int, model: Any) -> None:
        """UserError where the edit is of another number of clips, or not of the shapes of `model`, an AudioLDM2."""
        bins, width = model.audio.num_mel_bins // model.downsampling, model.unet.condition_widths.get("loa")
        wanted = {"latent": ("B", model.unet.config.in_channels, "H", bins), "loa_prefix": ("B", "L'", width)}
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


@torch.inference_mode()
def continue_context(model: Any, context: Tensor) -> Edit:
    """In-context continuation (paper Fig. 8): the first part of clips, (B, T) => an Edit whose LOA GPT-2 continues.

    `model` is an AudioLDM2 with AudioMAE. AudioMAE encodes the context repeated to a whole clip: silence after it
    would be encoded too, and continued. Raises UserError for a model without AudioMAE.
    """
    num_samples = model.audio.num_samples
    repeated = context.repeat(1, -(-num_samples // context.shape[1]))[:, :num_samples]  # (B, T)
    loa = model.loa_of(repeated)  # (B, L, D), time-major
    rows, columns = (max(1, size // model.audiomae.config.pooling) for size in model.audiomae.grid)
    num_rows = max(1, round(context.shape[1] / num_samples * rows))
    return Edit(loa_prefix=loa[:, : num_rows * columns])
