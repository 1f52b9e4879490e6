"""The GELU of GPT-2 and of FLAN-T5 as one operation."""

from torch import nn
from transformers.activations import NewGELUActivation


def fuse_gelu(network: nn.Module) -> None:
    """Puts torch's tanh-GELU in the place of transformers', in the whole network.

    The same function to rounding. Transformers' spells it out in eight operations, which each keep a tensor of the
    widest layer for the backward pass.
    """
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
