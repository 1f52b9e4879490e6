"""LAION's CLAP as its own package computes it: for the very numbers that laion_clap prints, and for feature fusion."""

import contextlib
import io
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from audioldm2_pl.errors import UserError

from ...checkpoints import SkipInit, digests, load_into, read_state
from ...libraries import import_library
from .backend import Backend, Embedder, Encoded
from .clap import SOURCES, load_tokenizer

EMBEDDINGS = "text_branch.embeddings.word_embeddings.weight"
SIZES = {96: "HTSAT-tiny", 128: "HTSAT-base", 256: "HTSAT-large"}  # by the width of a patch
MAX_SAMPLES = 480_000  # longer clips are cut at random


class Stub:
    """Stands in for a class of transformers: `from_pretrained` gives what is set here instead of asking a model hub."""

    def __init__(self):
        self.given: Any = None

    def from_pretrained(self, *_: Any, **__: Any) -> Any:
        return self.given


TOKENIZER, TEXT_ENCODER = Stub(), Stub()


def import_laion_clap() -> ModuleType:
    """The package asks a model hub for tokenizers while it is imported, and for RoBERTa when a module is built: it is
    imported with stubs in the place of these classes, and keeps them."""
    if "laion_clap" not in sys.modules:
        stub = ModuleType("transformers")
        for kind in ("Bert", "Roberta", "Bart"):
            setattr(stub, f"{kind}Tokenizer", TOKENIZER)
            setattr(stub, f"{kind}Model", TEXT_ENCODER)
        import_library("transformers.tokenization_utils_base")
        sys.modules["transformers"] = stub
        try:
            import_library("laion_clap")
        finally:
            sys.modules["transformers"] = transformers
    return sys.modules["laion_clap"]


def roberta(vocabulary: int, num_layers: int = 12) -> transformers.RobertaModel:
    """RoBERTa of the base's sizes, without its weights."""
    config = transformers.RobertaConfig(
        vocab_size=vocabulary,
        num_hidden_layers=num_layers,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    with SkipInit():
        return transformers.RobertaModel(config)


def build_module(tokenizer: Any, text_encoder: Any, **options: Any) -> Any:
    """laion_clap's CLAP_Module around a tokenizer and a RoBERTa of ours."""
    package = import_laion_clap()
    TOKENIZER.given, TEXT_ENCODER.given = tokenizer, text_encoder
    with contextlib.redirect_stdout(io.StringIO()):
        return package.CLAP_Module(**options)


@contextlib.contextmanager
def numpy_seed(seed: int) -> Iterator[None]:
    """numpy's global random numbers from `seed`, and afterwards where they were."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def load_laion_clap(path: Path, device: str) -> Embedder:
    """Sizes are the checkpoint's. Clips over 10 s, which the package cuts at random, are cut alike every time."""
    state = read_state(path, EMBEDDINGS)
    state.pop("text_branch.embeddings.position_ids", None)  # older transformers stored it
    width = len(state.get("audio_branch.patch_embed.proj.weight", ()))
    if width not in SIZES or EMBEDDINGS not in state:
        raise UserError(f"{path}: not a checkpoint of LAION's CLAP with HTSAT and RoBERTa")
    vocabulary = len(state[EMBEDDINGS])
    depth = len({key.split(".")[3] for key in state if key.startswith("text_branch.encoder.layer.")})
    tokenizer, digest = load_tokenizer(path, vocabulary)
    fusion = any("fusion_model" in key for key in state)
    text_encoder = roberta(vocabulary, depth)
    with SkipInit():
        module = build_module(tokenizer, text_encoder, enable_fusion=fusion, device=device, amodel=SIZES[width])
    load_into(module.model, state, path)
    module = module.eval()

    def encode(waveform: Tensor) -> Encoded:  # (B, T) => (B, R, D), and logits (B, K) where there are some
        # The cut of a long clip must not depend on its batch.
        batches = waveform.split(1) if waveform.shape[1] > MAX_SAMPLES else [waveform]
        embeddings = []
        for batch in batches:
            with numpy_seed(0):
                embeddings.append(module.get_audio_embedding_from_data(batch, use_tensor=True))
        return torch.cat(embeddings).unsqueeze(1), None

    encode_text = partial(module.get_text_embedding, use_tensor=True)
    scale, weights = float(module.model.logit_scale_a.exp()), {**digests(path), **digest}
    return Embedder(48_000, encode, encode_text=encode_text, logit_scale=scale, weights=weights)


BACKEND = Backend(
    load=load_laion_clap,
    gives=frozenset({"embeddings", "caption_embeddings", "prompt_embeddings"}),
    sources=SOURCES,
    companions=("roberta-base",),
)
