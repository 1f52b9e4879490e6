"""PANNs' CNN14 (Kong et al. 2020, arXiv:1912.10211) under the parameter names of its published checkpoints.

Shapes: B clips, T samples, F frames, K classes.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...checkpoints import CheckpointSource, SkipInit, digests, load_into, read_state
from .backend import Backend, Embedder, Encoded, on_device

WIDTHS = (64, 128, 256, 512, 1024, 2048)  # channels of the six blocks
NUM_MEL_BINS, NUM_CLASSES = 64, 527
MEL = "logmel_extractor.melW"  # filters of the mel, stored in the checkpoint


class ConvBlock(nn.Module):
    def __init__(self, num_in: int, num_out: int):
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(num_out), nn.BatchNorm2d(num_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, F, M) => (B, C', F, M)"""
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class CNN14(nn.Module):
    """waveform (B, T) => embedding (B, 2048), logits (B, K). Windows of 32 ms, every 10 ms."""

    filters: Tensor

    def __init__(self, sample_rate: int):
        super().__init__()
        self.num_fft, self.hop_length = sample_rate * 32 // 1000, sample_rate // 100
        self.bn0 = nn.BatchNorm2d(NUM_MEL_BINS)
        for i, (num_in, num_out) in enumerate(zip((1, *WIDTHS), WIDTHS), start=1):
            setattr(self, f"conv_block{i}", ConvBlock(num_in, num_out))
        self.fc1 = nn.Linear(WIDTHS[-1], WIDTHS[-1])
        self.fc_audioset = nn.Linear(WIDTHS[-1], NUM_CLASSES)
        self.register_buffer("filters", torch.empty(self.num_fft // 2 + 1, NUM_MEL_BINS))

    def log_mel(self, waveform: Tensor) -> Tensor:
        """(B, T) => (B, 1, F, 64), dB"""
        window = torch.hann_window(self.num_fft, device=waveform.device)
        spectrum = torch.stft(
            waveform, self.num_fft, self.hop_length, window=window, pad_mode="reflect", return_complex=True
        )  # (B, num_fft // 2 + 1, F)
        power = spectrum.real.square() + spectrum.imag.square()
        return 10 * (power.transpose(1, 2) @ self.filters).clamp(min=1e-10).log10().unsqueeze(1)

    def forward(self, waveform: Tensor) -> Encoded:
        x = self.bn0(self.log_mel(waveform).transpose(1, 3)).transpose(1, 3)
        for i in range(1, len(WIDTHS) + 1):
            x = getattr(self, f"conv_block{i}")(x)
            x = F.avg_pool2d(x, 2) if i < len(WIDTHS) else x
        x = x.mean(dim=3)  # (B, 2048, F / 32)
        embedding = F.relu(self.fc1(x.amax(dim=2) + x.mean(dim=2)))
        return embedding, self.fc_audioset(embedding)


def load_panns(path: Path, device: str) -> Embedder:
    """The sample rate is in the file's name."""
    rate = next((hz for mark, hz in (("_8k", 8_000), ("_16k", 16_000)) if mark in path.name), 32_000)
    with SkipInit():
        model = CNN14(rate)
    state = read_state(path, "bn0.weight")
    state = {("filters" if key == MEL else key): tensor for key, tensor in state.items()}
    load_into(model, {k: v for k, v in state.items() if not k.startswith("spectrogram_extractor.")}, path)
    model = on_device(model, device)

    def encode(waveform: Tensor) -> Encoded:  # (B, T) => (B, R, D), and logits (B, K) where there are some
        embedding, logits = model(waveform.to(device))
        return embedding.unsqueeze(1), logits

    return Embedder(rate, encode, min_samples=rate // 2, weights=digests(path))


RECORD = "https://zenodo.org/record/3987831/files/"
SOURCES = {
    name: CheckpointSource(RECORD + name.replace("=", "%3D"))
    for name in ("Cnn14_mAP=0.431.pth", "Cnn14_16k_mAP=0.438.pth", "Cnn14_8k_mAP=0.416.pth")
}
BACKEND = Backend(load=load_panns, gives=frozenset({"embeddings", "logits"}), sources=SOURCES)
