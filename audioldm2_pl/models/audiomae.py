"""AudioMAE, and the language of audio (LOA) that is read off it.

A masked autoencoder on patches of a filter bank (paper §III-B1; Huang et al., "Masked Autoencoders that Listen",
2022). Parameter names are those of the authors' checkpoint. LOA: the encoder's last layers averaged, the grid of
time × frequency pooled by λ (paper §III-B2).

Letters: B batch, T' patches in time, F' patches in frequency, P = T'F', V visible patches, D dim, L = P / λ² vectors.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from audioldm2_pl.errors import UserError
from audioldm2_pl.fields import bounded, check_fields
from audioldm2_pl.seeds import draw_rows


@dataclass
class AudioMAEConfig:
    """Encoder, decoder and the reading of LOA."""

    num_frames: int = bounded(1024, ge=1, le=1_000_000)  # of the filter bank: 10.24 s
    num_bins: int = bounded(128, ge=1, le=4_096)  # of the filter bank
    patch_size: int = bounded(16, ge=1, le=4_096)  # frames and bins of a patch
    embed_dim: int = bounded(768, ge=1, le=65_536)  # of the encoder, and so of LOA
    depth: int = bounded(12, ge=1, le=1_000)  # encoder blocks
    num_heads: int = bounded(12, ge=1)  # of the encoder
    decoder_dim: int = bounded(512, ge=1, le=65_536)  # of the decoder, which only pretraining uses
    decoder_depth: int = bounded(8, ge=0, le=1_000)  # decoder blocks
    decoder_heads: int = bounded(16, ge=1)  # of the decoder
    mask_ratio: float = bounded(0.8, ge=0, lt=1)  # share of patches that the encoder does not see in pretraining
    position_base: float = bounded(10_000.0, gt=0)  # 2π × this = period of the slowest wave; a small grid wants less
    normalise_patches: bool = True  # reconstruct each patch less its mean, over its deviation
    loa_layers: int = bounded(
        3, ge=1
    )  # encoder blocks averaged for LOA: the last 3 in the authors' code, 16 in the paper
    pooling: int = bounded(8, ge=1, le=4_096)  # λ of generation
    speech_pooling: int | None = bounded(None, ge=1, le=4_096)  # λ of clips with a transcript; null: as the others

    def __post_init__(self) -> None:
        check_fields(self, "audiomae.")
        for name, heads in (("embed_dim", "num_heads"), ("decoder_dim", "decoder_heads")):
            width, num_heads = getattr(self, name), getattr(self, heads)
            if width % num_heads:
                raise UserError(f"audiomae.{heads}={num_heads} does not divide a width of {width}")
            if width % 4:
                raise UserError(f"audiomae.{name}={width} has to be a multiple of 4: sines and cosines of two axes")
        if self.num_bins % self.patch_size:
            raise UserError(
                f"audiomae.patch_size={self.patch_size} does not divide num_bins={self.num_bins}; change one of them"
            )
        if 0 < self.num_patches == self.num_visible:
            raise UserError(f"audiomae.mask_ratio={self.mask_ratio} hides none of {self.num_patches} patches; raise it")

    @property
    def num_patches(self) -> int:
        return (self.num_frames // self.patch_size) * (self.num_bins // self.patch_size)

    @property
    def num_visible(self) -> int:
        """Patches that the encoder sees in pretraining."""
        return max(1, round(self.num_patches * (1 - self.mask_ratio)))


def sincos_positions(dim: int, num_rows: int, num_columns: int, base: float = 10_000.0) -> Tensor:
    """Fixed 2-D sine-cosine position embedding, (1 + rows · columns, dim); the first row, CLS, is zero."""
    frequencies = 1.0 / base ** (np.arange(dim // 4) / (dim / 4.0))

    def one_axis(positions: np.ndarray) -> np.ndarray:
        angles = positions.reshape(-1, 1) * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)  # (P, dim / 2)

    rows, columns = np.meshgrid(np.arange(num_rows), np.arange(num_columns), indexing="ij")
    grid = np.concatenate([one_axis(columns), one_axis(rows)], axis=1)
    return torch.from_numpy(np.concatenate([np.zeros((1, dim)), grid])).float()


def pool_loa(grid: Tensor, pooling: int) -> Tensor:
    """(B, T', F', D) => Y_λ (B, L, D), time-major: (average + maximum) / 2 over λ × min(λ, F') (paper §III-B2)."""
    x = grid.permute(0, 3, 1, 2)  # (B, D, T', F')
    size = (pooling, min(pooling, grid.shape[2]))
    x = (F.avg_pool2d(x, size) + F.max_pool2d(x, size)) / 2
    return x.flatten(2).transpose(1, 2)


class AudioMAE(nn.Module):
    def __init__(self, config: AudioMAEConfig):
        super().__init__()
        self.config = config
        c = config
        self.grid = (c.num_frames // c.patch_size, c.num_bins // c.patch_size)  # T', F'
        layer_norm = partial(nn.LayerNorm, eps=1e-6)
        block = partial(Block, mlp_ratio=4, qkv_bias=True, norm_layer=layer_norm)  # type: ignore[arg-type]

        self.patch_embed = PatchEmbed(None, c.patch_size, 1, c.embed_dim)  # to (B, P, D), time-major
        self.cls_token = nn.Parameter(torch.zeros(1, 1, c.embed_dim))
        positions = sincos_positions(c.embed_dim, *self.grid, c.position_base).unsqueeze(0)
        self.pos_embed = nn.Parameter(positions, requires_grad=False)
        self.blocks = nn.ModuleList([block(c.embed_dim, c.num_heads) for _ in range(c.depth)])
        self.norm = layer_norm(c.embed_dim)

        self.decoder_embed = nn.Linear(c.embed_dim, c.decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, c.decoder_dim))
        positions = sincos_positions(c.decoder_dim, *self.grid, c.position_base).unsqueeze(0)
        self.decoder_pos_embed = nn.Parameter(positions, requires_grad=False)
        self.decoder_blocks = nn.ModuleList([block(c.decoder_dim, c.decoder_heads) for _ in range(c.decoder_depth)])
        self.decoder_norm = layer_norm(c.decoder_dim)
        self.decoder_pred = nn.Linear(c.decoder_dim, c.patch_size**2)
        self.apply(init_weights)
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def embed(self, fbank: Tensor) -> Tensor:
        """fbank (B, 1, frames, bins) => patches with their positions (B, P, D)."""
        return self.patch_embed(fbank) + self.pos_embed[:, 1:]

    def with_cls(self, patches: Tensor) -> Tensor:
        """(B, P, D) => (B, 1 + P, D)."""
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(patches.shape[0], -1, -1)
        return torch.cat([cls, patches], dim=1)

    def forward_encoder(self, fbank: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """fbank (B, 1, frames, bins) => visible patches encoded (B, 1 + V, D), mask (B, P) with 1 = removed, and the
        order (B, P) that restores the grid."""
        x = self.embed(fbank)
        num_visible = self.config.num_visible
        draws = draw_rows(lambda n: torch.rand(n, x.shape[1], device=x.device, generator=generator), len(x))
        shuffle = draws.argsort(dim=1)  # (B, P)
        restore = shuffle.argsort(dim=1)
        visible = shuffle[:, :num_visible].unsqueeze(-1).expand(-1, -1, x.shape[2])
        mask = (restore >= num_visible).float()
        x = self.with_cls(x.gather(1, visible))
        for block in self.blocks:
            x = block(x)
        return self.norm(x), mask, restore

    def forward_decoder(self, encoded: Tensor, restore: Tensor) -> Tensor:
        """(B, 1 + V, D) => every patch's pixels (B, P, patch²)."""
        x = self.decoder_embed(encoded)
        num_masked = restore.shape[1] + 1 - x.shape[1]
        patches = torch.cat([x[:, 1:], self.mask_token.expand(len(x), num_masked, -1)], dim=1)
        patches = patches.gather(1, restore.unsqueeze(-1).expand(-1, -1, x.shape[2]))
        x = torch.cat([x[:, :1], patches], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]

    def forward_loss(self, fbank: Tensor, predicted: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error of predicted (B, P, patch²) on the patches that mask (B, P) removes."""
        p = self.config.patch_size
        target = F.unfold(fbank, p, stride=p).transpose(1, 2)  # (B, P, patch²)
        if self.config.normalise_patches:
            variance, mean = torch.var_mean(target, dim=2, keepdim=True)
            target = (target - mean) / (variance + 1e-6).sqrt()
        error = (predicted - target).square().mean(2)  # (B, P)
        return (error * mask).sum() / mask.sum()

    def forward(self, fbank: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The pretraining loss of fbank (B, 1, frames, bins)."""
        encoded, mask, restore = self.forward_encoder(fbank, generator)
        return self.forward_loss(fbank, self.forward_decoder(encoded, restore), mask)

    def features(self, fbank: Tensor) -> Tensor:
        """fbank (B, 1, frames, bins) => (B, T', F', D): no masks, the last `loa_layers` normed blocks averaged."""
        x = self.with_cls(self.embed(fbank))
        num_layers = min(self.config.loa_layers, len(self.blocks))
        layers = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i >= len(self.blocks) - num_layers:
                layers.append(self.norm(x))
        mean = torch.stack(layers).mean(0)[:, 1:]  # (B, P, D)
        return mean.unflatten(1, self.grid)

    def loa(self, fbank: Tensor, pooling: int | None = None) -> Tensor:
        """fbank (B, 1, frames, bins) => Y_λ (B, L, D), with λ of the config unless it is given."""
        return pool_loa(self.features(fbank), pooling or self.config.pooling)


def num_loa_vectors(config: AudioMAEConfig, pooling: int | None = None) -> int:
    """L of a whole clip."""
    pooling = pooling or config.pooling
    num_rows, num_columns = config.num_frames // config.patch_size, config.num_bins // config.patch_size
    return (num_rows // pooling) * (num_columns // min(pooling, num_columns))


def pooling_to(config: AudioMAEConfig, num_vectors: int | None) -> int:
    """λ with which a whole clip has so many vectors of LOA; the config's where none has, or none is given."""
    poolings = (config.pooling, *range(1, config.num_frames // config.patch_size + 1))
    return next((k for k in poolings if num_loa_vectors(config, k) == num_vectors), config.pooling)


def loa_lengths(config: AudioMAEConfig) -> tuple[int, int]:
    """L of a whole clip without a transcript, and of one with a transcript."""
    return num_loa_vectors(config), num_loa_vectors(config, config.speech_pooling)


def init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.flatten(1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
