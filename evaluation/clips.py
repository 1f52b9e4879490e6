"""Labelled clips out of a split's shards: what sounds in each, when, and its caption."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from audioldm2_pl.audio import AudioConfig, fit_length, normalise
from audioldm2_pl.datamodule import ShardFolder


@dataclass
class Event:
    name: str  # the class, e.g. "siren"
    start: float  # seconds from the clip's beginning
    duration: float  # seconds


@dataclass
class LabelledClip:
    key: str
    text: str  # the caption
    events: list[Event]  # in the order in which they sound
    waveform: np.ndarray  # float32 (T,), T = AudioConfig.num_samples

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.events]

    @property
    def is_ordered_pair(self) -> bool:
        """Two events of different classes: the clips that the order of events is scored on."""
        return len(self.events) == 2 and self.events[0].name != self.events[1].name


def read_clips(split: Path, audio: AudioConfig) -> Iterator[LabelledClip]:
    """The split's clips in the order of its shards, scaled to the experiment's peak as in training and
    cut or zero-padded to its length. A clip without "events" has its one label for an event."""
    folder = ShardFolder(split)
    for shard, num_clips in enumerate(folder.counts):
        for number in range(num_clips):
            clip = folder.read(shard, number)
            waveform = clip["waveform"]
            if clip["sample_rate"] != audio.sample_rate:
                waveform = soxr.resample(waveform, clip["sample_rate"], audio.sample_rate)
            waveform = fit_length(normalise(waveform, audio.peak), audio.num_samples)
            text = clip["text"] if "text" in clip else clip.get("captions", [""])[0]
            yield LabelledClip(clip["key"], text, events_of(clip, audio), waveform.astype(np.float32))


def events_of(clip: dict[str, Any], audio: AudioConfig) -> list[Event]:
    if "events" in clip:
        events = [Event(e["name"], float(e["start"]), float(e["duration"])) for e in clip["events"]]
        return sorted(events, key=lambda event: event.start)
    labels = clip.get("labels", [])
    return [Event(labels[0], 0.0, audio.clip_seconds)] if len(labels) == 1 else []


def digest_of_index(split: Path) -> str:
    """SHA-256 of the split's index, which holds its shards' own: another one means other clips."""
    index = json.dumps(ShardFolder(split).index, sort_keys=True)
    return hashlib.sha256(index.encode()).hexdigest()
