"""Sound in and out: files, waveforms, and the two spectrograms of AudioLDM 2.

`LogMel` feeds the VAE and the vocoder, `Fbank` feeds AudioMAE. Both are batched torch modules that run
on whatever device the waveform is on.

Letters: B batch, T samples, F frames, M mel bins.
"""

import warnings
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, gcd
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm2_pl.atomic import written_whole
from audioldm2_pl.errors import UserError
from audioldm2_pl.fields import bounded, check_fields
from audioldm2_pl.mp3 import open_sound
from audioldm2_pl.tags import encode_audio

MAX_GAIN = 100.0  # 40 dB: what is quieter than -46 dB stays quiet, for scaled up it would be its recorder's noise

LIMITER_SECONDS = 0.01  # of either side of a peak that `limit_peak` turns down


@dataclass
class AudioConfig:
    """The audio front end, and every length that follows from it."""

    sample_rate: int = bounded(16_000, ge=1_000, le=384_000)  # Hz
    clip_seconds: float = bounded(10.24, gt=0, le=600)  # length of a training clip
    num_fft: int = bounded(1024, ge=16, le=65_536)  # samples in a Fourier transform
    window_length: int = bounded(1024, ge=1, le=65_536)  # samples under the Hann window
    hop_length: int = bounded(160, ge=1, le=65_536)  # samples from one frame to the next: 10 ms
    num_mel_bins: int = bounded(64, ge=1, le=4_096)  # of the log-mel that VAE and vocoder see
    mel_min_hz: float = bounded(0.0, ge=0)  # lower edge of the first mel filter
    mel_max_hz: float = bounded(8_000.0, gt=0)  # upper edge of the last mel filter
    num_fbank_bins: int = bounded(128, ge=1, le=4_096)  # of the filter bank that AudioMAE sees
    fbank_mean: float = -4.2677393  # of AudioSet's filter bank, as AudioMAE was pretrained
    fbank_std: float = bounded(4.5689974, gt=0)  # the same; AudioMAE divides by twice this
    peak: float | None = bounded(0.5, gt=0, le=1)  # waveforms are scaled to this peak; null keeps their level

    @property
    def num_samples(self) -> int:
        return round(self.clip_seconds * self.sample_rate)

    @property
    def num_frames(self) -> int:
        return self.num_samples // self.hop_length

    @property
    def frames_per_second(self) -> float:
        return self.sample_rate / self.hop_length

    def num_frames_of(self, seconds: float | None) -> int:
        """Frames of a crop; None is a whole clip."""
        return self.num_frames if seconds is None else round(seconds * self.frames_per_second)

    def __post_init__(self) -> None:
        check_fields(self, "audio.")
        if max(self.hop_length, self.window_length) > self.num_fft:
            raise UserError(
                f"audio.num_fft={self.num_fft} has to hold window_length={self.window_length} and "
                f"hop_length={self.hop_length}"
            )
        if self.hop_length >= self.window_length or (self.num_fft - self.hop_length) % 2:
            raise UserError(
                f"audio.hop_length={self.hop_length} has to be below window_length={self.window_length}, and odd or "
                f"even as num_fft={self.num_fft} is"
            )
        if not self.mel_min_hz < self.mel_max_hz <= self.sample_rate / 2:
            raise UserError(
                f"audio.mel_min_hz={self.mel_min_hz} has to be below mel_max_hz={self.mel_max_hz}, and that at most "
                f"half of sample_rate={self.sample_rate}"
            )
        if self.num_samples % self.hop_length:
            raise UserError(
                f"audio.clip_seconds={self.clip_seconds} is {self.num_samples} samples, which hop_length="
                f"{self.hop_length} does not divide; choose a multiple of {self.hop_length / self.sample_rate} s"
            )


SILENT_PEAK = 1e-4  # -80 dB: a channel whose peak is below this holds no sound


def choose_channel(waveform: np.ndarray) -> np.ndarray:
    """(T, channels) => (T,): the first channel, as the authors take it, or the loudest where the first is silent."""
    if waveform.shape[1] == 1:
        return waveform[:, 0]
    peaks = np.abs(waveform).max(axis=0, initial=0.0)  # (channels,)
    return waveform[:, 0 if peaks[0] > SILENT_PEAK else int(peaks.argmax())]


