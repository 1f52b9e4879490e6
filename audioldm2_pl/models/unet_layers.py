"""The layers of T-UNet, with the parameter names of diffusers.

Letters: B clips, C channels, H latent frames, W latent mel bins, N = H * W tokens, L vectors of a
condition, E channels of the time embedding.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from audioldm2_pl.conditioners.condition import Condition

# keys and values (B, heads, L, C / heads), mask (B, 1, 1, L) with True = read
KeyValue = tuple[Tensor, Tensor, Tensor | None]
KVCache = list[KeyValue | None]  # of a transformer's blocks; None where they read no condition

# T-UNet draws no random numbers in forward, so that there is no random state to put back.
CHECKPOINT_OPTIONS: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}

NARROW = 2  # columns of a feature map


def zero(module: nn.Module) -> Any:
    """The module with all its parameters set to 0."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def attention_mask(mask: Tensor | None) -> Tensor | None:
    """Mask (B, L) => boolean (B, 1, 1, L); where nothing is real, everything is read."""
    if mask is None:
        return None
    mask = mask.bool()
    # A softmax over nothing is undefined; the authors' fill value makes it uniform instead.
    return (mask | ~mask.any(dim=-1, keepdim=True))[:, None, None]


class Attention(nn.Module):
    """Multi-head attention of tokens to themselves or to a context of other width."""

    def __init__(self, dim: int, context_dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim, dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim))

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, N, C / heads)

    def key_value(self, context: Tensor, mask: Tensor | None) -> KeyValue:
        return self.split(self.to_k(context)), self.split(self.to_v(context)), mask

    def forward(self, x: Tensor, key_value: KeyValue | None) -> Tensor:
        """Tokens (B, N, C) attend to `key_value`, or to one another where it is None."""
        key, value, mask = self.key_value(x, None) if key_value is None else key_value
        y = F.scaled_dot_product_attention(self.split(self.to_q(x)), key, value, attn_mask=mask)
        return self.to_out(y.transpose(1, 2).flatten(2))  # (B, N, C)


class GatedLinear(torch.autograd.Function):
    """(…, 2 C) => a linear layer of the first half times GELU of the second; keeps only its input for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        value, gate = x.chunk(2, dim=-1)
        return F.linear(F.gelu(gate).mul_(value), weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        value, gate = x.flatten(0, -2).chunk(2, dim=-1)
        grad_out = grads[0].flatten(0, -2)
        activated = F.gelu(gate)
        grad_weight = grad_out.T @ (activated * value) if ctx.needs_input_grad[1] else None
        grad_bias = grad_out.sum(0) if ctx.needs_input_grad[2] else None
        grad = grad_out @ weight
        grad_x = torch.empty_like(x)
        left, right = grad_x.flatten(0, -2).chunk(2, dim=-1)
        torch.mul(grad, activated, out=left)
        torch.ops.aten.gelu_backward.grad_input(grad.mul_(value), gate, grad_input=right)
        return grad_x, grad_weight, grad_bias


class GEGLU(nn.Module):
    """A linear layer gated by a GELU of another (Shazeer 2020, equation 6): both as one matrix."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.proj = nn.Linear(dim, 2 * hidden_dim)


class FeedForward(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        # Position 1 holds dropout in diffusers; the numbers are part of the parameters' names.
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        gated: Any = self.net[0]
        out: Any = self.net[2]
        x = gated.proj(x)  # (B, N, 8 C)
        if not isinstance(out, nn.Linear) or torch.onnx.is_in_onnx_export():  # an adapter has taken its place
            value, gate = x.chunk(2, dim=-1)
            return out(F.gelu(gate) * value)
        return GatedLinear.apply(x, out.weight.to(x.dtype), out.bias.to(x.dtype))  # pyright: ignore


class TransformerBlock(nn.Module):
    """Self-attention, attention to a condition (or self-attention again), feed-forward.

    Each step is residual, behind a LayerNorm; only queries, keys and values have no bias.
    """

    def __init__(self, dim: int, num_heads: int, context_dim: int | None):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, context_dim or dim, num_heads)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def key_value(self, context: Tensor, mask: Tensor | None) -> KeyValue:
        return self.attn2.key_value(context, mask)

    def forward(self, x: Tensor, key_value: KeyValue | None) -> Tensor:
        x = x + self.attn1(self.norm1(x), None)
        x = x + self.attn2(self.norm2(x), key_value)
        return x + self.ff(self.norm3(x))


