"""T-UNet, the network that removes noise from latents (paper section 3.3).

A convolutional U-Net with transformers at its lower resolutions. Every attended position holds one
transformer per entry of `cross_attention_dim`: one without a condition, one that reads the LOA, one
that reads the text. Parameters are named as in diffusers' `AudioLDM2UNet2DConditionModel`, so that
either class opens what the other wrote.

Letters: B clips, C channels, H latent frames, W latent mel bins, L vectors of a condition, E
channels of the time embedding.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from audioldm2_pl.conditioners.condition import Condition
from audioldm2_pl.errors import UserError
from audioldm2_pl.fields import bounded, check_fields
from audioldm2_pl.models.unet_layers import (
    Attention,
    Block,
    Memory,
    ResNet,
    TimeEmbedding,
    Transformer,
    attention_mask,
    norm_silu,
    zero,
)
from audioldm2_pl.weights import read_weights

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"


@dataclass
class TUNetConfig:
    """Defaults: the base model, 346.94 M parameters."""

    sample_size: int = bounded(256, ge=1, le=1_000_000)  # latent frames of a clip
    in_channels: int = bounded(8, ge=1, le=65_536)  # of the latent
    out_channels: int = bounded(8, ge=1, le=65_536)  # of the prediction
    block_out_channels: list[int] = bounded(lambda: [128, 256, 384, 640], ge=1, le=65_536, min_length=2)  # by level
    attention_levels: list[int] = bounded(lambda: [1, 2, 3], ge=0)  # 0: full resolution
    num_heads: list[int] = bounded(lambda: [4, 8, 12, 20], ge=1)  # by level
    layers_per_block: int = bounded(2, ge=1, le=100)  # ResNets a level on the way down; one more on the way up
    transformer_layers_per_block: int = bounded(1, ge=1, le=100)  # blocks in each transformer
    # One transformer an entry: channels of the condition it reads, null for self-attention alone.
    # Position 0 or 1 reads the first condition, the LOA; 2 or 3 the second, the text.
    cross_attention_dim: list[int | None] = bounded(lambda: [None, 768, 1024], ge=1, le=65_536, min_length=1)
    norm_num_groups: int = bounded(32, ge=1)  # of every GroupNorm
    film_dim: int | None = bounded(None, ge=1, le=65_536)  # of a vector joined to the time embedding (AudioLDM 1)
    gradient_checkpointing: bool = False  # recompute transformer blocks in backward to save memory

    def __post_init__(self) -> None:
        check_fields(self, "unet.")
        widths = self.block_out_channels
        if len(self.num_heads) != len(widths):
            raise UserError(
                f"unet.block_out_channels has {len(widths)} entries, unet.num_heads"
                f" {len(self.num_heads)}; give both one entry a level"
            )
        for width, heads in zip(widths, self.num_heads):
            if width % self.norm_num_groups or width % heads or width % 2:
                raise UserError(
                    f"unet.block_out_channels: {width} must be even and a multiple of"
                    f" norm_num_groups={self.norm_num_groups} and of its level's {heads} heads"
                )
        if not set(self.attention_levels) <= set(range(len(widths))):
            raise UserError(f"unet.attention_levels={list(self.attention_levels)}: levels are 0 to {len(widths) - 1}")
        read = {index for index in self.condition_indices if index is not None}
        both_first = None not in self.cross_attention_dim[:2] and len(self.cross_attention_dim) > 1
        if read == {1} or both_first or len(self.cross_attention_dim) not in range(1, 5):
            raise UserError(
                f"unet.cross_attention_dim={list(self.cross_attention_dim)}: give one to four"
                " entries, the first condition's width at position 0 or 1, the second's at 2 or 3,"
                " null elsewhere"
            )

    @property
    def condition_indices(self) -> list[int | None]:
        """Which condition each entry of `cross_attention_dim` reads; the rule is diffusers'."""
        dims = self.cross_attention_dim
        return [None if dim is None else int(position > 1) for position, dim in enumerate(dims)]

    @property
    def time_dim(self) -> int:
        """Channels E of the embedding that every ResNet receives."""
        return 4 * self.block_out_channels[0] * (1 if self.film_dim is None else 2)


