"""YAMNet, Google's tagger of AudioSet's classes: a MobileNet (arXiv:1704.04861) on log-mels of 0.96 s.

Its weights are a .npz of plain arrays, with every batch norm folded into the convolution before it and kernels as
TensorFlow Lite stores them.

Shapes: B clips, T samples, R frames of 0.975 s every 0.48 s, D = 1,024, K = 521 classes.
"""

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm2_pl import audio
from audioldm2_pl.errors import UserError

from ...checkpoints import SkipInit, digests, load_into
from .backend import Backend, Embedder, Encoded, on_device

SAMPLE_RATE = 16_000  # Hz
WINDOW, HOP, NUM_FFT = 400, 160, 512  # samples, of the spectrogram
NUM_MEL_BINS, NUM_FRAMES = 64, 96  # 125 Hz to 7.5 kHz
PATCH, PATCH_HOP = 15_600, 7_680  # samples: what the network sees at a time, and from one to the next
WIDTHS = (64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)  # of the layers behind the first
STRIDED = (1, 3, 5, 11)  # of them, those that halve frames and bins
NUM_CLASSES = 521


class SamePadded(nn.Conv2d):
    """TensorFlow's "same": of an odd number of padded rows the surplus is below and to the right."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, F, M) => (B, C', F / stride, M / stride)"""
        first = 1 if self.stride == (1, 1) else 0
        return super().forward(F.pad(x, (first, 1, first, 1)))


class Separable(nn.Module):
    """A depthwise and a pointwise convolution, a ReLU behind each."""

    def __init__(self, num_in: int, num_out: int, stride: int):
        super().__init__()
        self.depthwise_conv = SamePadded(num_in, num_in, 3, stride, groups=num_in)
        self.pointwise_conv = nn.Conv2d(num_in, num_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, F, M) => (B, C', F / stride, M / stride)"""
        return F.relu(self.pointwise_conv(F.relu(self.depthwise_conv(x))))


class YAMNet(nn.Module):
    """waveform (B, T) at 16 kHz => embeddings (B, R, D), the mean of its frames' logits (B, K).

    Sound behind the last whole frame is dropped.
    """

    window: Tensor
    filters: Tensor

    def __init__(self):
        super().__init__()
        self.first = SamePadded(1, 32, 3, 2)
        self.layers = nn.ModuleList(
            Separable(num_in, num_out, 2 if i in STRIDED else 1)
            for i, (num_in, num_out) in enumerate(zip((32, *WIDTHS), WIDTHS))
        )
        self.dense = nn.Linear(WIDTHS[-1], NUM_CLASSES)
        filters = audio.mel_filters(NUM_FFT, NUM_MEL_BINS, (125.0, 7500.0), SAMPLE_RATE, kaldi=True)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def log_mel(self, patches: Tensor) -> Tensor:
        """(P, 15,600) => (P, 1, 96, 64), natural logarithm of mel magnitudes + 0.001"""
        frames = patches.unfold(1, WINDOW, HOP)[:, :NUM_FRAMES] * self.window
        return ((torch.fft.rfft(frames, NUM_FFT).abs() @ self.filters) + 0.001).log().unsqueeze(1)

    def forward(self, waveform: Tensor) -> Encoded:
        patches = waveform.unfold(1, PATCH, PATCH_HOP)  # (B, R, 15,600)
        x = F.relu(self.first(self.log_mel(patches.flatten(0, 1))))
        for layer in self.layers:
            x = layer(x)
        embeddings = x.mean(dim=(2, 3)).unflatten(0, patches.shape[:2])  # (B, R, D)
        return embeddings, self.dense(embeddings).mean(dim=1)


def tensors_of(path: Path) -> dict[str, Tensor]:
    """The file's arrays under this module's names, kernels with their channels first. Nothing in it is unpickled."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(file[name]).float() for name in file.files}
    except (OSError, ValueError, BadZipFile, EOFError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not an .npz of arrays ({error}); fetch it again") from None
    state = {}
    for name, value in arrays.items():
        layer, _, rest = name.partition(".")
        number = layer.removeprefix("layer")
        if number.isdigit():
            name = rest.replace("conv", "first", 1) if number == "1" else f"layers.{int(number) - 2}.{rest}"
        if value.dim() == 4:
            value = value.permute(3, 0, 1, 2) if "depthwise" in name else value.permute(0, 3, 1, 2)
        state[name.replace(".kernel", ".weight")] = value
    return state


def load_yamnet(path: Path, device: str) -> Embedder:
    with SkipInit():
        model = YAMNet()
    load_into(model, tensors_of(path), path)
    model = on_device(model, device)

    def encode(waveform: Tensor) -> Encoded:  # (B, T) => (B, R, D), (B, K)
        return model(waveform.to(device))

    return Embedder(SAMPLE_RATE, encode, min_samples=PATCH, weights=digests(path))


BACKEND = Backend(load=load_yamnet, gives=frozenset({"embeddings", "logits"}))
