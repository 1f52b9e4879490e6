"""FLAN-T5's encoder, for prompts: one vector a token.

Letters: B batch, L tokens, D embedding size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import transformers
from torch import nn

from audioldm2_pl.conditioners.condition import Condition
from audioldm2_pl.conditioners.pretrained import config_of, load_pretrained
from audioldm2_pl.conditioners.tokenizers import build_t5_tokenizer, tokenize, unread
from audioldm2_pl.fields import bounded
from audioldm2_pl.gelu import fuse_gelu

# Hub id -> channels, so that an experiment's lengths and sizes are known before anything is downloaded.
PUBLISHED_WIDTHS = {
    f"google/flan-t5-{size}": width
    for size, width in {"small": 512, "base": 768, "large": 1024, "xl": 2048, "xxl": 4096}.items()
}


@dataclass
class T5EncoderConfig:
    """The published FLAN-T5 encoder, or with `pretrained: null` a small one of the sizes below."""

    pretrained: str | None = "google/flan-t5-large"  # hub id or folder; null builds a small one
    max_length: int = bounded(128, ge=2, le=65_536)  # tokens of a prompt that are read, the end mark included
    words: list[str] = field(default_factory=list)  # that are one token each; others are spelt
    d_model: int = bounded(128, ge=1, le=65_536)  # size of the embedding
    num_layers: int = bounded(2, ge=1, le=1_000)
    num_heads: int = bounded(4, ge=1, le=1_024)
    d_kv: int = bounded(32, ge=1, le=65_536)  # size of one attention head
    d_ff: int = bounded(256, ge=1, le=65_536)  # width of the feed-forward layers
    dropout: float = bounded(0.0, ge=0, lt=1)  # while it trains

    @property
    def width(self) -> int:
        if self.pretrained is None:
            return self.d_model
        return PUBLISHED_WIDTHS.get(self.pretrained) or config_of(self.pretrained).get("d_model", self.d_model)

    @property
    def num_tokens(self) -> int:
        """Most vectors of a condition."""
        return self.max_length

    def build(self) -> "T5":
        return T5.build(self)


class T5(nn.Module):
    """texts => Condition (B, L, D): FLAN-T5's encoder, padded to the longest prompt (AudioLDM 2, section III-B).

    Prompts are cut at the tokenizer's `model_max_length`.
    """

    name = "t5"
    reads = "text"
    hub_classes: ClassVar = {
        "text_encoder_2": ("transformers", "T5EncoderModel"),
        "tokenizer_2": ("transformers", "T5Tokenizer"),
    }
    stored = ("t5", "t5_length")
    width_key = "d_model"  # of its config.json
    has_own_stage = False

    def __init__(self, model, tokenizer):
        super().__init__()
        fuse_gelu(model)
        self.model: transformers.T5EncoderModel = model.eval()
        self.tokenizer = tokenizer

    @classmethod
    def build(cls, config: T5EncoderConfig) -> "T5":
        """The pretrained encoder that the config names, or a small one with random weights."""
        if config.pretrained is not None:
            tokenizer = load_pretrained(transformers.AutoTokenizer, config.pretrained)
            tokenizer.model_max_length = config.max_length  # saved with it: AudioLDM2Pipeline cuts there, too
            model = load_pretrained(transformers.T5EncoderModel, config.pretrained, dtype=torch.float32)
            return cls(model, tokenizer)
        tokenizer = build_t5_tokenizer(config.words, config.max_length)
        sizes = transformers.T5Config(
            vocab_size=len(tokenizer),
            d_model=config.d_model,
            d_kv=config.d_kv,
            d_ff=config.d_ff,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            dropout_rate=config.dropout,
            feed_forward_proj="gated-gelu",
        )
        return cls(transformers.T5EncoderModel(sizes), tokenizer)

    @classmethod
    def open(cls, load: Callable[[str], Any]) -> "T5":
        """Out of a model folder; `load(sub-folder)` gives a part."""
        return cls(*map(load, cls.hub_classes))

    @property
    def width(self) -> int:
        return self.model.config.d_model

    def encode(self, inputs: Mapping[str, Any]) -> Condition:
        """(B, L, D) of the texts, or of their stored hidden states."""
        features = inputs.get("features", {})
        if "t5" in features:
            return Condition(features["t5"], features["t5_mask"])
        return self(inputs["text"])

    def empty(self) -> Condition:
        """Of no text: the end mark, (1, 1, D)."""
        return self([""])

    def unread(self, text: str) -> list[str]:
        return unread("T5", self.tokenizer, text, self.tokenizer.model_max_length)

    def parts(self) -> dict[str, Any]:
        return dict(zip(self.hub_classes, (self.model, self.tokenizer)))

    def forward(self, texts: Sequence[str]) -> Condition:
        """Texts => (B, L, D), padded to the longest."""
        tokens = tokenize(self.tokenizer, texts).to(self.model.device)
        mask = tokens["attention_mask"]  # (B, L)
        output = self.model(input_ids=tokens["input_ids"], attention_mask=mask)
        return Condition(output.last_hidden_state, mask.bool())
