"""Meta's Audiobox Aesthetics (arXiv:2502.05139): four axes on WavLM, by the package audiobox-aesthetics, with the
weights of facebook/audiobox-aesthetics on the model hub. Code and weights are under CC BY 4.0: name them.

A clip, the mean of its channels, is rated in windows of 10 s, the last one padded and masked; each counts by the sound
that it holds, as in the package.

Shapes: W windows, T samples.
"""

from pathlib import Path

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from audioldm2_pl.audio import read_audio
from audioldm2_pl.errors import UserError, reason_of
from audioldm2_pl.tables import read_json

from ...checkpoints import CheckpointSource, SkipInit, digests, load_into
from ...libraries import import_library
from .backend import Backend, Embedder

RATE, WINDOW = 16_000, 160_000  # Hz, samples
AXES = ("CE", "CU", "PC", "PQ")
FILES = ("config.json", "model.safetensors")


def windows_of(path: Path) -> tuple[Tensor, Tensor]:
    """A file => windows (W, T), and which of their samples are sound (W, T)"""
    channels, rate = read_audio(path)
    waveform = torch.from_numpy(soxr.resample(channels.mean(axis=1), rate, RATE)).float()  # (T,)
    padding = (0, -len(waveform) % WINDOW)
    sound = torch.ones(len(waveform), dtype=torch.bool)
    return F.pad(waveform, padding).unflatten(0, (-1, WINDOW)), F.pad(sound, padding).unflatten(0, (-1, WINDOW))


def load_audiobox(path: Path, device: str) -> Embedder:
    network = import_library("audiobox_aesthetics.model.aes").AesMultiOutput
    config = read_json(path / "config.json")
    try:
        scales = {axis: (float(s["mean"]), float(s["std"])) for axis, s in config["target_transform"].items()}
        with SkipInit():
            model = network(**config)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{path / 'config.json'}: not Audiobox Aesthetics' ({reason_of(error)})") from None
    if set(scales) != set(AXES):
        raise UserError(f"{path / 'config.json'}: rates {', '.join(scales)}, not {', '.join(AXES)}")
    load_into(model, load_file(path / "model.safetensors"), path)
    model = model.eval().to(device)

    @torch.inference_mode()
    def rate(paths: list[Path]) -> dict[str, np.ndarray]:  # files => axis -> (N,)
        ratings: dict[str, list[float]] = {axis: [] for axis in AXES}
        for file in paths:
            windows, sound = windows_of(file)
            weights = sound.float().mean(dim=1)  # (W,)
            found = model({"wav": windows.unsqueeze(1).to(device), "mask": sound.unsqueeze(1).to(device)})
            for axis, (mean, std) in scales.items():
                points = found[axis].float().cpu() * std + mean  # (W,)
                ratings[axis].append(float((points * weights).sum() / weights.sum()))
        return {axis: np.array(values) for axis, values in ratings.items()}

    return Embedder(RATE, rate=rate, weights=digests(path, FILES))


BACKEND = Backend(
    load=load_audiobox,
    gives=frozenset({"aesthetics"}),
    sources={"audiobox-aesthetics": CheckpointSource(hub="facebook/audiobox-aesthetics", files=FILES)},
)
