"""What makes an open model faster: int8 layers on CPUs."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from audioldm2_pl.errors import UserError


def quantize(model: Any) -> None:
    """Puts int8 layers in the place of the linear ones of an AudioLDM2's GPT-2, T5 and CLAP's text encoder.

    Dynamic quantisation: weights are int8 with a scale a row, what comes in is rounded to int8 by the range of the
    batch, sums are exact. Raises UserError where the model is not in float32 on a CPU, where its GPT-2 has adapters,
    and for a torch without dynamic quantisation.
    """
    if model.device.type != "cpu":
        raise UserError(f"--int8 is for CPUs, but the model is on {model.device}; leave it out, or say --device cpu")
    if model.dtype != torch.float32:
        raise UserError("--int8 and --precision choose the same layers' numbers; leave one of them out")
    if any(hasattr(layer, "lora_A") for network in language_networks(model) for layer in network.modules()):
        raise UserError("--int8: an adapter changes GPT-2's weights, which int8 layers cannot take; leave one out")
    for network in language_networks(model):
        quantize_network(network)


def language_networks(model: Any) -> list[nn.Module]:
    """GPT-2 and the text encoders of an AudioLDM2."""
    encoders = dict.fromkeys([model.clap, *model.conditioners.values()])
    texts = [encoder for encoder in encoders if encoder is not None and encoder.name in ("clap", "t5")]
    networks = [encoder.text_model if encoder.name == "clap" else encoder.model for encoder in texts]
    return [*networks, *([] if model.loa_generator is None else [model.loa_generator.gpt2.transformer])]


def quantize_network(network: nn.Module) -> None:
    """Puts int8 layers in the place of a network's linear ones. UserError for a torch that has none."""
    replace_conv1d(network)
    try:
        from torch.ao.quantization import quantize_dynamic
        from torch.ao.quantization.qconfig import per_channel_dynamic_qconfig
    except ImportError as error:
        raise UserError(f"--int8: this torch has no dynamic quantisation ({error}); leave it out") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its move to another package
        quantize_dynamic(network, {nn.Linear: per_channel_dynamic_qconfig}, inplace=True)


def replace_conv1d(network: nn.Module) -> None:
    """Linear layers in the place of transformers' Conv1D, whose weight is the transposed one."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, Conv1D):
                linear = nn.Linear(child.weight.shape[0], child.weight.shape[1], device="meta")
                linear.weight = nn.Parameter(child.weight.T.contiguous(), requires_grad=False)
                linear.bias = nn.Parameter(child.bias, requires_grad=False)
                setattr(module, name, linear)
