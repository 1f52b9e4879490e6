"""The GPT-2 that generates LOA: it continues [SOS, CLAP, EOS, SOS, T5, EOS] with the vectors of LOA (paper §III-C).

GPT-2 is transformers', so that it goes to and comes from the published folders as it is.

Letters: B batch, P length of the prefix, L vectors of LOA, D width.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from audioldm2_pl.conditioners.condition import Condition
from audioldm2_pl.conditioners.pretrained import config_of, load_pretrained
from audioldm2_pl.errors import UserError
from audioldm2_pl.fields import bounded, check_fields
from audioldm2_pl.gelu import fuse_gelu
from audioldm2_pl.models.projection import ConditionProjection

# Hub id -> channels, so that an experiment's sizes are known before anything is downloaded.
PUBLISHED_WIDTHS = {
    f"openai-community/gpt2{size}": width
    for size, width in {"": 768, "-medium": 1024, "-large": 1280, "-xl": 1600}.items()
}
PUBLISHED_POSITIONS = 1024


@dataclass
class LOAGPT2Config:
    """GPT-2's size; `pretrained` starts from a text model's weights (paper §III-C)."""

    conditions: list[str] = field(default_factory=lambda: ["clap", "t5"])  # in the prefix's order
    pretrained: str | None = None  # hub id or folder of a GPT-2, such as openai-community/gpt2; null starts at random
    hidden_size: int = bounded(768, ge=1, le=65_536)  # equals AudioMAE's
    num_layers: int = bounded(12, ge=1, le=1_000)  # blocks
    num_heads: int = bounded(12, ge=1)  # per block
    num_positions: int = bounded(1024, ge=1, le=1_000_000)  # prefix and LOA together
    dropout: float = bounded(0.1, ge=0, lt=1)  # on embeddings, attention and residuals
    condition_dropout: float = bounded(0.0, ge=0, le=1)  # of a clip in training: LOA goes on without a text
    position_std: float = bounded(0.02, ge=0)  # of the learned positions at the start; `pretrained` brings its own

    def __post_init__(self) -> None:
        check_fields(self, "gpt2.")
        if self.hidden_size % self.num_heads:
            raise UserError(f"gpt2.num_heads={self.num_heads} does not divide a width of {self.hidden_size}")

    @property
    def sizes(self) -> tuple[int, int]:
        """Channels and positions: those of the `pretrained` weights as far as they are known without a download."""
        if self.pretrained is None:
            return self.hidden_size, self.num_positions
        found = config_of(self.pretrained)
        width = PUBLISHED_WIDTHS.get(self.pretrained) or found.get("n_embd", self.hidden_size)
        return width, found.get("n_positions", PUBLISHED_POSITIONS)


def build_gpt2(config: LOAGPT2Config, num_loa_vectors: int, num_speech_vectors: int | None = None) -> GPT2LMHeadModel:
    """GPT-2 with a vocabulary of one word: LOA comes in and goes out as vectors, for speech `num_speech_vectors`."""
    if config.pretrained is not None:
        model = load_pretrained(GPT2LMHeadModel, config.pretrained, dtype=torch.float32)
        if model.config.n_embd != config.hidden_size:
            raise UserError(
                f"gpt2.hidden_size is {config.hidden_size}, but {config.pretrained} has {model.config.n_embd} channels"
            )
    else:
        model = GPT2LMHeadModel(
            GPT2Config(
                n_embd=config.hidden_size, n_layer=config.num_layers, n_head=config.num_heads,
                n_positions=config.num_positions, vocab_size=1, bos_token_id=0, eos_token_id=0,
                resid_pdrop=config.dropout, embd_pdrop=config.dropout, attn_pdrop=config.dropout,
            )
        )  # fmt: skip
        with torch.no_grad():
            model.transformer.wpe.weight.mul_(config.position_std / model.config.initializer_range)
    model.config.max_new_tokens = num_loa_vectors  # where the hub's pipeline looks for the length of LOA
    if num_speech_vectors not in (None, num_loa_vectors):
        model.config.num_speech_vectors = num_speech_vectors
    return model


class LOAGenerator(nn.Module):
    """Conditions => LOA.

    Positions are counted over the attention mask, so padding in a batch does not move a prompt's vectors: a prompt
    has the same LOA alone and beside longer ones. Phonemes are padded to one length in every batch; their padding is
    counted where there are any.
    """

    def __init__(self, gpt2: GPT2LMHeadModel, projection: ConditionProjection, condition_dropout: float = 0.0):
        super().__init__()
        fuse_gelu(gpt2)
        self.gpt2 = gpt2
        self.projection = projection
        self.condition_dropout = condition_dropout
        # Word embeddings have no part in this; a gradient that never comes would stop DDP.
        self.gpt2.transformer.wte.requires_grad_(False)

    @property
    def num_loa_vectors(self) -> int:
        return self.gpt2.config.max_new_tokens

    def num_vectors(self, speaks: bool) -> int:
        """Vectors of LOA of sounds, or of what a transcript says."""
        return getattr(self.gpt2.config, "num_speech_vectors", self.num_loa_vectors) if speaks else self.num_loa_vectors

    def positions(self, conditions: list[Condition], num_more: int) -> Tensor:
        """Each token's number among those that count, of the prefix and `num_more` vectors of LOA, (B, P + L)."""
        counted = F.pad(self.projection.counted(conditions), (0, num_more), value=1)
        return (counted.cumsum(1) - 1).clamp(min=0)

    @property
    def conditions(self) -> list[str]:
        """Names of what it reads, in order."""
        return self.projection.conditions

    def prefix(self, conditions: list[Condition]) -> Condition:
        """[CLAP, T5] => [SOS, CLAP, EOS, SOS, T5, EOS] in GPT-2's width, (B, P, D)."""
        return self.projection(conditions)

    def teacher_forced(self, conditions: list[Condition], loa: Tensor) -> Tensor:
        """Each vector predicted from the conditions and the true vectors before it, (B, L, D) (Equation 3)."""
        prefix = self.prefix(conditions)
        embeds = torch.cat([prefix.embedding, loa[:, :-1].to(prefix.embedding.dtype)], dim=1)  # (B, P + L - 1, D)
        mask = torch.cat([prefix.mask, prefix.mask.new_ones(loa.shape[0], loa.shape[1] - 1)], dim=1)
        hidden = self.gpt2.transformer(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=self.positions(conditions, loa.shape[1] - 1),
            use_cache=False,
        ).last_hidden_state
        return hidden[:, -loa.shape[1] :]

    def generate(
        self,
        conditions: list[Condition],
        num_vectors: int | None = None,
        use_cache: bool = True,
        loa_prefix: Tensor | None = None,
    ) -> Tensor:
        """LOA one vector after the other, (B, L, D). Differentiable: joint finetuning goes back through it.

        With `loa_prefix` (B, L', D) these are its first vectors, and GPT-2 continues them up to L.
        """
        num_vectors = num_vectors or self.num_loa_vectors
        prefix = self.prefix(conditions)
        given: list[Tensor] = []
        if loa_prefix is not None:
            given = [loa_prefix[:, :num_vectors].to(prefix.embedding)]
            num_vectors -= given[0].shape[1]
            mask = F.pad(prefix.mask, (0, given[0].shape[1]), value=1)
            prefix = Condition(torch.cat([prefix.embedding, *given], dim=1), mask)  # (B, P + L', D)
        if num_vectors == 0:
            return given[0]
        positions = self.positions(conditions, sum(loa.shape[1] for loa in given) + num_vectors - 1)
        plain = not (torch.is_grad_enabled() or self.training or self.gpt2.config.scale_attn_by_inverse_layer_idx)
        if use_cache and plain:
            return torch.cat([*given, self.generate_cached(prefix, positions, num_vectors)], dim=1)
        embeds, mask = prefix.embedding, prefix.mask
        cache = DynamicCache(config=self.gpt2.config) if use_cache else None
        vectors: list[Tensor] = []
        for _ in range(num_vectors):
            position_ids = positions[:, mask.shape[1] - embeds.shape[1] : mask.shape[1]]
            output = self.gpt2.transformer(
                inputs_embeds=embeds, attention_mask=mask, position_ids=position_ids,
                past_key_values=cache, use_cache=use_cache,
            )  # fmt: skip
            vectors.append(output.last_hidden_state[:, -1:])
            embeds = vectors[-1] if use_cache else torch.cat([embeds, vectors[-1]], dim=1)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        return torch.cat([*given, *vectors], dim=1)

    def generate_cached(self, prefix: Condition, positions: Tensor, num_vectors: int) -> Tensor:
        """`generate` without gradients or dropout, (B, L, D): all keys and values are allocated once, and one mask.

        `positions` (B, P + L - 1).
        """
        gpt2: Any = self.gpt2.transformer
        start, stop = prefix.mask.shape[1], prefix.mask.shape[1] + num_vectors - 1
        mask = F.pad(prefix.mask, (0, num_vectors - 1), value=1)  # (B, P + L - 1)
        cache = DynamicCache(config=self.gpt2.config)
        hidden = gpt2(
            inputs_embeds=prefix.embedding, attention_mask=prefix.mask, position_ids=positions[:, :start],
            past_key_values=cache, use_cache=True,
        ).last_hidden_state  # fmt: skip
        layers: Any = cache.layers
        kv_cache = [[F.pad(t, (0, 0, 0, num_vectors - 1)) for t in (layer.keys, layer.values)] for layer in layers]
        readable = None if mask.all() else mask.bool()[:, None, None]  # (B, 1, 1, P + L - 1)
        vectors = [hidden[:, -1]]
        for index in range(start, stop):
            x = vectors[-1] + gpt2.wpe(positions[:, index])  # (B, D)
            for block, (keys, values) in zip(gpt2.h, kv_cache):
                x = step(block, x, keys, values, index, readable)
            vectors.append(gpt2.ln_f(x))
        return torch.stack(vectors, dim=1)


def step(block: Any, x: Tensor, keys: Tensor, values: Tensor, index: int, readable: Tensor | None) -> Tensor:
    """A block of GPT-2 on one token (B, D), noted at `index` of the keys and values (B, heads, N, D / heads)."""
    token = block.attn.c_attn(block.ln_1(x)).unflatten(1, (3, keys.shape[1], -1))
    query, keys[:, :, index], values[:, :, index] = token.unbind(1)  # (B, heads, D / heads)
    mask = None if readable is None else readable[..., : index + 1]
    read = F.scaled_dot_product_attention(query[:, :, None], keys[:, :, : index + 1], values[:, :, : index + 1], mask)
    x = x + block.attn.c_proj(read.flatten(1))
    return x + block.mlp(block.ln_2(x))
