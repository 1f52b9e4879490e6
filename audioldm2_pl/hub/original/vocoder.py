"""The vocoder: the authors' HiFi-GAN generator => `transformers.SpeechT5HifiGan`."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import SpeechT5HifiGan

from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.original.checkpoint import Moves, Weights, count
from audioldm2_pl.models.vocoder import VocoderConfig, build_hifigan

# Upsampling rates leave no mark on the shapes. Kernel sizes of the published vocoders -> their rates.
RATES: dict[tuple[int, ...], list[int]] = {
    (16, 16, 8, 4, 4): [5, 4, 2, 2, 2],  # 16 kHz
    (12, 10, 8, 4, 4): [6, 5, 4, 2, 2],  # 48 kHz
}
FRAMES_PER_SECOND = 100  # of every published log-mel
DILATIONS = [1, 3, 5]  # of a residual block's convolutions, in every published vocoder

# weight norm, torch's older and newer names: (magnitude, direction)
WEIGHT_NORM = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))


def without_weight_norm(weights: Weights) -> list[tuple[list[str], str, Tensor]]:
    """(original names, plain name, tensor): magnitude (C, 1, 1) and direction (C, D, K) multiplied out."""
    plain = []
    for key, tensor in weights.items():
        for magnitude, direction in WEIGHT_NORM:
            if key.endswith("." + direction):
                stem = key.removesuffix(direction)
                scale = weights[stem + magnitude] / tensor.flatten(1).norm(dim=1).view(-1, *[1] * (tensor.ndim - 1))
                plain.append(([key, stem + magnitude], stem + "weight", tensor * scale))
                break
        else:
            if not key.endswith((".weight_g", ".original0")):
                plain.append(([key], key, tensor))
    return plain


def vocoder_config(weights: Weights, rates: Sequence[int] | None) -> VocoderConfig:
    """The sizes, read off the shapes; the rates are the caller's, or looked up. Raises UserError where unknown."""
    kernels = [weights[f"ups.{i}.weight"].shape[2] for i in range(count(weights, r"ups\.(\d+)\."))]
    rates = list(rates) if rates is not None else RATES.get(tuple(kernels))
    if rates is None:
        raise UserError(f"the vocoder's upsampling kernels are {kernels}; name its rates with --vocoder-rates")
    num_blocks = count(weights, r"resblocks\.(\d+)\.") // len(kernels)  # a level
    num_convolutions = count(weights, r"resblocks\.0\.convs1\.(\d+)\.")
    return VocoderConfig(
        num_mel_bins=weights["conv_pre.weight"].shape[1],
        sample_rate=FRAMES_PER_SECOND * int(torch.tensor(rates).prod()),
        upsample_rates=rates,
        upsample_kernel_sizes=kernels,
        upsample_initial_channel=weights["conv_pre.weight"].shape[0],
        resblock_kernel_sizes=[weights[f"resblocks.{i}.convs1.0.weight"].shape[2] for i in range(num_blocks)],
        resblock_dilation_sizes=[DILATIONS[:num_convolutions]] * num_blocks,
    )


def build_converted_vocoder(weights: Weights, rates: Sequence[int] | None) -> tuple[SpeechT5HifiGan, Moves]:
    plain = without_weight_norm(weights)
    config = vocoder_config({name: tensor for _, name, tensor in plain}, rates)
    moves = (
        (key, "upsampler" + name.removeprefix("ups") if name.startswith("ups.") else name, tensor)
        for keys, name, tensor in plain
        for key in keys
    )
    return build_hifigan(config), moves
