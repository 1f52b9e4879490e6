"""The iSTFT vocoder: log-mel => magnitudes and phases => waveform (Vocos, Siuzdak 2023, arXiv:2306.00814).

A ConvNeXt backbone works at the frame rate and predicts every frame's spectrum; the inverse Fourier transform does all
the upsampling. Between the two, rounds of Griffin and Lim's algorithm may make the predicted phases consistent with
the magnitudes; they are layers like any other, and gradients run through them.

Letters: B batch, F frames, M mel bins, T samples, D width, N samples in a Fourier transform, K = N / 2 + 1 of its bins.
"""

import dataclasses
import json
import math
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from audioldm2_pl.audio import AudioConfig, mel_centres, slaney_filters
from audioldm2_pl.errors import UserError
from audioldm2_pl.fields import bounded, check_fields
from audioldm2_pl.weights import read_weights

CLASS_NAME = "ISTFTVocoder"  # in config.json
MOMENTUM = 0.99  # of the fast Griffin-Lim algorithm (Perraudin et al. 2013)


@dataclass
class ISTFTConfig:
    """Defaults: Vocos' backbone, 13.5 M parameters."""

    hop_length: int = bounded(160, ge=1, le=65_536)  # samples to a frame; = audio.hop_length
    num_fft: int = bounded(640, ge=16, le=65_536)  # N, samples under a frame's Hann window
    hidden_size: int = bounded(512, ge=1, le=65_536)  # D, of the backbone
    intermediate_size: int = bounded(1536, ge=1, le=262_144)  # width inside a ConvNeXt block
    num_layers: int = bounded(8, ge=1, le=1_000)  # ConvNeXt blocks
    griffin_lim_rounds: int = bounded(2, ge=0, le=1_000)  # between network and inverse transform; 0: Vocos

    def __post_init__(self) -> None:
        check_fields(self, "vocoder.istft.")
        if (self.num_fft - self.hop_length) % 2 or self.num_fft < 2 * self.hop_length:
            raise UserError(
                f"vocoder.istft.num_fft={self.num_fft} has to be at least twice hop_length={self.hop_length}, and odd "
                "or even as that is"
            )


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution over time, LayerNorm, two linear layers with a GELU between them, layer scale."""

    def __init__(self, config: ISTFTConfig):
        super().__init__()
        width = config.hidden_size
        self.convolution = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, config.intermediate_size)
        self.contract = nn.Linear(config.intermediate_size, width)
        self.scale = nn.Parameter(torch.full((width,), 1 / config.num_layers))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, F, D) => (B, F, D)."""
        y = self.norm(self.convolution(x.transpose(1, 2)).transpose(1, 2))
        return x + self.scale * self.contract(F.gelu(self.expand(y)))


