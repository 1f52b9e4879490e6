"""VGGish (Hershey et al. 2017, arXiv:1609.09430) under the parameter names of torchvggish's checkpoint.

Embeddings are those before the last ReLU, without PCA and quantisation, as FAD tools take them.

Shapes: B clips, T samples, R examples of 0.96 s.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from audioldm2_pl import audio

from ...checkpoints import CheckpointSource, SkipInit, digests, load_into, read_state
from .backend import Backend, Embedder, on_device

SAMPLE_RATE = 16_000  # Hz
WINDOW, HOP, NUM_FFT = 400, 160, 512  # samples: 25 ms, 10 ms
NUM_MEL_BINS = 64  # between 125 Hz and 7.5 kHz
NUM_FRAMES = 96  # of an example
EXAMPLE_SAMPLES = WINDOW + (NUM_FRAMES - 1) * HOP  # 15,600: the shortest clip with one example


def mel_filters() -> Tensor:
    """Triangles on the mel scale (not in Hz), of height one: (257, 64)"""
    return audio.mel_filters(NUM_FFT, NUM_MEL_BINS, (125.0, 7500.0), SAMPLE_RATE, kaldi=True)


class VGGish(nn.Module):
    """waveform (B, T) at 16 kHz => embeddings (B, R, 128); what is left of the last 0.96 s is dropped."""

    window: Tensor
    filters: Tensor

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = []
        num_channels = 1
        for width, num_convolutions in ((64, 1), (128, 1), (256, 2), (512, 2)):
            for _ in range(num_convolutions):
                layers += [nn.Conv2d(num_channels, width, 3, padding=1), nn.ReLU()]
                num_channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(512 * 6 * 4, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 128)
        )
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("filters", mel_filters(), persistent=False)

    def log_mel(self, waveform: Tensor) -> Tensor:
        """(B, T) => (B, F, 64), magnitudes, natural logarithm of mel + 0.01"""
        frames = waveform.unfold(1, WINDOW, HOP) * self.window
        return ((torch.fft.rfft(frames, NUM_FFT).abs() @ self.filters) + 0.01).log()

    def forward(self, waveform: Tensor) -> Tensor:
        log_mel = self.log_mel(waveform)
        num_examples = log_mel.shape[1] // NUM_FRAMES
        examples = log_mel[:, : num_examples * NUM_FRAMES].reshape(-1, 1, NUM_FRAMES, NUM_MEL_BINS)
        x = self.features(examples).permute(0, 2, 3, 1).flatten(1)  # (B R, 6 · 4 · 512), channels last
        return self.embeddings(x).unflatten(0, (len(waveform), num_examples))


def load_vggish(path: Path, device: str) -> Embedder:
    with SkipInit():
        model = VGGish()
    load_into(model, read_state(path, "features.0.weight"), path)
    model = on_device(model, device)
    return Embedder(SAMPLE_RATE, lambda x: (model(x.to(device)), None), EXAMPLE_SAMPLES, weights=digests(path))


BACKEND = Backend(
    load=load_vggish,
    gives=frozenset({"embeddings"}),
    sources={
        "vggish-10086976.pth": CheckpointSource(
            "https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth"
        )
    },
)
