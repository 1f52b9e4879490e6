"""librosa's tempo and chroma of music: no network, and nothing to download."""

from pathlib import Path

import numpy as np

from audioldm2_pl.audio import load_waveform

from ...checkpoints import digests
from ...libraries import import_library
from .backend import Backend, Embedder

RATE = 16_000  # Hz
HOP_LENGTH = 256  # of the onset strength: 16 ms
NUM_FFT = 4096  # of the chroma
FILES = ("rhythm.py", "spectral.py")


def load_librosa(path: Path, device: str) -> Embedder:
    feature = import_library("librosa").feature

    def rate(paths: list[Path]) -> dict[str, np.ndarray]:  # files => "tempo_bpm" (N,), "chroma" (N, 12) from C on
        waveforms = [load_waveform(file, RATE) for file in paths]
        tempos = [float(feature.tempo(y=x, sr=RATE, hop_length=HOP_LENGTH)[0]) for x in waveforms]
        chromas = [feature.chroma_stft(y=x, sr=RATE, n_fft=NUM_FFT, tuning=0.0).mean(axis=1) for x in waveforms]
        return {"tempo_bpm": np.array(tempos), "chroma": np.array(chromas)}

    return Embedder(RATE, rate=rate, weights=digests(path, FILES))


BACKEND = Backend(load=load_librosa, gives=frozenset({"tempo_bpm", "chroma"}), package="librosa")
