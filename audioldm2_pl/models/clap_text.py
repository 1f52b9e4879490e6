"""CLAP for text alone, as AudioLDM 1's published folders hold it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from audioldm2_pl.errors import UserError
from audioldm2_pl.models.condition import Condition
from audioldm2_pl.tokens import tokenize, unread


class CLAPText(nn.Module):
    """The text half of `conditioners.CLAP`: one L2-normalised vector (B, 1, D) a prompt."""

    def __init__(self, model: transformers.ClapTextModelWithProjection, tokenizer):
        super().__init__()
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.max_text_tokens = model.config.max_position_embeddings - 2

    @property
    def embedding_dim(self) -> int:
        return self.model.config.projection_dim

    def encode_text(self, texts: Sequence[str]) -> Condition:
        tokens = tokenize(self.tokenizer, texts, self.max_text_tokens).to(self.model.device)
        output = self.model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        embedding = F.normalize(output.text_embeds, dim=-1)[:, None]
        return Condition(embedding, torch.ones(embedding.shape[:2], dtype=torch.bool, device=embedding.device))

    def unread(self, text: str) -> list[str]:
        return unread("CLAP", self.tokenizer, text, self.max_text_tokens)

    def encode_audio(self, waveform: Tensor, sample_rate: int) -> Condition:
        raise UserError(
            "this model's text_encoder/ holds CLAP for text alone, which cannot choose among candidates or train; "
            "put a whole CLAP with its feature_extractor/ there"
        )
