"""AudioMAE's features, of a model folder's own audiomae/: an embedding that every run of this framework has.

Reconstruction makes it sensitive to degradations that taggers are trained to overlook (arXiv:2602.23958).

Shapes: B clips, T samples, R pieces of the length that AudioMAE reads, D its width.
"""

from math import ceil
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from audioldm2_pl.audio import AudioConfig, Fbank
from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.parts import load_part

from ...checkpoints import digests
from .backend import Backend, Embedder, Encoded

PART = "audiomae"
SAMPLE_RATE, HOP = 16_000, 160  # Hz, samples: those of the filter bank that AudioMAE was made for


def load_features(path: Path, device: str) -> Embedder:
    if path.name != PART:
        raise UserError(f"{path}: has to be called {PART}, as in a model folder")
    model = load_part(path.parent, PART).eval().to(device)
    num_samples = model.config.num_frames * HOP
    audio = AudioConfig(
        sample_rate=SAMPLE_RATE, clip_seconds=num_samples / SAMPLE_RATE, num_fbank_bins=model.config.num_bins
    )
    fbank = Fbank(audio).to(device)

    def encode(waveform: Tensor) -> Encoded:  # (B, T) => (B, R, D)
        num_pieces = ceil(waveform.shape[1] / num_samples)
        padded = F.pad(waveform.to(device), (0, num_pieces * num_samples - waveform.shape[1]))
        features = model.features(fbank(padded.unflatten(1, (num_pieces, num_samples)).flatten(0, 1)))
        return features.flatten(1, -2).mean(dim=1).unflatten(0, (len(waveform), num_pieces)), None

    weights = digests(path, tuple(sorted(file.name for file in path.iterdir() if file.is_file())))
    return Embedder(SAMPLE_RATE, encode, weights=weights)


BACKEND = Backend(load=load_features, gives=frozenset({"embeddings"}))
