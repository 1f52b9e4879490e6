"""PaSST (Koutini et al. 2022, arXiv:2110.05069) from hear21passt, at most 10 s; as deep as its checkpoint."""

import contextlib
import io
from pathlib import Path

from torch import Tensor

from ...checkpoints import CheckpointSource, SkipInit, digests, load_into, read_state
from ...libraries import import_library
from .backend import Backend, Embedder, Encoded

RATE, HOP = 32_000, 320  # Hz, samples
NUM_CLASSES = 527


def load_passt(path: Path, device: str) -> Embedder:
    passt = import_library("hear21passt.models.passt")
    state = read_state(path, "patch_embed.proj.weight")
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    with contextlib.redirect_stdout(io.StringIO()), SkipInit():
        mel = import_library("hear21passt.models.preprocess").AugmentMelSTFT(
            n_mels=128, sr=RATE, win_length=800, hopsize=HOP, n_fft=1024, fmin_aug_range=10, fmax_aug_range=2000
        )
        net = passt.PaSST(stride=10, img_size=(128, 998), depth=max(depth, 1), distilled=True)
        model = import_library("hear21passt.wrapper").PasstBasicWrapper(mel=mel, net=net, mode="all")
    load_into(net, state, path)
    model = model.eval().to(device)

    def encode(waveform: Tensor) -> Encoded:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints the shapes of its first call
            both = model(waveform.to(device))  # (B, K + D)
        return both[:, None, NUM_CLASSES:], both[:, :NUM_CLASSES]

    return Embedder(RATE, encode, min_samples=16 * HOP, weights=digests(path))  # a patch is 16 frames


BACKEND = Backend(
    load=load_passt,
    gives=frozenset({"embeddings", "logits"}),
    sources={
        "passt-s-f128-p16-s10-ap.476-swa.pt": CheckpointSource(
            "https://github.com/kkoutini/PaSST/releases/download/v0.0.1-audioset/passt-s-f128-p16-s10-ap.476-swa.pt"
        )
    },
)
