"""transformers' Whisper: the text of speech by greedy decoding, one clip at a time (30 s at most each)."""

from pathlib import Path

import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from audioldm2_pl.audio import load_waveform
from audioldm2_pl.conditioners.pretrained import load_pretrained
from audioldm2_pl.errors import UserError

from ...checkpoints import CheckpointSource, digests
from .backend import Backend, Embedder

RATE = 16_000  # Hz
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def load_whisper(path: Path, device: str) -> Embedder:
    if not (path / "config.json").is_file():
        raise UserError(f"{path}: no Whisper here; put the files of one there, e.g. of openai/whisper-base")
    processor = load_pretrained(WhisperProcessor, str(path))
    model = load_pretrained(WhisperForConditionalGeneration, str(path)).to(device).eval()

    @torch.no_grad()
    def transcribe(paths: list[Path]) -> list[str]:
        texts = []
        for file in paths:
            waveform = load_waveform(file, RATE)
            features = processor(waveform, sampling_rate=RATE, return_tensors="pt").input_features
            tokens = model.generate(features.to(device), do_sample=False)
            texts += processor.batch_decode(tokens, skip_special_tokens=True)
        return texts

    files = tuple(sorted(file.name for file in path.iterdir() if file.is_file()))
    return Embedder(RATE, transcribe=transcribe, weights=digests(path, files))


BACKEND = Backend(
    load=load_whisper,
    gives=frozenset({"transcripts"}),
    sources={"whisper-base": CheckpointSource(hub="openai/whisper-base", files=FILES)},
)
