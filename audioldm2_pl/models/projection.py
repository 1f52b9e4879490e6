"""Conditions => GPT-2's prefix: [SOS, condition, EOS] for each of them, in GPT-2's width (paper §III-C).

Of two conditions the parameters and config.json are those of diffusers' `AudioLDM2ProjectionModel`, so that either
class opens what the other wrote; further ones count on.

Letters: B batch, L vectors of a condition, P of the prefix, D width.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from audioldm2_pl.conditioners.condition import Condition, read_names, write_names
from audioldm2_pl.weights import read_weights

PUBLISHED = ("clap", "t5")  # the conditions of folders that name none
PUBLISHED_SPEECH = ("clap", "phonemes")
WIDTH_KEY = re.compile(r"text_encoder(_\d+)?_dim")


def numbered(name: str, index: int) -> str:
    """diffusers' names: projection, projection_1, projection_2."""
    return name if index == 0 else f"{name}_{index}"


class ConditionProjection(nn.Module):
    """A linear map and the embeddings of SOS and EOS for each condition."""

    def __init__(self, condition_widths: Mapping[str, int], width: int, num_phonemes: int | None = None):
        """
        Args:
            condition_widths: channels of each condition, in the order of the prefix.
            width: GPT-2's, D.
            num_phonemes: the length that "phonemes" always have; learned positions are added to them.
        """
        super().__init__()
        self.condition_widths = dict(condition_widths)
        self.num_phonemes = num_phonemes if "phonemes" in condition_widths else None
        for index, channels in enumerate(condition_widths.values()):
            self.add_module(numbered("projection", index), nn.Linear(channels, width))
            for name in ("sos_embed", "eos_embed"):
                self.register_parameter(numbered(name, index), nn.Parameter(torch.ones(width)))
        if self.num_phonemes is not None:
            positions = torch.zeros(1, condition_widths["phonemes"], self.num_phonemes)
            self.learnable_positional_embedding = nn.Parameter(positions)

    @property
    def conditions(self) -> list[str]:
        return list(self.condition_widths)

    @property
    def width(self) -> int:
        return len(self.sos_embed)  # type: ignore[arg-type]

    def forward(self, conditions: Sequence[Condition]) -> Condition:
        """Conditions (B, L, channels), in their order => the prefix (B, P, D).

        One of which nothing is real is masked with its SOS and EOS. Raises ValueError for another number of conditions.
        """
        if len(conditions) != len(self.condition_widths):
            raise ValueError(f"GPT-2 reads {len(self.condition_widths)} conditions, got {len(conditions)}")
        embeddings, masks = [], []
        for index, (name, condition) in enumerate(zip(self.condition_widths, conditions)):
            vectors = condition.embedding  # (B, L, channels)
            if name == "phonemes" and self.num_phonemes is not None:
                vectors = vectors + self.learnable_positional_embedding.transpose(1, 2)
            vectors = getattr(self, numbered("projection", index))(vectors)  # (B, L, D)
            sos, eos = (
                getattr(self, numbered(mark, index)).expand(vectors.shape[0], 1, -1)
                for mark in ("sos_embed", "eos_embed")
            )
            mask = condition.mask.long()
            present = mask.amax(1, keepdim=True)  # (B, 1)
            embeddings += [sos, vectors, eos]
            masks += [present, mask, present]
        return Condition(torch.cat(embeddings, dim=1), torch.cat(masks, dim=1))

    def counted(self, conditions: Sequence[Condition]) -> torch.Tensor:
        """Conditions (B, L, channels) => which of the prefix's vectors count as positions, (B, P).

        Those that are real, and the padding of phonemes, as in the authors' code and in the published speech models.
        """
        masks = []
        for name, condition in zip(self.condition_widths, conditions):
            mask = condition.mask.long()
            present = mask.amax(1, keepdim=True)  # (B, 1)
            inner = present.expand_as(mask) if name == "phonemes" and self.num_phonemes is not None else mask
            masks += [present, inner, present]
        return torch.cat(masks, dim=1)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes weights and config.json as diffusers does, and the conditions' names beside them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        dims = {
            "text_encoder_dim" if index == 0 else f"text_encoder_{index}_dim": channels
            for index, channels in enumerate(self.condition_widths.values())
        }
        config = {
            "_class_name": "AudioLDM2ProjectionModel",
            "_diffusers_version": "0.42.0",
            **dims,
            "langauge_model_dim": self.width,  # diffusers' spelling
            "use_learned_position_embedding": self.num_phonemes is not None or None,
            "max_seq_length": self.num_phonemes,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
        write_names(folder, {"conditions": self.conditions})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "ConditionProjection":
        """Opens a folder that `save_pretrained`, ours or diffusers', wrote, in float32.

        Raises UserError where its weights are missing or do not fit, OSError or ValueError where its config does not.
        """
        folder = Path(folder)
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        keys = [
            "text_encoder_dim",
            *sorted(key for key in config if key.startswith("text_encoder_") and key[13].isdigit()),
        ]
        learned = bool(config.get("use_learned_position_embedding"))
        names = read_names(folder).get("conditions") or (PUBLISHED_SPEECH if learned else PUBLISHED)
        if len(names) != len(keys):
            raise ValueError(f"{len(names)} conditions are named, but {len(keys)} have a width")
        widths = {name: config[key] for name, key in zip(names, keys)}
        with torch.device("meta"):
            projection = cls(widths, config["langauge_model_dim"], config.get("max_seq_length") if learned else None)
        projection.load_state_dict(read_weights(folder), assign=True)
        return projection
