"""A corpus out of formulas: twelve kinds of sound with exact captions, in a minute, no download.

    python -m data.synthetic shards/synthetic

Half of the clips hold one event from end to end, half hold two different events one after the
other, so that captions name class, pitch, tempo, loudness and order. The default writes 4,800
training clips (3.4 h), 480 test clips and 1,200 clips (judge) to train an evaluation classifier
that must not have seen the generator's training clips. Every sound is set by dials (pitch, tempo,
tone colour, peak) that are cut into cells, and each split owns cells of its own all over the range:
the splits cover the same ground and share no value.

Apart from the caption, a clip's JSON holds "labels" (class names in order) and "events": name,
start and duration in seconds, the attributes that its caption may name, and the dials behind them.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from audioldm2_pl.errors import UserError, run_tool

from .corpus import add_made_options, write_split
from .shards import Clip
from .synthetic_captions import ATTRIBUTES, caption
from .synthetic_sounds import CLASSES, Dials

SPLITS = ("train", "test", "judge")
CELL_OWNERS = ("train", "test", "train", "judge")  # who owns cell 0, 1, 2, 3, 0, 1, … of a dial
NUM_CELLS = 16  # in each band of a dial
PITCH_BANDS = {"low": (0.0, 0.24), "middle": (0.38, 0.62), "high": (0.76, 1.0)}
TEMPO_BANDS = {"slow": (0.0, 0.3), "fast": (0.7, 1.0)}
LOUDNESS_BANDS = {"soft": (0.2, 0.28), "loud": (0.55, 0.7)}  # peak of the waveform
COLOUR_BAND = (0.0, 1.0)
TWO_EVENT_RATIO = 0.5  # of the clips
CLIPS_PER_SHARD = 1000
HISS = 0.003  # rms of the microphone's noise under every clip: -50 dB, for no recording is digitally silent
MIN_SECONDS = 0.32  # of a clip
MIN_SAMPLE_RATE = 12_000  # Hz; a bird whistles up to 5.7 kHz
FADE_SECONDS = 0.008  # at both ends of an event


def draw_dial(split: str, band: tuple[float, float], rng: np.random.Generator) -> float:
    """A value in one of the cells of `band` that belong to the split."""
    low, high = band
    cells = [i for i in range(NUM_CELLS) if CELL_OWNERS[i % len(CELL_OWNERS)] == split]
    # The outer hundredth of a cell stays empty, so that rounding cannot cross into the next.
    position = rng.choice(cells) + rng.uniform(0.01, 0.99)
    return round(float(low + (high - low) * position / NUM_CELLS), 6)


@dataclass(frozen=True)
class Recipe:
    """How the clips of a split are made."""

    split: str
    seconds: float = 2.56
    seed: int = 0
    sample_rate: int = 16_000  # Hz
    two_event_ratio: float = TWO_EVENT_RATIO
    num_captions: int = 1  # wordings of a clip; of several a training batch draws one

    def make(self, index: int) -> Clip:
        """Clip i depends on the recipe and i alone. Clips of one event take the classes in turn, so that all classes
        come equally often."""
        num_samples = round(self.seconds * self.sample_rate)
        rng = np.random.default_rng((self.seed, SPLITS.index(self.split), index))
        names = list(CLASSES)
        num_pairs = int(index * self.two_event_ratio)  # among the clips before this one
        if int((index + 1) * self.two_event_ratio) > num_pairs:
            chosen = [str(name) for name in rng.choice(names, 2, replace=False)]
        else:
            chosen = [names[(index - num_pairs) % len(names)]]
        edges = np.linspace(0, num_samples, len(chosen) + 1).astype(int)
        events: list[dict[str, Any]] = []
        waveforms: list[np.ndarray] = []
        for name, start, end in zip(chosen, edges[:-1], edges[1:]):
            event, waveform = _event(name, self.split, int(end - start), self.sample_rate, rng)
            times = {"start": start / self.sample_rate, "duration": (end - start) / self.sample_rate}
            events.append({"name": name} | times | event)
            waveforms.append(waveform)
        wordings = [caption(events, rng) for _ in range(self.num_captions)]
        return Clip(
            key=f"{self.split}-{index:06d}",
            text=wordings[0] if self.num_captions == 1 else None,
            captions=wordings if self.num_captions > 1 else None,
            waveform=np.concatenate(waveforms) + HISS * rng.standard_normal(num_samples),
            labels=chosen,
            source="synthetic",
            licence="CC0",
            extra={"events": events},
        )


def recipes(split: str, num_clips: int, *arguments: Any, **options: Any) -> Iterator[Clip]:
    """The clips of a split, still to be made by the `Recipe` of these arguments.

    Raises UserError where clips are too short, or the sample rate too low, for the sounds.
    """
    recipe = Recipe(split, *arguments, **options)
    if recipe.seconds < MIN_SECONDS or recipe.sample_rate < MIN_SAMPLE_RATE:
        raise UserError(
            f"synthetic clips of {recipe.seconds} s at {recipe.sample_rate} Hz: "
            f"make them {MIN_SECONDS} s or longer, at {MIN_SAMPLE_RATE} Hz or more"
        )
    for index in range(num_clips):
        yield Clip(key=f"{split}-{index:06d}", make=partial(recipe.make, index))


def clips(split: str, num_clips: int, *arguments: Any, **options: Any) -> Iterator[Clip]:
    """The clips of `recipes`, made."""
    for clip in recipes(split, num_clips, *arguments, **options):
        assert clip.make is not None
        yield clip.make()


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
    add_made_options(parser, 2.56, CLIPS_PER_SHARD)
    arguments = parser.parse_args(argv)

    def write_splits() -> None:
        numbers = (arguments.clips, arguments.test_clips, arguments.judge_clips)
        for split, num_clips in zip(SPLITS, numbers):
            if num_clips == 0:
                continue
            num_captions = arguments.captions if split == "train" else 1
            found = recipes(
                split, num_clips, arguments.seconds, arguments.seed, arguments.sample_rate, num_captions=num_captions
            )
            write_split(found, arguments.output / split, arguments, num_clips)

    return run_tool(write_splits)


if __name__ == "__main__":
    sys.exit(main())