def linear(conv: nn.Conv2d, tokens: Tensor) -> Tensor:
    """A 1x1 convolution applied to tokens (B, N, C), which saves a change of layout."""
    return F.linear(tokens, conv.weight.flatten(1), conv.bias)


class TransformerSize(NamedTuple):
    """Of every block of a transformer."""

    dim: int  # channels of a token
    num_heads: int
    context_dim: int | None  # channels of the condition; None: all attention is self-attention


class Transformer(nn.Module):
    """Transformer blocks over the tokens of a feature map, added to it; starts as the identity."""

    def __init__(
        self,
        size: TransformerSize,
        condition_index: int | None,  # which of the conditions it reads
        num_blocks: int,
        num_groups: int,
        gradient_checkpointing: bool,
    ):
        super().__init__()
        dim = size.dim
        self.condition_index = condition_index
        self.gradient_checkpointing = gradient_checkpointing
        self.norm = nn.GroupNorm(num_groups, dim, eps=1e-6)
        self.proj_in = nn.Conv2d(dim, dim, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(dim, size.num_heads, size.context_dim) for _ in range(num_blocks)
        )
        self.proj_out = zero(nn.Conv2d(dim, dim, 1))

    def key_values(self, conditions: Sequence[Condition], masks: Sequence[Tensor | None]) -> KVCache:
        """Keys and values (B, heads, L, C / heads) of its condition, one entry a block."""
        index = self.condition_index
        if index is None:
            return [None] * len(self.transformer_blocks)
        context, mask = conditions[index].embedding, masks[index]
        return [block.key_value(context, mask) for block in self.transformer_blocks]  # pyright: ignore

    def forward(self, x: Tensor, kv_cache: KVCache) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, N, C)
        tokens = linear(self.proj_in, tokens)
        recompute = self.gradient_checkpointing and torch.is_grad_enabled()
        for block, key_value in zip(self.transformer_blocks, kv_cache):
            run: Any = partial(checkpoint, block, **CHECKPOINT_OPTIONS) if recompute else block
            tokens = run(tokens, key_value)
        tokens = linear(self.proj_out, tokens)
        return x + tokens.transpose(1, 2).unflatten(2, x.shape[-2:])  # (B, C, H, W)


class NormSiLU(torch.autograd.Function):
    """SiLU of a GroupNorm; keeps its input and the groups' statistics for backward, and norms anew."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float) -> Tensor:
        x = x.contiguous()
        # C by the weight, which is never symbolic: torch 2.8 cannot divide a symbolic C into groups
        ctx.sizes = (len(x), len(weight), x[0, 0].numel(), num_groups)  # B, C, H * W, groups
        y, mean, rstd = torch.ops.aten.native_group_norm(x, weight, bias, *ctx.sizes, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.eps = eps
        return F.silu(y, inplace=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        y = torch.ops.aten.native_group_norm(x, weight, bias, *ctx.sizes, ctx.eps)[0]
        grad = torch.ops.aten.silu_backward(grads[0].contiguous(), y)
        needed = list(ctx.needs_input_grad[:3])
        grad = torch.ops.aten.native_group_norm_backward(grad, x, mean, rstd, weight, *ctx.sizes, needed)
        return (*grad, None, None)


def norm_silu(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    # autocast decides about the norm's precision, and ONNX holds no functions of our own
    if x.dtype != norm.weight.dtype or torch.onnx.is_in_onnx_export():
        return F.silu(norm(x))
    return NormSiLU.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps)  # pyright: ignore[reportReturnType]


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 3x3 convolution. Narrow maps go through one matrix product on a CPU, whose kernels want longer rows."""
    if x.device.type != "cpu" or x.shape[-1] > NARROW or torch.onnx.is_in_onnx_export():
        return conv(x)
    columns = F.unfold(x, 3, padding=1).transpose(0, 1).flatten(1)  # (9 C, B * H * W)
    y = torch.addmm(conv.bias[:, None], conv.weight.flatten(1), columns)  # pyright: ignore[reportOptionalSubscript]
    return y.unflatten(1, (len(x), *x.shape[-2:])).transpose(0, 1).contiguous()


