"""T-UNet, the network that removes noise from latents (paper section 3.3).

A convolutional U-Net with transformers at its lower resolutions. Every attended position holds one
transformer of self-attention and one for each of `conditions`, or those of `layout`. Parameters are
named as in diffusers' `AudioLDM2UNet2DConditionModel`, so that either class opens what the other wrote.

Letters: B clips, C channels, H latent frames, W latent mel bins, L vectors of a condition, E
channels of the time embedding.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from audioldm2_pl.conditioners.condition import Condition, read_names, write_names
from audioldm2_pl.errors import UserError
from audioldm2_pl.fields import bounded, check_fields
from audioldm2_pl.models.unet_hub import SELF, from_hub_config, to_hub_config
from audioldm2_pl.models.unet_layers import (
    Attention,
    Block,
    KVCache,
    ResNet,
    TimeEmbedding,
    Transformer,
    TransformerSize,
    attention_mask,
    norm_silu,
    zero,
)
from audioldm2_pl.weights import read_weights

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
WIDTHS = {"loa": 768, "t5": 1024, "clap": 512, "phonemes": 192}  # of the published conditions


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
    conditions: list[str] = field(default_factory=lambda: ["loa", "t5"])  # "loa", and names of `conditioners`
    layout: list[str] | None = None  # transformers of an attended position: self, or a condition; null: self, then each
    film: str | None = None  # conditioner whose one vector is joined to the time embedding (AudioLDM 1: clap)
    norm_num_groups: int = bounded(32, ge=1)  # of every GroupNorm
    gradient_checkpointing: bool = False  # recompute transformer blocks in backward to save memory
    checkpointed_levels: list[int] | None = bounded(None, ge=0)  # those at which it does so; null: at all

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
        if unattended := set(self.checkpointed_levels or ()) - set(self.attention_levels):
            raise UserError(
                f"unet.checkpointed_levels: level {min(unattended)} has no transformers; unet.attention_levels="
                f"{list(self.attention_levels)} have"
            )
        self.check_layout()

    def check_layout(self) -> None:
        """Raises UserError where the transformers do not read each condition."""
        if len(set(self.conditions)) != len(self.conditions):
            raise UserError(f"unet.conditions={self.conditions}: name each condition once")
        if set(self.transformers) - {SELF} != set(self.conditions) or not 1 <= len(self.transformers) <= 8:
            raise UserError(
                f"unet.layout={self.layout}: give one to eight entries, {SELF!r} or one of unet.conditions="
                f"{self.conditions}, each of these at least once"
            )

    @property
    def transformers(self) -> list[str]:
        """What each transformer of an attended position reads: SELF or a condition."""
        return list(self.layout) if self.layout is not None else [SELF, *self.conditions]

    @property
    def condition_indices(self) -> list[int | None]:
        """Which condition each transformer of an attended position reads."""
        return [None if name == SELF else self.conditions.index(name) for name in self.transformers]

    @property
    def time_dim(self) -> int:
        """Channels E of the embedding that every ResNet receives."""
        return 4 * self.block_out_channels[0] * (1 if self.film is None else 2)


def make_transformers(
    config: TUNetConfig, widths: Mapping[str, int], level: int, num_attended: int
) -> list[Transformer]:
    """The transformers of a block: those of `config.transformers` after each of `num_attended` ResNets."""
    return [
        Transformer(
            TransformerSize(config.block_out_channels[level], config.num_heads[level], widths.get(name)),
            index,
            config.transformer_layers_per_block,
            config.norm_num_groups,
            config.gradient_checkpointing and level in (config.checkpointed_levels or config.attention_levels),
        )
        for _ in range(num_attended)
        for name, index in zip(config.transformers, config.condition_indices)
    ]


def make_block(
    config: TUNetConfig,
    level: int,
    direction: Literal["down", "middle", "up"],
    in_channels: list[int],
    transformers: list[Transformer],
    resample: bool = False,
) -> Block:
    """The block of a level."""
    resnets = [
        ResNet(channels, config.block_out_channels[level], config.time_dim, config.norm_num_groups)
        for channels in in_channels
    ]
    return Block(direction, resnets, transformers, len(config.transformers), resample)


class TUNet(nn.Module):
    """Predicts the noise (or velocity) in a latent, given the timestep and conditions.

    The last convolution of every ResNet, of every transformer and of the net is zero at the start, as
    in the authors' code, so that a fresh net predicts 0.
    """

    def __init__(self, config: TUNetConfig, condition_widths: Mapping[str, int] = WIDTHS):
        """`condition_widths`: channels of every condition that the config names."""
        super().__init__()
        self.config = config
        named = [*config.conditions, *([] if config.film is None else [config.film])]
        if unknown := [name for name in named if name not in condition_widths]:
            raise UserError(f"unet: no width is known of the condition {unknown[0]!r}")
        self.condition_widths = {name: condition_widths[name] for name in named}
        attend = partial(make_transformers, config, {name: condition_widths[name] for name in config.conditions})
        widths, num_layers = config.block_out_channels, config.layers_per_block
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0])
        if config.film is not None:
            self.class_embedding = nn.Linear(condition_widths[config.film], 4 * widths[0])

        # `precompute` relies on modules being made in the order in which `forward` visits them.
        attended = [level in config.attention_levels for level in range(len(widths))]
        self.down_blocks = nn.ModuleList()
        skips = [widths[0]]  # channels of the feature maps that the way up receives
        for level, width in enumerate(widths):
            in_channels = [skips[-1], *[width] * (num_layers - 1)]
            transformers = attend(level, num_layers * attended[level])
            self.down_blocks.append(make_block(config, level, "down", in_channels, transformers, resample=level < last))
            skips += [width] * (num_layers + (level < last))

        self.mid_block = make_block(config, last, "middle", [widths[-1]] * 2, attend(last, 1))

        self.up_blocks = nn.ModuleList()
        width = widths[-1]
        for level in reversed(range(len(widths))):
            in_channels = []
            for _ in range(num_layers + 1):
                in_channels.append(width + skips.pop())
                width = widths[level]
            transformers = attend(level, (num_layers + 1) * attended[level])
            self.up_blocks.append(make_block(config, level, "up", in_channels, transformers, resample=level > 0))

        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0])
        self.conv_out = zero(nn.Conv2d(widths[0], config.out_channels, 3, padding=1))

    def set_heads(self, num_heads: Sequence[int]) -> None:
        """Other numbers of attention heads, one a level; no weight changes its shape by it.

        The hub's folders say 8 at every level, while the authors trained with 32 channels a head.
        Raises UserError where a number does not divide its level's channels.
        """
        self.config = replace(self.config, num_heads=list(num_heads))  # checks them
        heads = dict(zip(self.config.block_out_channels, self.config.num_heads))
        for module in self.modules():
            if isinstance(module, Attention):
                module.num_heads = heads[module.to_q.out_features]

    def precompute(self, conditions: Sequence[Condition]) -> list[KVCache]:
        """Every transformer's keys and values, (B, heads, L, C / heads), of the conditions (B, L, D).

        They depend on neither latent nor timestep: computed once, they serve a whole generation.

        Raises:
            ValueError: the number of conditions is not the number that the config names.
        """
        if len(conditions) != len(self.config.conditions):
            raise ValueError(f"T-UNet reads {len(self.config.conditions)} conditions, got {len(conditions)}")
        masks = [None if condition.is_full else attention_mask(condition.mask) for condition in conditions]
        transformers = [module for module in self.modules() if isinstance(module, Transformer)]
        return [transformer.key_values(conditions, masks) for transformer in transformers]

    def embed(self, timestep: Tensor | float, film: Tensor | None, latent: Tensor) -> Tensor:
        """The embedding (B, E) that every ResNet receives, its activation applied once for all."""
        timestep = torch.as_tensor(timestep, device=latent.device).expand(latent.shape[0])  # (B,)
        embedding = self.time_embedding(timestep, latent.dtype)
        if (film is None) != (self.config.film is None):
            raise ValueError(f"unet.film={self.config.film}, film given: {film is not None}")
        if film is not None:
            embedding = torch.cat([embedding, self.class_embedding(film)], dim=-1)
        return F.silu(embedding)

    def forward(
        self,
        latent: Tensor,
        timestep: Tensor | float,
        conditions: Sequence[Condition] = (),
        film: Tensor | None = None,
        kv_cache: list[KVCache] | None = None,
    ) -> Tensor:
        """Noisy latent (B, C, H, W) => prediction (B, C, H, W).

        Args:
            timestep: (B,) or one for all, 0 to 999.
            conditions: one for each that the config names, in its order.
            film: (B, D), where the config names one.
            kv_cache: `precompute(conditions)`; `conditions` are then not read.
        """
        embedding = self.embed(timestep, film, latent)
        caches = iter(self.precompute(conditions) if kv_cache is None else kv_cache)
        x = self.conv_in(latent)
        skips = [x]
        for block in (*self.down_blocks, self.mid_block, *self.up_blocks):
            x = block(x, skips, embedding, caches)
        return self.conv_out(norm_silu(self.conv_norm_out, x))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes weights and config.json as diffusers does."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, folder / WEIGHTS_NAME, metadata={"format": "pt"})
        text = json.dumps(to_hub_config(self.config, self.condition_widths), indent=2)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")
        write_names(folder, {name: getattr(self.config, name) for name in ("conditions", "layout", "film")})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "TUNet":
        """Opens a folder that `save_pretrained`, ours or diffusers', wrote, in float32.

        Raises:
            UserError: a file is missing, or the config asks for something that T-UNet has not.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} holds no config.json; give a folder with a saved T-UNet")
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        fields, widths = from_hub_config(content, read_names(folder))
        with torch.device("meta"):
            unet = cls(TUNetConfig(**fields), widths)
        unet.load_state_dict(read_weights(folder), assign=True)
        return unet