def read_audio(path: str | Path) -> tuple[np.ndarray, int]:
    """All channels of an audio file, float32 (T, channels), and its rate in Hz.

    Raises UserError where the file is missing, unreadable, empty or not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such audio file")
    try:
        with open_sound(path) as file:
            waveform, sample_rate = file.read(dtype="float32", always_2d=True), file.samplerate
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be read as audio ({error})") from None
    if not len(waveform) or not np.isfinite(waveform).all():
        raise UserError(f"{path}: holds no finite samples; leave it out")
    return waveform, sample_rate


def load_waveform(path: str | Path, sample_rate: int) -> np.ndarray:
    """The channel of an audio file that `choose_channel` takes, at `sample_rate`, float32 (T,).

    Raises UserError as `read_audio`.
    """
    channels, file_rate = read_audio(path)
    waveform = choose_channel(channels)  # (T,)
    if file_rate != sample_rate:
        waveform = soxr.resample(waveform, file_rate, sample_rate)
    return np.ascontiguousarray(waveform, dtype=np.float32)


def save_waveform(path: str | Path, waveform: Tensor | np.ndarray, sample_rate: int, comment: str = "") -> None:
    """Writes a waveform (T,) or (T, channels) in [-1, 1] as 16-bit audio; the suffix names the format.

    `comment` goes into a WAV or FLAC file.

    What was read of a 16-bit file comes back bit for bit.

    Raises UserError for a waveform that is not finite, and where the file cannot be written; none is left cut.
    """
    path = Path(path)
    samples = waveform.detach().float().cpu().numpy() if isinstance(waveform, Tensor) else waveform
    if not np.isfinite(samples).all():
        raise UserError(f"{path}: the waveform is not finite, nothing is written")
    try:
        clipped = np.clip(np.round(samples * 32768.0), -32768, 32767).astype(np.int16)
        encoded = encode_audio(clipped, sample_rate, path.suffix.removeprefix("."), comment)
    except (ValueError, TypeError, soundfile.LibsndfileError):
        raise UserError(f"{path}: cannot be written; use a name that ends in .wav or .flac") from None
    with written_whole(path) as part:
        part.write_bytes(encoded)


def is_silent(waveform: np.ndarray) -> bool:
    """Whether (T,) holds no sound: nothing, or a constant."""
    return bool(np.ptp(waveform) <= 2 * SILENT_PEAK)


def normalise(waveform: np.ndarray, peak: float | None) -> np.ndarray:
    """Subtracts the mean of a (T,) waveform and scales it to `peak`, as the authors' training data does, at most by
    MAX_GAIN."""
    waveform = waveform - waveform.mean()
    if peak is not None:
        waveform *= min(MAX_GAIN, peak / (max(waveform.max(), -waveform.min()) + 1e-8))
    return waveform


def prepare_clip(
    waveform: np.ndarray, rate: int, config: AudioConfig, num_samples: int | None = None, start: int = 0
) -> np.ndarray:
    """(T,) at `rate` Hz => (num_samples,), or a whole clip, at the config's rate and level: what all networks read.

    In the authors' order: cut from `start`, resampled, levelled, and only then padded with zeros, so that a short
    clip's padding is digital silence.
    """
    num_samples = num_samples or config.num_samples
    waveform = waveform[start : start + round(num_samples * rate / config.sample_rate)]
    if rate != config.sample_rate:
        waveform = soxr.resample(waveform, rate, config.sample_rate)[:num_samples]
    return fit_length(normalise(waveform, config.peak), num_samples)


def fit_length(waveform: np.ndarray, num_samples: int, start: int = 0) -> np.ndarray:
    """Cuts (T,) to `num_samples` from `start`, or pads zeros at the end."""
    piece = waveform[start : start + num_samples]
    return np.pad(piece, (0, num_samples - len(piece)))


def mel_filters(
    num_fft: int, num_bins: int, range_hz: tuple[float, float], sample_rate: int, kaldi: bool = False
) -> Tensor:
    """Triangular mel filters (num_fft // 2 + 1, num_bins): of unit area on Slaney's scale, as librosa's defaults, or of
    unit height on Kaldi's."""
    from transformers.audio_utils import mel_filter_bank  # takes seconds

    kind: dict[str, Any] = {"norm": "slaney", "mel_scale": "slaney"}
    if kaldi:
        kind = {"norm": None, "mel_scale": "kaldi", "triangularize_in_mel_space": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the lowest filters may be narrower than a bin, and zero
        return torch.from_numpy(mel_filter_bank(num_fft // 2 + 1, num_bins, *range_hz, sample_rate, **kind)).float()


def slaney_filters(config: AudioConfig) -> Tensor:
    """The filters of `LogMel`, (num_fft // 2 + 1, M)."""
    c = config
    return mel_filters(c.num_fft, c.num_mel_bins, (c.mel_min_hz, c.mel_max_hz), c.sample_rate)


def mel_centres(config: AudioConfig) -> list[float]:
    """Hz at which each filter of `LogMel` is highest."""
    from transformers.audio_utils import hertz_to_mel, mel_to_hertz  # takes seconds

    first, last = (float(hertz_to_mel(hz, "slaney")) for hz in (config.mel_min_hz, config.mel_max_hz))
    return [float(mel_to_hertz(mel, "slaney")) for mel in np.linspace(first, last, config.num_mel_bins + 2)[1:-1]]


class LogMel(nn.Module):
    """waveform (B, T) => log-mel (B, 1, T / hop, M), what the VAE and the vocoder read.

    Magnitude spectrogram, reflect-padded so that a frame is centred on its hop, Slaney mel filters, natural
    logarithm with floor 1e-5: the numbers of the authors' training code.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, config: AudioConfig):
        super().__init__()
        self.config = config
        self.register_buffer("window", torch.hann_window(config.window_length), persistent=False)
        self.register_buffer("filters", slaney_filters(config), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        c = self.config
        pad = (c.num_fft - c.hop_length) // 2
        with torch.autocast(waveform.device.type, enabled=False):
            x = F.pad(waveform.float().unsqueeze(1), (pad, pad), mode="reflect").squeeze(1)
            spectrum = torch.stft(
                x, c.num_fft, c.hop_length, c.window_length, self.window, center=False, return_complex=True
            )  # (B, num_fft // 2 + 1, F)
            # sqrt(x² + ε) instead of abs: its gradient at silence is finite
            magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-12).sqrt()
            mel = magnitude.transpose(1, 2) @ self.filters  # (B, F, M)
            return mel.clamp(min=1e-5).log().unsqueeze(1)


def limit_peak(waveform: Tensor, sample_rate: int) -> Tensor:
    """Waveforms (B, T) of any peak => in [-1, 1]: where one is over full scale it is turned down around there alone, as
    a limiter does, so that a tone that came out too loud is not distorted."""
    reach = round(LIMITER_SECONDS * sample_rate)  # samples to each side
    peak = F.max_pool1d(waveform.abs().unsqueeze(1), 2 * reach + 1, 1, reach)  # (B, 1, T)
    gain = F.pad(1 / peak.clamp(min=1.0), (reach, reach), mode="replicate")
    gain = F.avg_pool1d(gain, 2 * reach + 1, 1).squeeze(1)  # (B, T), at each sample at most 1 / |sample|
    return torch.where(gain < 1 - 1e-6, waveform * gain, waveform).clamp(-1.0, 1.0)


def griffin_lim(log_mel: Tensor, config: AudioConfig, num_rounds: int = 32) -> Tensor:
    """Log-mel (B, 1, F, M) => waveform (B, F · hop), without a network.

    Magnitudes by the filters' pseudo-inverse, made non-negative by multiplicative updates (Lee and Seung 2000), phases
    by the fast algorithm of Griffin and Lim (Perraudin et al. 2013) from zero, so that a log-mel has one sound.
    """
    c = config
    filters, window = slaney_filters(c).to(log_mel.device), torch.hann_window(c.window_length, device=log_mel.device)
    frame = {"n_fft": c.num_fft, "hop_length": c.hop_length, "win_length": c.window_length, "window": window}
    num_samples = log_mel.shape[2] * c.hop_length
    mel = F.pad(log_mel.float().squeeze(1).exp(), (0, 0, 0, 1), mode="replicate")  # (B, F + 1, M)
    magnitude = (mel @ torch.linalg.pinv(filters)).clamp(min=1e-6)  # (B, F + 1, num_fft // 2 + 1)
    for _ in range(num_rounds):
        magnitude = magnitude * (mel @ filters.T) / (magnitude @ filters @ filters.T).clamp(min=1e-12)
    magnitude = magnitude.transpose(1, 2)
    spectrum, before = magnitude.to(torch.complex64), torch.zeros_like(magnitude, dtype=torch.complex64)
    for _ in range(num_rounds):
        rebuilt = torch.stft(torch.istft(spectrum, length=num_samples, **frame), return_complex=True, **frame)
        ahead = rebuilt + 0.99 * (rebuilt - before)
        spectrum, before = magnitude * ahead / ahead.abs().clamp(min=1e-8), rebuilt
    return torch.istft(spectrum, length=num_samples, **frame)


class Fbank(nn.Module):
    """waveform (B, T) => normalised filter bank (B, 1, frames, bins), what AudioMAE reads.

    Kaldi's: 25 ms Hann frames every 10 ms, mean of each frame removed, pre-emphasis 0.97, power spectrum, HTK mel
    triangles from 20 Hz, natural logarithm. Kaldi's frames do not overhang the end (163,840 samples give 1,022),
    so the frames are zero-padded to the log-mel's count *before* (x - mean) / (2 std), as AudioMAE's data code does.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, config: AudioConfig):
        super().__init__()
        self.config = config
        sample_rate = config.sample_rate
        self.frame_length = round(0.025 * sample_rate)
        self.frame_shift = round(0.010 * sample_rate)
        self.num_fft = 2 ** ceil(np.log2(self.frame_length))
        window = torch.hann_window(self.frame_length, periodic=False)
        self.register_buffer("window", window, persistent=False)
        filters = mel_filters(self.num_fft, config.num_fbank_bins, (20.0, sample_rate / 2), sample_rate, kaldi=True)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        c = self.config
        num_frames = waveform.shape[1] // c.hop_length
        with torch.autocast(waveform.device.type, enabled=False):
            x = waveform.float() - waveform.float().mean(1, keepdim=True)
            frames = x.unfold(1, self.frame_length, self.frame_shift)  # (B, F, 400)
            frames = frames - frames.mean(2, keepdim=True)
            previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=2)
            frames = (frames - 0.97 * previous) * self.window
            power = torch.fft.rfft(frames, self.num_fft).abs().square()  # (B, F, 257)
            mel = (power @ self.filters).clamp(min=torch.finfo(torch.float32).eps).log()  # (B, F, bins)
            mel = F.pad(mel, (0, 0, 0, max(0, num_frames - mel.shape[1])))[:, :num_frames]
            return ((mel - c.fbank_mean) / (2 * c.fbank_std)).unsqueeze(1)


@lru_cache(maxsize=16)
def sinc_kernel(from_rate: int, to_rate: int, device: torch.device) -> tuple[Tensor, int]:
    """Kaiser-windowed sinc filters, one per output phase: (to_rate, 1, taps), and the taps before time zero.

    The rates have no common divisor. The cut-off lies 5 % below the lower Nyquist frequency.
    """
    cutoff = 0.95 * min(1.0, to_rate / from_rate)  # of the input's Nyquist frequency
    half_width = ceil(64 / cutoff)  # input samples: 64 zero crossings a side
    taps = torch.arange(-half_width, half_width + from_rate, dtype=torch.float64)
    phases = torch.arange(to_rate, dtype=torch.float64) * from_rate / to_rate
    time = taps[None] - phases[:, None]  # (to_rate, taps), input samples
    edge = (time / half_width).clamp(-1.0, 1.0)
    beta = torch.tensor(14.77, dtype=torch.float64)  # side lobes below -140 dB
    window = torch.special.i0(beta * (1.0 - edge.square()).sqrt()) / torch.special.i0(beta)
    kernel = cutoff * torch.sinc(cutoff * time) * window * (edge.abs() < 1.0)
    return kernel.float().unsqueeze(1).to(device), half_width


def resample(waveform: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """waveform (B, T) at `from_rate` Hz => (B, ceil(T * to_rate / from_rate)) at `to_rate` Hz, on its device."""
    if from_rate == to_rate:
        return waveform
    divisor = gcd(from_rate, to_rate)
    step, num_phases = from_rate // divisor, to_rate // divisor
    num_samples = ceil(waveform.shape[1] * num_phases / step)
    kernel, half_width = sinc_kernel(step, num_phases, waveform.device)
    with torch.autocast(waveform.device.type, enabled=False):
        padded = F.pad(waveform.float().unsqueeze(1), (half_width, half_width + step))
        phases = F.conv1d(padded, kernel, stride=step)  # (B, num_phases, T / step)
    return phases.transpose(1, 2).flatten(1)[:, :num_samples]
