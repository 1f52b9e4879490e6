"""The sounds of a listening test: clips as they are, their low-pass anchors, beeps to count, examples."""

import io

import numpy as np
import soundfile
from scipy.signal import butter, sosfiltfilt

ANCHOR_HZ = 3_500.0  # ITU-R BS.1534: low-pass of the low-quality anchor
BAD_HZ = 1_000.0  # the example of bad quality
BAD_SNR_DB = 10.0  # the same
BEEP_HZ, BEEP_SECONDS, BEEP_RATE = 880.0, 0.15, 16_000
FILTER_ORDER = 8


def low_pass(sound: np.ndarray, sample_rate: int, hz: float = ANCHOR_HZ) -> np.ndarray:
    """(T, channels) without what lies above `hz`, no delay. `sample_rate` has to be above twice that."""
    sections = np.asarray(butter(FILTER_ORDER, hz, fs=sample_rate, output="sos"))
    pad = min(len(sound) - 1, 3 * (2 * len(sections) + 1))  # scipy's own, as far as the clip is that long
    return sosfiltfilt(sections, sound, axis=0, padlen=pad).astype(np.float32)


def high_energy(sound: np.ndarray, sample_rate: int) -> float:
    """Share of the energy that the low-pass anchor loses."""
    passed = np.square(low_pass(sound, sample_rate)).sum()
    return float(1 - passed / max(np.square(sound).sum(), 1e-12))


def bad_example(sound: np.ndarray, sample_rate: int) -> np.ndarray:
    """(T, channels) muffled and noisy: what raters are shown as bad quality."""
    muffled = low_pass(sound, sample_rate, BAD_HZ)
    noise = np.random.default_rng(0).standard_normal(sound.shape)
    level = np.sqrt(np.square(muffled).mean()) * 10 ** (-BAD_SNR_DB / 20)
    mixed = muffled + level * noise
    return (mixed * min(1.0, 0.99 / max(np.abs(mixed).max(), 1e-8))).astype(np.float32)


def beeps(count: int) -> tuple[np.ndarray, int]:
    """`count` tones with pauses as long as themselves => (T, 1) and the sample rate."""
    times = np.arange(round(BEEP_SECONDS * BEEP_RATE)) / BEEP_RATE
    tone = 0.3 * np.sin(2 * np.pi * BEEP_HZ * times) * np.hanning(len(times))
    pause = np.zeros_like(tone)
    return np.concatenate([pause, *[np.concatenate([tone, pause])] * count])[:, None].astype(np.float32), BEEP_RATE


def flac(sound: np.ndarray, sample_rate: int) -> bytes:
    """16-bit FLAC without tags: lossless, and every browser of a phone plays it."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(sound, -1, 1), sample_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()
