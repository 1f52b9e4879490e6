"""A corpus out of formulas: twelve kinds of sound with exact captions, in a minute, no download.

    python -m data.synthetic shards/synthetic

Half of the clips hold one event from end to end, half hold two different events one after the
other, so that captions tell class, pitch, tempo, loudness and order. The default writes 4,800
training clips (3.4 h), 480 test clips and 1,200 clips to train a judge on: an evaluation classifier
that must not have seen the generator's training clips. Every sound is set by dials (pitch, tempo,
tone colour, peak) that are cut into cells, and each split owns cells of its own all over the range:
the splits cover the same ground and share no value.

Apart from the caption, a clip's JSON holds "labels" (class names in order) and "events": name,
start and duration in seconds, the attributes that its caption may name, and the dials behind them.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.signal import butter, lfilter, sosfilt

from audioldm2_pl.errors import UserError

from .shards import Clip, add_shard_options, run_tool, write_split
from .synthetic_captions import ATTRIBUTES, caption

SPLITS = ("train", "test", "judge")
CELL_OWNERS = ("train", "test", "train", "judge")  # who owns cell 0, 1, 2, 3, 0, 1, … of a dial
NUM_CELLS = 16  # in each band of a dial
PITCH_BANDS = {"low": (0.0, 0.24), "middle": (0.38, 0.62), "high": (0.76, 1.0)}
TEMPO_BANDS = {"slow": (0.0, 0.3), "fast": (0.7, 1.0)}
LOUDNESS_BANDS = {"soft": (0.2, 0.28), "loud": (0.55, 0.7)}  # peak of the waveform
COLOUR_BAND = (0.0, 1.0)
TWO_EVENT_RATIO = 0.5  # of the clips
HISS = 0.003  # rms of the microphone's noise under every clip: -50 dB, for no recording is digitally silent
MIN_SECONDS = 0.32  # of a clip
MIN_SAMPLE_RATE = 12_000  # Hz; a bird whistles up to 5.7 kHz
FADE_SECONDS = 0.008  # at both ends of an event


@dataclass
class Dials:
    """What sets one sound: numbers in [0, 1] that a class maps to Hz and seconds, and its noise."""

    pitch: float
    tempo: float
    colour: float  # brightness, density, bandwidth: what no caption names
    rng: np.random.Generator


def draw_dial(split: str, band: tuple[float, float], rng: np.random.Generator) -> float:
    """A value in one of the cells of `band` that belong to the split."""
    low, high = band
    cells = [i for i in range(NUM_CELLS) if CELL_OWNERS[i % len(CELL_OWNERS)] == split]
    # The outer hundredth of a cell stays empty, so that rounding cannot cross into the next.
    place = rng.choice(cells) + rng.uniform(0.01, 0.99)
    return round(float(low + (high - low) * place / NUM_CELLS), 6)


# The twelve sounds: (dials, num_samples, sample_rate) -> waveform (T,) of any level.


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
    place = np.linspace(0, 1, num_note)
    swoop = np.sin(np.pi * place) if dials.colour < 0.5 else np.cos(np.pi * place)
    hz = _between(2300, 4800, dials.pitch) * 2 ** (0.25 * swoop)
    note = np.sin(_phase(hz, sample_rate)) * np.sin(np.pi * place) ** 0.7
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
    return np.asarray(sosfilt(butter(2, edges, kind, fs=sample_rate, output="sos"), waveform))


def _slow_noise(num_samples: int, rate_hz: float, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """A smooth random walk in [-1, 1] that turns about `rate_hz` times a second."""
    num_points = max(2, round(num_samples / sample_rate * rate_hz) + 1)
    points = rng.uniform(-1, 1, num_points)
    place = np.linspace(0, num_points - 1, num_samples)
    left = np.minimum(place.astype(int), num_points - 2)
    blend = 0.5 - 0.5 * np.cos(np.pi * (place - left))
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


def clips(
    split: str,
    num_clips: int,
    seconds: float = 2.56,
    seed: int = 0,
    sample_rate: int = 16_000,
    two_event_ratio: float = TWO_EVENT_RATIO,
    num_captions: int = 1,
) -> Iterator[Clip]:
    """The clips of a split; clip i depends on (seed, split, i) alone, not on `num_clips`.

    A clip has a text, or with `num_captions` above 1 so many captions, of which a training batch draws one.

    Clips of one event take the classes in turn, so that all classes come equally often. Raises
    UserError where clips are too short, or the sample rate too low, for the sounds.
    """
    if seconds < MIN_SECONDS or sample_rate < MIN_SAMPLE_RATE:
        raise UserError(
            f"synthetic clips of {seconds} s at {sample_rate} Hz: "
            f"make them {MIN_SECONDS} s or longer, at {MIN_SAMPLE_RATE} Hz or more"
        )
    names = list(CLASSES)
    for index in range(num_clips):
        rng = np.random.default_rng((seed, SPLITS.index(split), index))
        num_pairs = int(index * two_event_ratio)  # among the clips before this one
        if int((index + 1) * two_event_ratio) > num_pairs:
            chosen = [str(name) for name in rng.choice(names, 2, replace=False)]
        else:
            chosen = [names[(index - num_pairs) % len(names)]]
        num_samples = round(seconds * sample_rate)
        edges = np.linspace(0, num_samples, len(chosen) + 1).astype(int)
        events: list[dict[str, Any]] = []
        waveforms: list[np.ndarray] = []
        for name, start, end in zip(chosen, edges[:-1], edges[1:]):
            event, waveform = _event(name, split, int(end - start), sample_rate, rng)
            place = {"start": start / sample_rate, "duration": (end - start) / sample_rate}
            events.append({"name": name} | place | event)
            waveforms.append(waveform)
        wordings = [caption(events, rng) for _ in range(num_captions)]
        yield Clip(
            key=f"{split}-{index:06d}",
            text=wordings[0] if num_captions == 1 else None,
            captions=wordings if num_captions > 1 else None,
            waveform=np.concatenate(waveforms) + HISS * rng.standard_normal(num_samples),
            labels=chosen,
            source="synthetic",
            licence="CC0",
            extra={"events": events},
        )


def _event(
    name: str, split: str, num_samples: int, sample_rate: int, rng: np.random.Generator
) -> tuple[dict[str, Any], np.ndarray]:
    """One event's attributes, as words and as dials, and its waveform (T,)."""
    pitch, tempo, loudness = (str(rng.choice(list(bands))) for bands in (PITCH_BANDS, TEMPO_BANDS, LOUDNESS_BANDS))
    levels = {"pitch": pitch, "tempo": tempo, "loudness": loudness}
    dials = Dials(
        pitch=draw_dial(split, PITCH_BANDS[pitch], rng),
        tempo=draw_dial(split, TEMPO_BANDS[tempo], rng),
        colour=draw_dial(split, COLOUR_BAND, rng),
        rng=rng,
    )
    peak = draw_dial(split, LOUDNESS_BANDS[loudness], rng)
    waveform = CLASSES[name](dials, num_samples, sample_rate)
    waveform = waveform - waveform.mean()
    num_fade = round(FADE_SECONDS * sample_rate)
    ramp = np.minimum(1, np.arange(num_samples) / num_fade)
    waveform = waveform * ramp * ramp[::-1]
    waveform = waveform * (peak / np.abs(waveform).max())
    attributes = {attribute: levels[attribute] for attribute in ATTRIBUTES[name]}
    values = {"pitch": dials.pitch, "tempo": dials.tempo, "colour": dials.colour, "peak": peak}
    return attributes | {"dials": values}, waveform.astype(np.float32)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder for the splits")
    parser.add_argument("--clips", type=int, default=4800, metavar="N", help="training clips")
    parser.add_argument("--test-clips", type=int, default=480, metavar="N")
    parser.add_argument("--judge-clips", type=int, default=1200, metavar="N")
    parser.add_argument("--captions", type=int, default=1, metavar="N", help="wordings of a training clip")
    parser.add_argument("--seconds", type=float, default=2.56, metavar="S", help="of a clip")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    add_shard_options(parser)
    arguments = parser.parse_args(argv)

    def write_splits() -> None:
        numbers = (arguments.clips, arguments.test_clips, arguments.judge_clips)
        for split, num_clips in zip(SPLITS, numbers):
            if num_clips == 0:
                continue
            num_captions = arguments.captions if split == "train" else 1
            made = clips(
                split, num_clips, arguments.seconds, arguments.seed, arguments.sample_rate, num_captions=num_captions
            )
            write_split(made, arguments.output / split, arguments)

    return run_tool(write_splits)


if __name__ == "__main__":
    sys.exit(main())
