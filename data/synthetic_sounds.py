"""The twelve sounds of the synthetic corpus: (dials, num_samples, sample_rate) -> waveform (T,) of any level."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.signal import butter, lfilter, sosfilt


@dataclass
class Dials:
    """What sets one sound: numbers in [0, 1] that a class maps to Hz and seconds, and its noise."""

    pitch: float
    tempo: float
    colour: float  # brightness, density, bandwidth: what no caption names
    rng: np.random.Generator


def tone(dials: Dials, num_samples: int, sample_rate: int) -> np.ndarray:
    phase = _phase(np.full(num_samples, _between(180, 1800, dials.pitch)), sample_rate)
    strengths = (1.0, 0.3 * dials.colour, 0.15 * dials.colour)
    return sum(a * np.sin(k * phase) for k, a in enumerate(strengths, 1)) + np.zeros(num_samples)


def rising_chirp(dials: Dials, num_samples: int, sample_rate: int) -> np.ndarray:
    start = _between(150, 1100, dials.pitch)
    octaves = 2.0 + 0.5 * dials.colour
    frequency = start * 2 ** (octaves * np.linspace(0, 1, num_samples))
    phase = _phase(frequency, sample_rate)
    return np.sin(phase) + 0.15 * np.sin(2 * phase)


def falling_chirp(dials: Dials, num_samples: int, sample_rate: int) -> np.ndarray:
    return rising_chirp(dials, num_samples, sample_rate)[::-1]


def bell(dials: Dials, num_samples: int, sample_rate: int) -> np.ndarray:
    times = np.arange(num_samples) / sample_rate
    nominal = _between(280, 1300, dials.pitch)
    ratios = (0.5, 1.0, 1.2, 1.5, 2.0, 2.67, 3.01, 4.1)  # hum, prime, tierce, quint, nominal, …
    strengths = (0.4, 0.8, 0.7, 0.4, 1.0, 0.5 + dials.colour, 0.4, 0.3 + 0.5 * dials.colour)
    stroke = np.zeros(num_samples)
    for ratio, strength in zip(ratios, strengths):
        if nominal * ratio < 0.45 * sample_rate:
            partial = np.sin(2 * np.pi * nominal * ratio * times)
            stroke += strength * np.exp(-times * (2.0 + 1.6 * ratio)) * partial
    return _repeat(stroke, _interval(0.8, 0.24, dials), num_samples, sample_rate)


def plucked_string(dials: Dials, num_samples: int, sample_rate: int) -> np.ndarray:
    """Karplus and Strong, 1983: a burst of noise runs round a delay line that averages it."""
    interval = _interval(0.62, 0.17, dials)
    num_note = min(num_samples, round(interval * sample_rate))
    delay = round(sample_rate / _between(110, 660, dials.pitch))
    burst = np.zeros(num_note)
    noise = dials.rng.uniform(-1, 1, min(delay, num_note))
    burst[: len(noise)] = noise - noise.mean()
    damping = 0.990 + 0.008 * dials.colour
    loop = np.zeros(delay + 2)
    loop[0], loop[delay], loop[delay + 1] = 1.0, -0.5 * damping, -0.5 * damping
    note = np.asarray(lfilter([1.0], loop, burst))
    note *= np.minimum(1, np.arange(num_note, 0, -1) / (0.01 * sample_rate))
    return _repeat(note, interval, num_samples, sample_rate)


def drum_loop(dials: Dials, num_samples: int, sample_rate: int) -> np.ndarray:
    eighth = _interval(0.36, 0.15, dials)
    times = np.arange(round(0.3 * sample_rate)) / sample_rate
    noise = dials.rng.standard_normal(len(times))
    kick_hz = 45 + 20 * dials.pitch + 110 * np.exp(-times * 35)
    kick = 1.6 * np.sin(_phase(kick_hz, sample_rate)) * np.exp(-times * 14)
    snare = 0.5 * np.sin(2 * np.pi * 190 * times) * np.exp(-times * 25)
    snare += 0.35 * _band(noise, 1200, None, sample_rate) * np.exp(-times * (16 + 10 * dials.colour))
    hat = 0.3 * _band(noise, 5500, None, sample_rate) * np.exp(-times * 70)
    loop = np.zeros(num_samples + len(times))
    for beat, start in enumerate(np.arange(0, num_samples, eighth * sample_rate).astype(int)):
        loop[start : start + len(times)] += (kick, hat, snare, hat)[beat % 4]
    return loop[:num_samples]


def siren(dials: Dials, num_samples: int, sample_rate: int) -> np.ndarray:
    times = np.arange(num_samples) / sample_rate
    rate = _between(1.1, 4.5, dials.tempo)
    swing = np.sin(2 * np.pi * (rate * times + dials.rng.uniform()))
    phase = _phase(_between(550, 900, dials.pitch) * 2 ** (0.45 * swing), sample_rate)
    return np.sin(phase) + (0.3 + 0.2 * dials.colour) * np.sin(3 * phase) + 0.2 * np.sin(5 * phase)


def engine(dials: Dials, num_samples: int, sample_rate: int) -> np.ndarray:
    """Exhaust pulses, every other one weaker, and their noise, in a pipe that lets the lows out."""
    wander = _slow_noise(num_samples, 3.0, sample_rate, dials.rng)
    firing_hz = _between(22, 85, dials.tempo) * (1 + 0.03 * wander)
    turns = _phase(firing_hz, sample_rate) / (2 * np.pi)
    stroke = np.exp(-5 * (turns % 1)) * np.where(turns % 2 < 1, 1.0, 0.7)
    noise = dials.rng.standard_normal(num_samples)
    pipe_hz = 500 + 500 * dials.colour
    exhaust = _band(stroke - stroke.mean() + 0.35 * stroke * noise, 60, pipe_hz, sample_rate)
    return exhaust + 0.12 * _band(stroke * noise, 800, 3000, sample_rate)


def ticking_clock(dials: Dials, num_samples: int, sample_rate: int) -> np.ndarray:
    times = np.arange(round(0.03 * sample_rate)) / sample_rate
    interval = _interval(0.48, 0.12, dials)
    base_hz = _between(1800, 2800, dials.pitch)
    ticks = np.zeros(num_samples + len(times))
    starts = np.arange(0.02 * sample_rate, num_samples, interval * sample_rate).astype(int)
    for beat, start in enumerate(starts):
        hz = base_hz * (1.0, 0.8)[beat % 2]  # tick, tock
        knock = np.sin(2 * np.pi * hz * times) + 0.6 * np.sin(2 * np.pi * 2.3 * hz * times)
        ticks[start : start + len(times)] += knock * np.exp(-times * (250 + 250 * dials.colour))
    return ticks[:num_samples]


def rain(dials: Dials, num_samples: int, sample_rate: int) -> np.ndarray:
    """A hiss of far drops, and near ones that splash one by one."""
    hiss = _band(dials.rng.standard_normal(num_samples), 900, None, sample_rate)
    hits = dials.rng.uniform(size=num_samples) < (30 + 90 * dials.tempo) / sample_rate
    drops = hits * dials.rng.uniform(0.5, 1.0, num_samples)
    splash = np.exp(-np.arange(round(0.006 * sample_rate)) / (0.0015 * sample_rate))
    splash *= dials.rng.standard_normal(len(splash))
    near = np.convolve(drops, splash)[:num_samples]
    return hiss + (0.8 + 0.8 * dials.colour) * _band(near, 1500, None, sample_rate)


def bird(dials: Dials, num_samples: int, sample_rate: int) -> np.ndarray:
    """A whistle that swoops on every note."""
    interval = _interval(0.34, 0.12, dials)
    num_note = round(0.6 * interval * sample_rate)
    position = np.linspace(0, 1, num_note)
    swoop = np.sin(np.pi * position) if dials.colour < 0.5 else np.cos(np.pi * position)
    hz = _between(2300, 4800, dials.pitch) * 2 ** (0.25 * swoop)
    note = np.sin(_phase(hz, sample_rate)) * np.sin(np.pi * position) ** 0.7
    return _repeat(note, interval, num_samples, sample_rate)


def wind(dials: Dials, num_samples: int, sample_rate: int) -> np.ndarray:
    """Narrow noise around a pitch that wanders, with gusts."""
    rng = dials.rng
    hz = _between(220, 900, dials.pitch) * 2 ** (0.3 * _slow_noise(num_samples, 1.5, sample_rate, rng))
    phase = _phase(hz, sample_rate)
    width_hz = 50 + 60 * dials.colour
    real, imaginary = (_band(rng.standard_normal(num_samples), None, width_hz, sample_rate) for _ in range(2))
    howl = real * np.cos(phase) - imaginary * np.sin(phase)
    rumble = _band(rng.standard_normal(num_samples), 60, 300, sample_rate)
    gusts = 1 + 0.35 * _slow_noise(num_samples, 2.0, sample_rate, rng)
    return gusts * (howl / howl.std() + 0.25 * rumble / rumble.std())


def _between(low: float, high: float, dial: float) -> float:
    return low * (high / low) ** dial


def _interval(slow: float, fast: float, dials: Dials) -> float:
    """Seconds from one stroke to the next."""
    return _between(slow, fast, dials.tempo)


def _phase(frequency: np.ndarray, sample_rate: int) -> np.ndarray:
    return 2 * np.pi * np.cumsum(frequency) / sample_rate


def _band(waveform: np.ndarray, low_hz: float | None, high_hz: float | None, sample_rate: int) -> np.ndarray:
    """The part of a waveform between two frequencies; None leaves that side open."""
    edges = [hz for hz in (low_hz, high_hz) if hz is not None]
    kind = "band" if len(edges) == 2 else "high" if high_hz is None else "low"
    hz = edges if len(edges) == 2 else edges[0]
    return np.asarray(sosfilt(butter(2, hz, kind, fs=sample_rate, output="sos"), waveform))


def _slow_noise(num_samples: int, rate_hz: float, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """A smooth random walk in [-1, 1] that turns about `rate_hz` times a second."""
    num_points = max(2, round(num_samples / sample_rate * rate_hz) + 1)
    points = rng.uniform(-1, 1, num_points)
    position = np.linspace(0, num_points - 1, num_samples)
    left = np.minimum(position.astype(int), num_points - 2)
    blend = 0.5 - 0.5 * np.cos(np.pi * (position - left))
    return points[left] * (1 - blend) + points[left + 1] * blend


def _repeat(note: np.ndarray, interval: float, num_samples: int, sample_rate: int) -> np.ndarray:
    """Adds the note again every `interval` seconds."""
    waveform = np.zeros(num_samples)
    for start in np.arange(0, num_samples, interval * sample_rate).astype(int):
        end = min(num_samples, start + len(note))
        waveform[start:end] += note[: end - start]
    return waveform


CLASSES: dict[str, Callable[[Dials, int, int], np.ndarray]] = {
    "tone": tone,
    "rising chirp": rising_chirp,
    "falling chirp": falling_chirp,
    "bell": bell,
    "plucked string": plucked_string,
    "drum loop": drum_loop,
    "siren": siren,
    "engine": engine,
    "ticking clock": ticking_clock,
    "rain": rain,
    "bird": bird,
    "wind": wind,
}
