"""T-UNet: `UNetModel` of the authors' openaimodel.py => `TUNet`.

The original counts its blocks through: input_blocks 0 is the first convolution, then come L ResNets and one
downsampling a level. Inside a block, item 0 is the ResNet, each further one a transformer, a last one of the way up
the upsampling.
"""

import re
from typing import Literal

from audioldm2_pl.hub.original.checkpoint import Moves, Weights, count
from audioldm2_pl.models.unet import TUNet, TUNetConfig
from audioldm2_pl.models.unet_hub import POSITIONAL, SELF, positional_layout

HEAD_CHANNELS = 32  # of one head in the authors' code, its num_head_channels
HUB_HEADS = 8  # at every level, as the published folders' config.json says

ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "film_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ATTENDED = "transformer_blocks.{}.attn2.to_k.weight"


def unet_config(
    weights: Weights, heads: Literal["official", "hub"], sample_size: int = 256
) -> tuple[TUNetConfig, dict[str, int]]:
    """The sizes and the conditions' widths, read off the shapes; `sample_size`, the latent's frames, is in no shape."""
    num_blocks = count(weights, r"input_blocks\.(\d+)\.")
    # L ResNets and a downsampling
    period = next((i for i in range(num_blocks) if f"input_blocks.{i}.0.op.weight" in weights), num_blocks)
    firsts = range(1, num_blocks, period)  # the first block of each level
    widths = [weights[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0] for i in firsts]
    attended = [level for level, i in enumerate(firsts) if f"input_blocks.{i}.1.norm.weight" in weights]
    num_transformers = count(weights, r"middle_block\.(\d+)\.") - 2

    def context(position: int) -> int | None:
        """Channels that the transformer at a position reads; None where they are each level's own."""
        key = f".{position + 1}." + ATTENDED.format(0)
        blocks = [(f"input_blocks.{firsts[level]}", level) for level in attended] + [("middle_block", -1)]
        dims = {(weights[block + key].shape[1], widths[level]) for block, level in blocks}
        return None if all(dim == width for dim, width in dims) else next(iter(dims))[0]

    film = weights.get("film_emb.weight")
    entries = [context(position) for position in range(num_transformers)]
    layout = positional_layout(entries)
    conditions = [name for name in POSITIONAL if name in layout]
    condition_widths = {name: dim for name, dim in zip(layout, entries) if dim is not None}
    if film is not None:
        condition_widths["clap"] = film.shape[1]
    config = TUNetConfig(
        sample_size=sample_size,
        in_channels=weights["input_blocks.0.0.weight"].shape[1],
        out_channels=weights["out.2.weight"].shape[0],
        block_out_channels=widths,
        attention_levels=attended,
        num_heads=[max(1, width // HEAD_CHANNELS) if heads == "official" else HUB_HEADS for width in widths],
        layers_per_block=period - 1,
        transformer_layers_per_block=count(weights, r"middle_block\.1\.transformer_blocks\.(\d+)\."),
        conditions=conditions,
        layout=None if layout == [SELF, *conditions] else layout,
        film=None if film is None else "clap",
    )
    return config, condition_widths


def rename(key: str, config: TUNetConfig) -> str | None:
    """The name here of a tensor of the original, None for one that it should not have."""
    stem, _, leaf = key.rpartition(".")
    if stem in ENDS:
        return f"{ENDS[stem]}.{leaf}"
    num_layers, num_transformers = config.layers_per_block, len(config.transformers)
    if found := re.match(r"middle_block\.(\d+)\.(.+)", key):
        item, rest, block, layer = int(found[1]), found[2], "mid_block", 0
        if item == num_transformers + 1:
            item, layer = 0, 1
    elif found := re.match(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.+)", key):
        number, item, rest = int(found[2]) - (found[1] == "input"), int(found[3]), found[4]
        level, layer = divmod(number, num_layers + 1)
        block = f"{'down' if found[1] == 'input' else 'up'}_blocks.{level}"
    else:
        return None
    if rest.startswith("op."):
        return f"{block}.downsamplers.0.conv.{leaf}"
    if rest.startswith("conv."):
        return f"{block}.upsamplers.0.conv.{leaf}"
    if item == 0:
        part = rest.rpartition(".")[0]
        return f"{block}.resnets.{layer}.{RESNET[part]}.{leaf}" if part in RESNET else None
    return f"{block}.attentions.{layer * num_transformers + item - 1}.{rest}"


def build_unet(weights: Weights, heads: Literal["official", "hub"], sample_size: int = 256) -> tuple[TUNet, Moves]:
    config, condition_widths = unet_config(weights, heads, sample_size)
    return TUNet(config, condition_widths), (
        (key, name, weights[key]) for key in weights if (name := rename(key, config))
    )
