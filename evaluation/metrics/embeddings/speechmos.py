"""Microsoft's DNSMOS from the package speechmos, which holds its networks: ratings of speech in windows of 9.01 s every
second, a shorter clip repeated. Runs in onnxruntime on the CPU."""

from pathlib import Path

import numpy as np

from audioldm2_pl.audio import load_waveform

from ...checkpoints import digests
from ...libraries import import_library
from .backend import Backend, Embedder

RATE = 16_000  # Hz
FILES = ("sig_bak_ovr.onnx", "model_v8.onnx")  # P.835, P.808
AXES = {"OVRL": "ovrl_mos", "SIG": "sig_mos", "BAK": "bak_mos", "P808": "p808_mos"}


def load_dnsmos(path: Path, device: str) -> Embedder:
    model = import_library("speechmos.dnsmos").DNSMOS(*(str(path / file) for file in FILES))

    def rate(paths: list[Path]) -> dict[str, np.ndarray]:  # files => axis -> (N,)
        found = [model(np.clip(load_waveform(file, RATE), -1, 1), RATE, False) for file in paths]
        return {axis: np.array([float(ratings[key]) for ratings in found]) for axis, key in AXES.items()}

    return Embedder(RATE, rate=rate, weights=digests(path, FILES))


BACKEND = Backend(load=load_dnsmos, gives=frozenset({"dnsmos"}), package="speechmos")