class ResNet(nn.Module):
    """Two convolutions with the time embedding added in between; starts as its shortcut."""

    def __init__(self, in_channels: int, out_channels: int, time_dim: int, num_groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(num_groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_dim, out_channels)
        self.norm2 = nn.GroupNorm(num_groups, out_channels)
        self.conv2 = zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        if in_channels != out_channels:
            self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1)
        else:
            self.conv_shortcut = nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Feature map (B, C, H, W) and embedding (B, E) => feature map of the width that goes out."""
        y = convolve(self.conv1, norm_silu(self.norm1, x)) + self.time_emb_proj(embedding)[:, :, None, None]
        return self.conv_shortcut(x) + convolve(self.conv2, norm_silu(self.norm2, y))


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) => (B, C, ceil(H / 2), ceil(W / 2))"""
        return self.conv(x)


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


class Block(nn.Module):
    """The ResNets of one resolution; each is followed by its transformers as long as there are any.

    On the way down it appends every result to the skips, on the way up it takes them from there.
    """

    def __init__(
        self,
        direction: Literal["down", "middle", "up"],
        resnets: list[ResNet],
        transformers: list[Transformer],  # in order
        num_transformers: int,  # after each ResNet
        resample: bool,  # halve (down) or double (up) the resolution at the end
    ):
        super().__init__()
        width = resnets[0].conv2.out_channels
        self.direction = direction
        self.num_transformers = num_transformers
        self.attentions = nn.ModuleList(transformers)
        self.resnets = nn.ModuleList(resnets)
        down, up = resample and direction == "down", resample and direction == "up"
        self.downsamplers = nn.ModuleList([Downsample(width)] if down else [])
        self.upsamplers = nn.ModuleList([Upsample(width)] if up else [])

    def forward(self, x: Tensor, skips: list[Tensor], embedding: Tensor, caches: Iterator[KVCache]) -> Tensor:
        """Feature map (B, C, H, W) => the next; every transformer takes the next of `caches`."""
        transformers = iter(self.attentions)
        for resnet in self.resnets:
            if self.direction == "up":
                x = torch.cat([x, skips.pop()], dim=1)
            x = resnet(x, embedding)
            for transformer in islice(transformers, self.num_transformers):
                x = transformer(x, next(caches))
            if self.direction == "down":
                skips.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            skips.append(x)
        for upsample in self.upsamplers:
            x = upsample(x, skips[-1].shape[-2:])  # the skip's size, which may be odd
        return x


class TimeEmbedding(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.linear_1 = nn.Linear(width, 4 * width)
        self.linear_2 = nn.Linear(4 * width, 4 * width)

    def forward(self, timestep: Tensor, dtype: torch.dtype) -> Tensor:
        """Timestep (B,) => embedding (B, 4 * width), from cosines and sines as in transformers."""
        half = self.width // 2
        exponent = torch.arange(half, device=timestep.device, dtype=torch.float32) / half
        phase = timestep[:, None].float() * torch.exp(-math.log(10_000) * exponent)  # (B, width/2)
        waves = torch.cat([phase.cos(), phase.sin()], dim=-1).to(dtype)  # (B, width)
        return self.linear_2(F.silu(self.linear_1(waves)))