def choose_heads(unet: TUNet, heads: str, source: str | Path) -> None:
    """Gives the T-UNet of the model `source` the heads that `heads` names: "official", or "folder", with a warning
    where they are the hub's."""
    config = unet.config
    if heads == "official":
        unet.set_heads(official_heads(config))
    elif set(config.num_heads) == {8} and config.block_out_channels == TUNetConfig().block_out_channels:
        warnings.warn(
            f"{source}: its T-UNet has 8 heads at every level, but was trained with 32 channels a head if its "
            'weights are the published ones; heads="official" (--heads official) sets that right',
            stacklevel=3,
        )


def official_heads(config: TUNetConfig) -> list[int]:
    """32 channels a head, as the authors trained."""
    return [width // 32 for width in config.block_out_channels]


def base() -> TUNetConfig:
    """AudioLDM 2 for sound effects or music: 346.94 M parameters (346 M in the paper)."""
    return TUNetConfig()


def large() -> TUNetConfig:
    """AudioLDM 2 large: 718.01 M parameters (712 M in the paper)."""
    return TUNetConfig(layout=[SELF, "loa", "t5", SELF], transformer_layers_per_block=2)


def speech() -> TUNetConfig:
    """AudioLDM 2 for speech, which reads the LOA alone: 261.93 M parameters."""
    return TUNetConfig(conditions=["loa"])


def audioldm1() -> TUNetConfig:
    """AudioLDM 1, which reads a CLAP embedding beside the timestep: 185.04 M parameters."""
    return TUNetConfig(conditions=[], film="clap")
