"""T-UNet's config.json as diffusers writes it, and the names of the conditions beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

from audioldm2_pl.errors import UserError

SELF = "self"  # in `unet.layout`: a transformer of self-attention alone
POSITIONAL = ("loa", "t5")  # the conditions of published folders, which diffusers routes by position

# Settings of diffusers' classes at which T-UNet stands fixed.
HUB_CONSTANTS = {
    "act_fn": "silu",
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-5,
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "upcast_attention": False,
    "use_linear_projection": False,
}


def to_hub_config(config: Any, condition_widths: Mapping[str, int]) -> dict[str, Any]:
    """A TUNetConfig => the config.json with which diffusers opens the same net.

    It names the class AudioLDM2UNet2DConditionModel; for an AudioLDM 1 net UNet2DConditionModel,
    which writes the second self-attention as cross-attention of the level's own width, and which
    AudioLDM2UNet2DConditionModel opens as well.
    """
    widths = list(config.block_out_channels)
    attended = [level in config.attention_levels for level in range(len(widths))]
    film = config.film is not None
    entries = [None if name == SELF else condition_widths[name] for name in config.transformers]
    audioldm1 = film and entries == [None]
    return {
        "_class_name": "UNet2DConditionModel" if audioldm1 else "AudioLDM2UNet2DConditionModel",
        "_diffusers_version": "0.42.0",
        "sample_size": config.sample_size,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": widths,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attended],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attended[::-1]],
        "layers_per_block": config.layers_per_block,
        "transformer_layers_per_block": config.transformer_layers_per_block,
        "cross_attention_dim": widths if audioldm1 else [entries] * len(widths),
        "attention_head_dim": list(config.num_heads),  # diffusers means the number of heads
        "norm_num_groups": config.norm_num_groups,
        "class_embed_type": "simple_projection" if film else None,
        "projection_class_embeddings_input_dim": None if config.film is None else condition_widths[config.film],
        "class_embeddings_concat": film,
        **HUB_CONSTANTS,
    }


def from_hub_config(hub: Mapping[str, Any], named: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, int]]:
    """The inverse of `to_hub_config`: a TUNetConfig's fields, and the conditions' widths.

    Args:
        hub: a config.json, a published one too.
        named: {"conditions": …, "layout": …, "film": …}. Published folders name none: there the first condition is
            the LOA, the second T5's, and what joins the time embedding is CLAP's.

    Raises:
        UserError: the file asks for something that T-UNet has not.
    """
    widths = list(hub["block_out_channels"])
    film = hub.get("class_embed_type") == "simple_projection"
    expected = HUB_CONSTANTS | {
        "class_embed_type": "simple_projection" if film else None,
        "class_embeddings_concat": film,
    }
    for key, value in expected.items():
        if hub.get(key, value) != value:
            raise UserError(f"the unet's config.json: {key}={hub[key]!r}, T-UNet has {value!r}")

    heads = hub["attention_head_dim"]
    dims = hub["cross_attention_dim"]
    # AudioLDM 1: each level reads a condition of its own width, which is never given, hence itself.
    shared: Any = [None] if dims == widths else same_for_all("cross_attention_dim", dims)
    entries: list[int | None] = shared if isinstance(shared, list) else [shared]
    if named:
        conditions, film_name = list(named["conditions"]), named["film"]
        layout = named["layout"] or [SELF, *conditions]
    else:
        layout, film_name = positional_layout(entries), "clap" if film else None
        conditions = [name for name in POSITIONAL if name in layout]
    condition_widths = {name: width for name, width in zip(layout, entries) if width is not None}
    if film_name is not None:
        condition_widths[film_name] = hub["projection_class_embeddings_input_dim"]
    fields = {
        "sample_size": hub["sample_size"],
        "in_channels": hub["in_channels"],
        "out_channels": hub["out_channels"],
        "block_out_channels": widths,
        "attention_levels": [i for i, t in enumerate(hub["down_block_types"]) if "CrossAttn" in t],
        "num_heads": [heads] * len(widths) if isinstance(heads, int) else list(heads),
        "layers_per_block": same_for_all("layers_per_block", hub.get("layers_per_block", 2)),
        "transformer_layers_per_block": same_for_all(
            "transformer_layers_per_block", hub.get("transformer_layers_per_block", 1)
        ),
        "conditions": conditions,
        "layout": None if layout == [SELF, *conditions] else layout,
        "film": film_name,
        "norm_num_groups": hub.get("norm_num_groups", 32),
    }
    return fields, condition_widths


def same_for_all(key: str, value: Any) -> Any:
    """One value, or the one that all levels share."""
    if not isinstance(value, list):
        return value
    if any(entry != value[0] for entry in value):
        raise UserError(f"the unet's config.json: {key}={value} differs by level, T-UNet has one")
    return value[0]


def positional_layout(entries: Sequence[int | None]) -> list[str]:
    """What a published net's transformers read: the first condition at positions 0 and 1, the second at 2 and 3."""
    return [SELF if dim is None else POSITIONAL[int(position > 1)] for position, dim in enumerate(entries)]
