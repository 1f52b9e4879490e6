"""LAION's CLAP (Wu et al. 2023, arXiv:2211.06687), its checkpoint opened as transformers' ClapModel, with the
tokenizer in roberta-base/ beside it. Sizes are the checkpoint's. A checkpoint with feature fusion needs `laion_clap`.
"""

from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor
from transformers import RobertaTokenizer

from audioldm2_pl.conditioners.clap import CLAPMel
from audioldm2_pl.conditioners.pretrained import load_pretrained
from audioldm2_pl.conditioners.tokenizers import tokenize
from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.original.checkpoint import Checkpoint
from audioldm2_pl.hub.original.clap import OPTIONAL, build_clap, feature_extractor

from ...checkpoints import CheckpointSource, SkipInit, digests, find_checkpoint
from .backend import Backend, Embedder, Encoded

MAX_TOKENS = 77  # of a caption, as laion_clap cuts it
FOLDER = "https://huggingface.co/lukewys/laion_clap/resolve/main/"
CHECKPOINTS = (
    "music_speech_audioset_epoch_15_esc_89.98.pt",
    "music_audioset_epoch_15_esc_90.14.pt",
    "music_speech_epoch_15_esc_89.25.pt",
    "630k-audioset-best.pt",
    "630k-audioset-fusion-best.pt",
    "630k-best.pt",
    "630k-fusion-best.pt",
)
ROBERTA = CheckpointSource(hub="FacebookAI/roberta-base", files=("tokenizer.json", "tokenizer_config.json"))
SOURCES = {"roberta-base": ROBERTA, **{name: CheckpointSource(FOLDER + name) for name in CHECKPOINTS}}


def load_tokenizer(checkpoint: Path, vocabulary: int) -> tuple[RobertaTokenizer, dict[str, str]]:
    """The tokenizer beside a checkpoint, and its file's sha256; UserError where its tokens are not the checkpoint's."""
    path = find_checkpoint(checkpoint.parent, "roberta-base", ROBERTA)
    tokenizer = load_pretrained(RobertaTokenizer, str(path))
    if len(tokenizer) != vocabulary:
        raise UserError(f"{path}: {len(tokenizer)} tokens, but {checkpoint.name} has {vocabulary}")
    return tokenizer, digests(path, ("tokenizer.json",))


def cut(waveform: Tensor, num_samples: int) -> Tensor:
    """(B, T) => at most (B, num_samples): laion_clap's random cut under numpy's seed 0, the same every time."""
    spare = waveform.shape[1] - num_samples
    start = np.random.RandomState(0).randint(0, spare + 1) if spare > 0 else 0
    return waveform[:, start : start + num_samples]


def load_clap(path: Path, device: str) -> Embedder:
    checkpoint = Checkpoint(path)
    if not checkpoint.prefixes["clap"]:
        raise UserError(f"{path}: not a checkpoint of LAION's CLAP with HTSAT and RoBERTa")
    if any("fusion_model" in name for name in checkpoint.tensors):
        raise UserError(f"{path}: a CLAP with feature fusion; give backend: laion_clap")
    with SkipInit():
        model = checkpoint.convert("clap", build_clap, lambda name: name in OPTIONAL).eval().to(device)
    tokenizer, digest = load_tokenizer(path, model.config.text_config.vocab_size)
    extractor = feature_extractor(model)
    mel = CLAPMel(extractor).to(device)

    def encode(waveform: Tensor) -> Encoded:  # (B, T) => (B, R, D), and logits (B, K) where there are some
        log_mel = mel(cut(waveform, mel.num_samples).to(device))
        return F.normalize(model.get_audio_features(input_features=log_mel).pooler_output, dim=-1).unsqueeze(1), None

    def encode_text(texts: list[str]) -> Tensor:
        tokens = tokenize(tokenizer, texts, MAX_TOKENS).to(device)
        output = model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return F.normalize(output.pooler_output, dim=-1)  # (texts, D)

    weights = {**digests(path), **digest}
    scale = float(model.logit_scale_a.exp())
    return Embedder(extractor.sampling_rate, encode, encode_text=encode_text, logit_scale=scale, weights=weights)


BACKEND = Backend(
    load=load_clap,
    gives=frozenset({"embeddings", "caption_embeddings", "prompt_embeddings"}),
    sources=SOURCES,
    companions=("roberta-base",),
)
