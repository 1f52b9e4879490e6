"""Small networks with the authors' parameter names and computations, written from their published definitions.

Independent of `audioldm2_pl`: an import is right where its network computes what one of these does.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

HEAD_CHANNELS = 32  # of the T-UNet


def randomise(network: nn.Module, seed: int = 0, std: float = 0.1) -> nn.Module:
    """Every parameter random, so that no zero or one hides a wrong place."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return network.eval()


# ---- openaimodel.py, attention.py


class CrossAttention(nn.Module):
    def __init__(self, dim: int, context_dim: int | None):
        super().__init__()
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim or dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim or dim, dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(0.0))

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        heads = x.shape[-1] // HEAD_CHANNELS
        q, k, v = (t.unflatten(-1, (heads, -1)) for t in (self.to_q(x), self.to_k(context), self.to_v(context)))
        similarity = torch.einsum("bihd,bjhd->bhij", q, k) * HEAD_CHANNELS**-0.5
        if mask is not None:
            similarity = similarity.masked_fill(mask[:, None, None] != 1, -torch.finfo(similarity.dtype).max)
        return self.to_out(torch.einsum("bhij,bjhd->bihd", similarity.softmax(-1), v).flatten(2))


class GEGLU(nn.Module):
    def __init__(self, dim: int, inner: int):
        super().__init__()
        self.proj = nn.Linear(dim, inner * 2)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Dropout(0.0), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    def __init__(self, dim: int, context_dim: int | None):
        super().__init__()
        self.attn1 = CrossAttention(dim, None)
        self.ff = FeedForward(dim)
        self.attn2 = CrossAttention(dim, context_dim)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        x = self.attn1(self.norm1(x)) + x
        x = self.attn2(self.norm2(x), context, mask) + x
        return self.ff(self.norm3(x)) + x


class SpatialTransformer(nn.Module):
    def __init__(self, dim: int, context_dim: int | None, depth: int):
        super().__init__()
        self.norm = nn.GroupNorm(32, dim, eps=1e-6)
        self.proj_in = nn.Conv2d(dim, dim, 1)
        self.transformer_blocks = nn.ModuleList(BasicTransformerBlock(dim, context_dim) for _ in range(depth))
        self.proj_out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        y = self.proj_in(self.norm(x))
        tokens = y.flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens, context, mask)
        return x + self.proj_out(tokens.transpose(1, 2).unflatten(2, x.shape[2:]))