class ISTFTVocoder(nn.Module):
    """log-mel (B, F, M) => waveform (B, F · hop), of any peak.

    Frame f of the spectrum is centred on sample (f + 1/2) · hop, as `LogMel`'s frames are. A linear map from log-mel to
    log-magnitude runs beside the backbone.
    """

    def __init__(
        self, config: ISTFTConfig, num_mel_bins: int = 64, input_mean: float | None = None, input_std: float = 1.0
    ):
        """The backbone reads (x - mean) / std of log-mels x; None takes them as they are."""
        super().__init__()
        self.config = config
        self.num_mel_bins = num_mel_bins
        self.input_mean = input_mean
        self.input_std = input_std
        self.front_end: dict[str, Any] = {}  # fields of AudioConfig, as the folder notes them
        width, num_bins = config.hidden_size, config.num_fft // 2 + 1
        self.embed = nn.Conv1d(num_mel_bins, width, 7, padding=3)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.blocks = nn.ModuleList(ConvNeXtBlock(config) for _ in range(config.num_layers))
        self.last_norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, 2 * num_bins)
        self.log_magnitude = nn.Linear(num_mel_bins, num_bins)

    @torch.no_grad()
    def start_from(self, audio: AudioConfig) -> None:
        """Lets the linear map read the spectrum's envelope off the log-mels of `audio`.

        A log-mel less the logarithm of its filter's area is the log-magnitude at the filter's centre, which is
        interpolated between centres. A window of another length makes a tone louder in proportion, noise with its root;
        the mean of the two is taken. Training goes on from there: without it the vocoder learns several times as long.
        """
        with torch.device("cpu"):  # also where the vocoder is described on the meta device
            num_bins = self.config.num_fft // 2 + 1
            frequencies = torch.arange(num_bins) * (audio.sample_rate / self.config.num_fft)  # (K,)
            centres = torch.tensor(mel_centres(audio))  # (M,)
            after = torch.searchsorted(centres, frequencies).clamp(1, len(centres) - 1)  # (K,)
            share = ((frequencies - centres[after - 1]) / (centres[after] - centres[after - 1])).clamp(0, 1)
            weight = torch.zeros(len(frequencies), len(centres))
            weight.scatter_(1, after[:, None], share[:, None]).scatter_(1, after[:, None] - 1, 1 - share[:, None])
            area = slaney_filters(audio).sum(0).clamp(min=1e-4).log()  # (M,)
            bias = 0.75 * math.log(self.config.num_fft / audio.window_length) - weight @ area  # (K,)
        self.log_magnitude.weight.copy_(weight)
        self.log_magnitude.bias.copy_(bias)
        self.head.weight[: len(frequencies)] *= 0.1  # what the backbone adds to it starts small

    def spectrum(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        """log-mel (B, F, M) => magnitudes and phases, (B, F, K) each, in float32."""
        x = log_mel if self.input_mean is None else (log_mel - self.input_mean) / self.input_std
        x = self.norm(self.embed(x.transpose(1, 2)).transpose(1, 2))  # (B, F, D)
        for block in self.blocks:
            x = block(x)
        difference, phase = self.head(self.last_norm(x)).float().chunk(2, dim=2)  # (B, F, K) each
        log_magnitude = self.log_magnitude(log_mel).float() + difference  # (B, F, K)
        loudest = math.log(self.config.num_fft)  # four times what a sine of full scale reaches
        return log_magnitude.clamp(max=loudest).exp(), phase

    def forward(self, log_mel: Tensor) -> Tensor:
        magnitude, phase = self.spectrum(log_mel)  # (B, F, K) each
        # The meta device, where training's memory is counted, has no autocast.
        with nullcontext() if log_mel.is_meta else torch.autocast(log_mel.device.type, enabled=False):
            spectrum, before = torch.polar(magnitude, phase), None
            for _ in range(self.config.griffin_lim_rounds):
                rebuilt = self.analyse(self.synthesise(spectrum))  # (B, F, K)
                ahead = rebuilt if before is None else rebuilt + MOMENTUM * (rebuilt - before)
                spectrum, before = magnitude * ahead / (ahead.abs() + 1e-7), rebuilt
            return self.synthesise(spectrum)

    def synthesise(self, spectrum: Tensor) -> Tensor:
        """Complex spectrum (B, F, K) => waveform (B, F · hop): windowed frames, overlapped, added, and divided by what
        their squared windows add up to."""
        hop, num_fft = self.config.hop_length, self.config.num_fft
        window = torch.hann_window(num_fft, device=spectrum.device)
        num_frames = spectrum.shape[1]
        frames = torch.fft.irfft(spectrum, num_fft) * window  # (B, F, N)
        waveform = overlap_add(frames, hop)  # (B, F · hop and what the last frames overhang)
        weight = overlap_add(window.square().expand(1, num_frames, num_fft), hop)
        start = (num_fft - hop) // 2
        inside = slice(start, start + num_frames * hop)
        return waveform[:, inside] / weight[:, inside].clamp(min=1e-3)

    def analyse(self, waveform: Tensor) -> Tensor:
        """waveform (B, F · hop) => complex spectrum (B, F, K) of the frames that `synthesise` adds up."""
        hop, num_fft = self.config.hop_length, self.config.num_fft
        window = torch.hann_window(num_fft, device=waveform.device)
        padded = F.pad(waveform, ((num_fft - hop) // 2,) * 2)
        return torch.fft.rfft(padded.unfold(1, num_fft, hop) * window)

    def save_pretrained(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        sizes = {name: getattr(self, name) for name in ("num_mel_bins", "input_mean", "input_std", "front_end")}
        config = {"_class_name": CLASS_NAME, **dataclasses.asdict(self.config), **sizes}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "ISTFTVocoder":
        content = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        sizes = {f.name: content[f.name] for f in dataclasses.fields(ISTFTConfig)}
        with torch.device("meta"):
            vocoder = cls(ISTFTConfig(**sizes), content["num_mel_bins"], content["input_mean"], content["input_std"])
        vocoder.load_state_dict(read_weights(Path(folder)), assign=True)
        vocoder.front_end = content["front_end"]
        return vocoder.eval()


def overlap_add(frames: Tensor, hop: int) -> Tensor:
    """Frames (B, F, N), `hop` samples apart, added up: (B, F · hop + what the last ones overhang)."""
    num_parts = -(-frames.shape[2] // hop)  # hops that a frame covers
    parts = F.pad(frames, (0, num_parts * hop - frames.shape[2])).unflatten(2, (num_parts, hop))  # (B, F, parts, hop)
    shifted = [F.pad(part, (0, 0, i, num_parts - 1 - i)) for i, part in enumerate(parts.unbind(2))]
    return torch.stack(shifted).sum(0).flatten(1)
