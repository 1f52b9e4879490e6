"""What the T-UNet reads beside a noisy latent, and its prediction under classifier-free guidance.

Letters: B samples, C × H × W latent, L vectors of a condition, D their width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from audioldm2_pl.conditioners.condition import Condition
from audioldm2_pl.models.diffusion import Predict, guide
from audioldm2_pl.models.unet import TUNet, TUNetConfig


@dataclass
class UNetInputs:
    """The T-UNet's conditions, one row a sample."""

    conditions: list[Condition]  # LOA and text, (B, L, D) each, as the model reads them
    film: Tensor | None = None  # (B, D): CLAP's embedding, for an AudioLDM 1
    unconditional: UNetInputs | None = None  # what guidance is against; None: no guidance

    @classmethod
    def of(cls, config: TUNetConfig, conditions: Mapping[str, Condition]) -> UNetInputs:
        """Of named conditions (B, L, D) those that a T-UNet reads, in its order."""
        film = None if config.film is None else conditions[config.film].embedding[:, 0]  # (B, D)
        return cls([conditions[name] for name in config.conditions], film)

    def rows(self, index: Tensor) -> UNetInputs:
        """The samples at `index` (N,)."""
        film = None if self.film is None else self.film[index]
        without = None if self.unconditional is None else self.unconditional.rows(index)
        return UNetInputs([condition[index] for condition in self.conditions], film, without)

    def with_unconditional(self) -> UNetInputs:
        """Both in one batch (2 B) for guidance: first without conditions, then with them."""
        without = self.unconditional
        if without is None:
            return self
        film = None if self.film is None or without.film is None else torch.cat([without.film, self.film])
        return UNetInputs([Condition.cat(pair) for pair in zip(without.conditions, self.conditions)], film)


def predictor(unet: TUNet, inputs: UNetInputs, guidance_scale: float) -> Predict:
    """(noisy latent (B, C, H, W), timestep) => the T-UNet's guided prediction (B, C, H, W), in float32."""
    both = inputs.with_unconditional()
    cache = unet.precompute(both.conditions)
    dtype = unet.conv_in.weight.dtype

    def predict(latent: Tensor, timestep: Tensor) -> Tensor:
        timestep = timestep.expand(len(latent))  # (B,)
        if both is not inputs:
            latent, timestep = torch.cat([latent, latent]), torch.cat([timestep, timestep])
        prediction = unet(latent.to(dtype), timestep, both.conditions, both.film, cache).float()
        if both is inputs:
            return prediction
        without, given = prediction.chunk(2)
        return guide(without, given, guidance_scale)

    return predict
