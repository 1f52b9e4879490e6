"""EnCodec (Défossez et al. 2022, arXiv:2210.13438), mono, from transformers: latents before quantisation."""

from pathlib import Path
from typing import Any

import transformers
from torch import Tensor

from audioldm2_pl.conditioners.pretrained import load_pretrained
from audioldm2_pl.errors import UserError

from ...checkpoints import CheckpointSource, digests
from .backend import Backend, Embedder, Encoded

FILES = ("config.json", "model.safetensors")


def load_encodec(path: Path, device: str) -> Embedder:
    model: Any = load_pretrained(transformers.EncodecModel, str(path))
    if model.config.audio_channels != 1:
        raise UserError(f"{path}: {model.config.audio_channels} channels; use encodec_24khz, which is mono")
    encoder = model.encoder.eval().to(device)

    def encode(waveform: Tensor) -> Encoded:
        return encoder(waveform.to(device).unsqueeze(1)).transpose(1, 2), None  # (B, frames, D)

    return Embedder(model.config.sampling_rate, encode, weights=digests(path, FILES))


BACKEND = Backend(
    load=load_encodec,
    gives=frozenset({"embeddings"}),
    sources={"encodec_24khz": CheckpointSource(hub="facebook/encodec_24khz", files=FILES)},
)