def make_block(
    config: TUNetConfig,
    level: int,
    direction: Literal["down", "middle", "up"],
    in_channels: list[int],
    num_attended: int,
    resample: bool = False,
) -> Block:
    """The block of a level, with transformers after its first `num_attended` ResNets."""
    transformers = [
        Transformer(
            config.block_out_channels[level],
            config.num_heads[level],
            context_dim,
            condition_index,
            config.transformer_layers_per_block,
            config.norm_num_groups,
            config.gradient_checkpointing,
        )
        for _ in range(num_attended)
        for context_dim, condition_index in zip(config.cross_attention_dim, config.condition_indices)
    ]
    resnets = [
        ResNet(channels, config.block_out_channels[level], config.time_dim, config.norm_num_groups)
        for channels in in_channels
    ]
    return Block(direction, resnets, transformers, len(config.cross_attention_dim), resample)


class TUNet(nn.Module):
    """Predicts the noise (or velocity) in a latent, given the timestep and conditions.

    The last convolution of every ResNet, of every transformer and of the net is zero at the start, as
    in the authors' code, so that a fresh net predicts 0.
    """

    def __init__(self, config: TUNetConfig):
        super().__init__()
        self.config = config
        widths, num_layers = config.block_out_channels, config.layers_per_block
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0])
        if config.film_dim is not None:
            self.class_embedding = nn.Linear(config.film_dim, 4 * widths[0])

        # `precompute` relies on modules being made in the order in which `forward` visits them.
        attended = [level in config.attention_levels for level in range(len(widths))]
        self.down_blocks = nn.ModuleList()
        skips = [widths[0]]  # channels of the feature maps that the way up receives
        for level, width in enumerate(widths):
            in_channels = [skips[-1], *[width] * (num_layers - 1)]
            num_attended = num_layers * attended[level]
            self.down_blocks.append(make_block(config, level, "down", in_channels, num_attended, resample=level < last))
            skips += [width] * (num_layers + (level < last))

        self.mid_block = make_block(config, last, "middle", [widths[-1]] * 2, num_attended=1)

        self.up_blocks = nn.ModuleList()
        width = widths[-1]
        for level in reversed(range(len(widths))):
            in_channels = []
            for _ in range(num_layers + 1):
                in_channels.append(width + skips.pop())
                width = widths[level]
            num_attended = (num_layers + 1) * attended[level]
            self.up_blocks.append(make_block(config, level, "up", in_channels, num_attended, resample=level > 0))

        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0])
        self.conv_out = zero(nn.Conv2d(widths[0], config.out_channels, 3, padding=1))

    def set_heads(self, num_heads: Sequence[int]) -> None:
        """Other numbers of attention heads, one a level; no weight changes its shape by it.

        The hub's folders say 8 at every level, while the authors trained with 32 channels a head (FACTS 0.3).
        Raises UserError where a number does not divide its level's channels.
        """
        self.config = replace(self.config, num_heads=list(num_heads))  # checks them
        heads = dict(zip(self.config.block_out_channels, self.config.num_heads))
        for module in self.modules():
            if isinstance(module, Attention):
                module.num_heads = heads[module.to_q.out_features]

    def precompute(self, conditions: Sequence[Condition]) -> list[Memory]:
        """Every transformer's keys and values of the conditions.

        They depend on neither latent nor timestep: computed once, they serve a whole generation.

        Raises:
            ValueError: the number of conditions is not the number that the config names.
        """
        num_conditions = len(set(self.config.condition_indices) - {None})
        if len(conditions) != num_conditions:
            raise ValueError(f"T-UNet reads {num_conditions} conditions, got {len(conditions)}")
        masks = [attention_mask(condition.mask) for condition in conditions]
        transformers = [module for module in self.modules() if isinstance(module, Transformer)]
        return [transformer.memory(conditions, masks) for transformer in transformers]

    def embed(self, timestep: Tensor | float, film: Tensor | None, latent: Tensor) -> Tensor:
        """The embedding (B, E) that every ResNet receives, its activation applied once for all."""
        timestep = torch.as_tensor(timestep, device=latent.device).expand(len(latent))  # (B,)
        embedding = self.time_embedding(timestep, latent.dtype)
        if (film is None) != (self.config.film_dim is None):
            raise ValueError(f"film_dim={self.config.film_dim}, film given: {film is not None}")
        if film is not None:
            embedding = torch.cat([embedding, self.class_embedding(film)], dim=-1)
        return F.silu(embedding)

    def forward(
        self,
        latent: Tensor,
        timestep: Tensor | float,
        conditions: Sequence[Condition] = (),
        film: Tensor | None = None,
        cache: list[Memory] | None = None,
    ) -> Tensor:
        """Noisy latent (B, C, H, W) => prediction (B, C, H, W).

        Args:
            timestep: (B,) or one for all, 0 to 999.
            conditions: LOA (B, L, 768), then text (B, L, 1024), as the config names them.
            film: (B, film_dim), with `film_dim` alone.
            cache: `precompute(conditions)`; `conditions` are then not read.
        """
        embedding = self.embed(timestep, film, latent)
        memories = iter(self.precompute(conditions) if cache is None else cache)
        x = self.conv_in(latent)
        skips = [x]
        for block in (*self.down_blocks, self.mid_block, *self.up_blocks):
            x = block(x, skips, embedding, memories)
        return self.conv_out(norm_silu(self.conv_norm_out, x))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes weights and config.json as diffusers does."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, folder / WEIGHTS_NAME, metadata={"format": "pt"})
        text = json.dumps(to_hub_config(self.config), indent=2)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "TUNet":
        """Opens a folder that `save_pretrained`, ours or diffusers', wrote, in float32.

        Raises:
            UserError: a file is missing, or the config asks for something that T-UNet has not.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} holds no config.json; give a folder with a saved T-UNet")
        config = from_hub_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        with torch.device("meta"):
            unet = cls(config)
        unet.load_state_dict(read_weights(folder), assign=True)
        return unet


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


def to_hub_config(config: TUNetConfig) -> dict[str, Any]:
    """The config.json with which diffusers opens the same net.

    It names the class AudioLDM2UNet2DConditionModel; for an AudioLDM 1 net UNet2DConditionModel,
    which writes the second self-attention as cross-attention of the level's own width, and which
    AudioLDM2UNet2DConditionModel opens as well.
    """
    widths = list(config.block_out_channels)
    attended = [level in config.attention_levels for level in range(len(widths))]
    film = config.film_dim is not None
    entries = list(config.cross_attention_dim)
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
        "projection_class_embeddings_input_dim": config.film_dim,
        "class_embeddings_concat": film,
        **HUB_CONSTANTS,
    }


def from_hub_config(hub: Mapping[str, Any]) -> TUNetConfig:
    """The inverse of `to_hub_config`, for the published files too.

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
    entries: Any = [None] if dims == widths else same_for_all("cross_attention_dim", dims)
    return TUNetConfig(
        sample_size=hub["sample_size"],
        in_channels=hub["in_channels"],
        out_channels=hub["out_channels"],
        block_out_channels=widths,
        attention_levels=[i for i, t in enumerate(hub["down_block_types"]) if "CrossAttn" in t],
        num_heads=[heads] * len(widths) if isinstance(heads, int) else list(heads),
        layers_per_block=same_for_all("layers_per_block", hub.get("layers_per_block", 2)),
        transformer_layers_per_block=same_for_all(
            "transformer_layers_per_block", hub.get("transformer_layers_per_block", 1)
        ),
        cross_attention_dim=entries if isinstance(entries, list) else [entries],
        norm_num_groups=hub.get("norm_num_groups", 32),
        film_dim=hub.get("projection_class_embeddings_input_dim") if film else None,
    )


def same_for_all(key: str, value: Any) -> Any:
    """One value, or the one that all levels share."""
    if not isinstance(value, list):
        return value
    if any(entry != value[0] for entry in value):
        raise UserError(f"the unet's config.json: {key}={value} differs by level, T-UNet has one")
    return value[0]


def official_heads(config: TUNetConfig) -> list[int]:
    """32 channels a head, as the authors trained."""
    return [width // 32 for width in config.block_out_channels]


def base() -> TUNetConfig:
    """AudioLDM 2 for sound effects or music: 346.94 M parameters (346 M in the paper)."""
    return TUNetConfig()


def large() -> TUNetConfig:
    """AudioLDM 2 large: 718.01 M parameters (712 M in the paper)."""
    return TUNetConfig(cross_attention_dim=[None, 768, 1024, None], transformer_layers_per_block=2)


def speech() -> TUNetConfig:
    """AudioLDM 2 for speech, which reads the LOA alone: 261.93 M parameters."""
    return TUNetConfig(cross_attention_dim=[None, 768])


def audioldm1() -> TUNetConfig:
    """AudioLDM 1, which reads a CLAP embedding beside the timestep: 185.04 M parameters."""
    return TUNetConfig(cross_attention_dim=[None], film_dim=512)