class ResBlock(nn.Module):
    def __init__(self, in_dim: int, emb_dim: int, dim: int):
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(32, in_dim), nn.SiLU(), nn.Conv2d(in_dim, dim, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_dim, dim))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, dim), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(dim, dim, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if in_dim == dim else nn.Conv2d(in_dim, dim, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Down(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.op = nn.Conv2d(dim, dim, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Up(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Stack(nn.Sequential):
    """TimestepEmbedSequential: the first transformer reads nothing, the further ones the contexts in order."""

    def forward(self, x: Tensor, emb: Tensor, contexts: list, masks: list) -> Tensor:  # type: ignore[override]
        contexts, masks, number = [None, *contexts], [None, *masks], 0
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                read = number < len(contexts)
                x = layer(x, contexts[number] if read else None, masks[number] if read else None)
                number += 1
            else:
                x = layer(x)
        return x


class UNetModel(nn.Module):
    def __init__(
        self,
        context_dim: list[int | None],
        channels: int = 4,
        width: int = 32,
        mult: tuple[int, ...] = (1, 2, 3),
        num_res_blocks: int = 2,
        attention_resolutions: tuple[int, ...] = (2, 4),
        depth: int = 1,
        extra_sa_layer: bool = True,
        film: int | None = None,
    ):
        super().__init__()
        self.width = width
        emb = 4 * width
        self.time_embed = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))
        if film is not None:
            self.film_emb = nn.Linear(film, emb)
            emb = 2 * emb
        dims = [None, *context_dim] if extra_sa_layer else context_dim

        def transformers(ch: int) -> list[nn.Module]:
            return [SpatialTransformer(ch, dim, depth) for dim in dims]

        self.input_blocks = nn.ModuleList([Stack(nn.Conv2d(channels, width, 3, padding=1))])
        skips, ch, ds = [width], width, 1
        for level, m in enumerate(mult):
            for _ in range(num_res_blocks):
                layers: list[nn.Module] = [ResBlock(ch, emb, m * width)]
                ch = m * width
                layers += transformers(ch) if ds in attention_resolutions else []
                self.input_blocks.append(Stack(*layers))
                skips.append(ch)
            if level < len(mult) - 1:
                self.input_blocks.append(Stack(Down(ch)))
                skips.append(ch)
                ds *= 2
        self.middle_block = Stack(ResBlock(ch, emb, ch), *transformers(ch), ResBlock(ch, emb, ch))
        self.output_blocks = nn.ModuleList()
        for level, m in list(enumerate(mult))[::-1]:
            for i in range(num_res_blocks + 1):
                layers = [ResBlock(ch + skips.pop(), emb, m * width)]
                ch = m * width
                layers += transformers(ch) if ds in attention_resolutions else []
                if level and i == num_res_blocks:
                    layers.append(Up(ch))
                    ds //= 2
                self.output_blocks.append(Stack(*layers))
        self.out = nn.Sequential(nn.GroupNorm(32, ch), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, x, timestep, contexts=(), masks=(), y=None) -> Tensor:
        half = self.width // 2
        phase = timestep[:, None].float() * torch.exp(-math.log(10_000) * torch.arange(half) / half)
        emb = self.time_embed(torch.cat([phase.cos(), phase.sin()], dim=-1))
        if y is not None:
            emb = torch.cat([emb, self.film_emb(y)], dim=-1)
        skips = []
        for block in self.input_blocks:
            x = block(x, emb, list(contexts), list(masks))
            skips.append(x)
        x = self.middle_block(x, emb, list(contexts), list(masks))
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), emb, list(contexts), list(masks))
        return self.out(x)


# ---- diffusionmodules/model.py


class ResnetBlock(nn.Module):
    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(32, in_dim, eps=1e-6)
        self.conv1 = nn.Conv2d(in_dim, dim, 3, padding=1)
        self.norm2 = nn.GroupNorm(32, dim, eps=1e-6)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)
        if in_dim != dim:
            self.nin_shortcut = nn.Conv2d(in_dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.GroupNorm(32, dim, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(dim, dim, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))
        weights = (torch.einsum("bci,bcj->bij", q, k) * x.shape[1] ** -0.5).softmax(-1)
        return x + self.proj_out(torch.einsum("bij,bcj->bci", weights, v).unflatten(2, x.shape[2:]))


class Middle(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = ResnetBlock(dim, dim), AttnBlock(dim), ResnetBlock(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class VAEDown(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


def vae_level(in_dim: int, dim: int, num_blocks: int, **resample: nn.Module) -> nn.Module:
    level = nn.Module()
    level.block = nn.ModuleList(ResnetBlock(in_dim if i == 0 else dim, dim) for i in range(num_blocks))
    level.attn = nn.ModuleList()
    for name, module in resample.items():
        setattr(level, name, module)
    return level


class Encoder(nn.Module):
    def __init__(self, ch: int, mult: tuple[int, ...], num_blocks: int, z: int):
        super().__init__()
        self.conv_in = nn.Conv2d(1, ch, 3, padding=1)
        self.down, dim = nn.ModuleList(), ch
        for i, m in enumerate(mult):
            resample = {"downsample": VAEDown(ch * m)} if i < len(mult) - 1 else {}
            self.down.append(vae_level(dim, ch * m, num_blocks, **resample))
            dim = ch * m
        self.mid = Middle(dim)
        self.norm_out = nn.GroupNorm(32, dim, eps=1e-6)
        self.conv_out = nn.Conv2d(dim, 2 * z, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            for block in level.block:
                x = block(x)
            x = level.downsample(x) if hasattr(level, "downsample") else x
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, ch: int, mult: tuple[int, ...], num_blocks: int, z: int):
        super().__init__()
        dim = ch * mult[-1]
        self.conv_in = nn.Conv2d(z, dim, 3, padding=1)
        self.mid = Middle(dim)
        self.up = nn.ModuleList()
        for i, m in list(enumerate(mult))[::-1]:
            resample = {"upsample": Up(ch * m)} if i else {}
            self.up.insert(0, vae_level(dim, ch * m, num_blocks + 1, **resample))
            dim = ch * m
        self.norm_out = nn.GroupNorm(32, dim, eps=1e-6)
        self.conv_out = nn.Conv2d(dim, 1, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in list(self.up)[::-1]:
            for block in level.block:
                x = block(x)
            x = level.upsample(x) if hasattr(level, "upsample") else x
        return self.conv_out(F.silu(self.norm_out(x)))


# ---- hifigan


class HiFiResBlock(nn.Module):
    def __init__(self, dim: int, kernel: int, dilations: tuple[int, ...]):
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(dim, dim, kernel, dilation=d, padding=(kernel - 1) * d // 2) for d in dilations
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(dim, dim, kernel, padding=kernel // 2) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for first, second in zip(self.convs1, self.convs2):
            x = x + second(F.leaky_relu(first(F.leaky_relu(x, 0.1)), 0.1))
        return x


class Generator(nn.Module):
    def __init__(self, mels: int, width: int, rates: list[int], kernels: list[int], blocks: list[int]):
        super().__init__()
        self.conv_pre = nn.Conv1d(mels, width, 7, padding=3)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for i, (rate, kernel) in enumerate(zip(rates, kernels)):
            dim = width >> (i + 1)
            self.ups.append(nn.ConvTranspose1d(2 * dim, dim, kernel, rate, padding=(kernel - rate) // 2))
            self.resblocks.extend(HiFiResBlock(dim, size, (1, 3, 5)) for size in blocks)
        self.conv_post = nn.Conv1d(width >> len(rates), 1, 7, padding=3)
        self.num_kernels = len(blocks)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.conv_pre(mel)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, 0.1))
            level = self.resblocks[i * self.num_kernels : (i + 1) * self.num_kernels]
            x = torch.stack([block(x) for block in level]).mean(0)
        return self.conv_post(F.leaky_relu(x)).tanh()


class VAEWithVocoder(nn.Module):
    """first_stage_model: AutoencoderKL, which holds the vocoder and a loss."""

    def __init__(
        self, vocoder: nn.Module, ch: int = 32, mult: tuple[int, ...] = (1, 2), z: int = 4, num_blocks: int = 2
    ):
        super().__init__()
        self.encoder, self.decoder = Encoder(ch, mult, num_blocks, z), Decoder(ch, mult, num_blocks, z)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(2 * z, 2 * z, 1), nn.Conv2d(z, z, 1)
        self.vocoder = vocoder
        self.loss = nn.ModuleDict({"discriminator": nn.Conv2d(1, 2, 3)})


# ---- audiomae


class MaskedAutoencoderViT(nn.Module):
    def __init__(self, num_frames: int, dim: int, depth: int, decoder_dim: int, decoder_depth: int):
        super().__init__()
        num_patches = num_frames // 16 * 8
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(1, dim, 16, 16)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, num_patches + 1, dim))
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.ModuleList(Block(dim, dim // 64, 4.0, qkv_bias=True, norm_layer=norm) for _ in range(depth))
        self.norm = norm(dim)
        self.decoder_embed, self.mask_token = nn.Linear(dim, decoder_dim), nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, num_patches + 1, decoder_dim))
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_dim, decoder_dim // 32, 4.0, qkv_bias=True, norm_layer=norm) for _ in range(decoder_depth)
        )
        self.decoder_norm, self.decoder_pred = norm(decoder_dim), nn.Linear(decoder_dim, 16 * 16)

    def forward_encoder_no_mask(self, fbank: Tensor, contextual_depth: int) -> Tensor:
        x = self.patch_embed.proj(fbank).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([cls, x], dim=1)
        found = []
        for n, block in enumerate(self.blocks):
            x = block(x)
            if n > contextual_depth:
                found.append(self.norm(x))
        return torch.stack(found).mean(0)


# ---- phoneme_encoder (VITS)


class GammaNorm(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.transpose(1, 2), (x.shape[1],), self.gamma, self.beta, 1e-5).transpose(1, 2)


class RelativeAttention(nn.Module):
    """Attention with learned embeddings of the distances -4 … 4 (Shaw et al. 2018)."""

    def __init__(self, dim: int, heads: int = 2, window: int = 4):
        super().__init__()
        self.heads, self.window = heads, window
        self.conv_q, self.conv_k, self.conv_v, self.conv_o = (nn.Conv1d(dim, dim, 1) for _ in range(4))
        self.emb_rel_k = nn.Parameter(torch.zeros(1, 2 * window + 1, dim // heads))
        self.emb_rel_v = nn.Parameter(torch.zeros(1, 2 * window + 1, dim // heads))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (conv(x).unflatten(1, (self.heads, -1)) for conv in (self.conv_q, self.conv_k, self.conv_v))
        distance = torch.arange(x.shape[2])[None] - torch.arange(x.shape[2])[:, None] + self.window
        near = ((distance >= 0) & (distance <= 2 * self.window)).float()[..., None]  # (i, j, 1)
        rel_k, rel_v = (e[0][distance.clamp(0, 2 * self.window)] * near for e in (self.emb_rel_k, self.emb_rel_v))
        q = q / math.sqrt(q.shape[2])
        scores = torch.einsum("bhdi,bhdj->bhij", q, k) + torch.einsum("bhdi,ijd->bhij", q, rel_k)
        weights = scores.masked_fill(mask == 0, -1e4).softmax(-1)
        out = torch.einsum("bhij,bhdj->bhdi", weights, v) + torch.einsum("bhij,ijd->bhdi", weights, rel_v)
        return self.conv_o(out.flatten(1, 2))


class PhonemeFFN(nn.Module):
    def __init__(self, dim: int, inner: int):
        super().__init__()
        self.conv_1, self.conv_2 = nn.Conv1d(dim, inner, 3), nn.Conv1d(inner, dim, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.conv_1(F.pad(x * mask, (1, 1))).relu()
        return self.conv_2(F.pad(x * mask, (1, 1))) * mask


class PhonemeEncoder(nn.Module):
    def __init__(self, vocabulary: int, dim: int, depth: int, length: int):
        super().__init__()
        self.text_encoder = nn.Module()
        self.text_encoder.emb = nn.Embedding(vocabulary, dim)
        layers = self.text_encoder.encoder = nn.Module()
        layers.attn_layers = nn.ModuleList(RelativeAttention(dim) for _ in range(depth))
        layers.norm_layers_1 = nn.ModuleList(GammaNorm(dim) for _ in range(depth))
        layers.ffn_layers = nn.ModuleList(PhonemeFFN(dim, 4 * dim) for _ in range(depth))
        layers.norm_layers_2 = nn.ModuleList(GammaNorm(dim) for _ in range(depth))
        self.text_encoder.proj = nn.Conv1d(dim, 2 * dim, 1)
        self.learnable_positional_embedding = nn.Parameter(torch.zeros(1, dim, length))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) => what the projection reads (B, L, D), mask (B, L)."""
        mask = (tokens != 0).float()[:, None]  # (B, 1, L)
        x = self.text_encoder.emb(tokens).transpose(1, 2) * math.sqrt(self.text_encoder.emb.embedding_dim) * mask
        e = self.text_encoder.encoder
        for attention, norm_1, ffn, norm_2 in zip(e.attn_layers, e.norm_layers_1, e.ffn_layers, e.norm_layers_2):
            x = norm_1(x + attention(x, mask[:, :, :, None] * mask[:, :, None]))
            x = norm_2(x + ffn(x, mask))
        x = x * mask + self.learnable_positional_embedding
        return x.transpose(1, 2), mask[:, 0]
