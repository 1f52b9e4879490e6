"""Speaker embeddings of the package resemblyzer, which holds the weights: GE2E (Wan et al. 2018, arXiv:1710.10467).

A clip is normalised to -30 dB, cut free of pauses, and embedded in windows of 1.6 s that overlap by half; the mean of
them, at length 1, is its embedding.

Shapes: B clips, T samples, P windows, F = 160 frames, M = 40 mel bins, D = 256.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...checkpoints import digests, load_into
from ...libraries import import_library
from .backend import Backend, Embedder, Encoded

RATE = 16_000  # Hz
NUM_MEL_BINS, NUM_LAYERS, WIDTH = 40, 3, 256
WINDOWS_PER_SECOND, MIN_COVERAGE = 1.3, 0.75  # the package's own: a last window with less sound is dropped


class SpeakerEncoder(nn.Module):
    """mel (P, F, M) => embeddings (P, D), not negative, of length 1."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(NUM_MEL_BINS, WIDTH, NUM_LAYERS, batch_first=True)
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, mel: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(mel)
        return F.normalize(F.relu(self.linear(hidden[-1])), dim=1)


def load_resemblyzer(path: Path, device: str) -> Embedder:
    audio: Any = import_library("resemblyzer.audio")
    slices_of = import_library("resemblyzer.voice_encoder").VoiceEncoder.compute_partial_slices
    model = SpeakerEncoder()
    stored = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    load_into(model, {name: value for name, value in stored.items() if name in model.state_dict()}, path)
    model = model.eval().to(device)

    def embed(waveform: np.ndarray) -> Tensor:  # (T,) => (D,)
        voice = audio.preprocess_wav(waveform) if waveform.any() else waveform
        voice = voice if len(voice) else waveform  # nothing that the detector takes for a voice
        cuts, windows = slices_of(len(voice), WINDOWS_PER_SECOND, MIN_COVERAGE)
        mel = audio.wav_to_mel_spectrogram(np.pad(voice, (0, max(0, cuts[-1].stop - len(voice)))))
        batch = torch.from_numpy(np.stack([mel[window] for window in windows]))  # (P, F, M)
        return F.normalize(model(batch.to(device)).mean(dim=0), dim=0)

    def encode(waveform: Tensor) -> Encoded:  # (B, T) => (B, 1, D)
        return torch.stack([embed(row) for row in waveform.numpy()]).unsqueeze(1), None

    return Embedder(RATE, encode, min_samples=RATE // 10, weights=digests(path))


BACKEND = Backend(load=load_resemblyzer, gives=frozenset({"embeddings", "speakers"}), package="resemblyzer")
