"""Labelled clips out of a split's shards: what sounds in each, when, and its caption."""

import hashlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from audioldm2_pl.audio import AudioConfig, is_silent, prepare_clip
from audioldm2_pl.errors import UserError
from audioldm2_pl.shards.reader import ShardFolder, captions_of


@dataclass
class Event:
    name: str  # the class, e.g. "siren"
    start: float  # seconds from the clip's beginning
    duration: float  # seconds


@dataclass
class LabelledClip:
    key: str
    text: str  # the caption
    transcript: str  # what is spoken; "" where the shards have none
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
    """The split's clips in the order of its shards, as training reads them. A clip without "events" has its one label
    for an event."""
    folder = ShardFolder(split)
    for shard, num_clips in enumerate(folder.counts):
        for number in range(num_clips):
            clip = folder.read(shard, number)
            if is_silent(clip["waveform"]):
                warnings.warn(f"{split}: clip {clip['key']} is silent", stacklevel=2)
            waveform = prepare_clip(clip["waveform"], clip["sample_rate"], audio)
            events = events_of(clip, audio)
            yield LabelledClip(clip["key"], captions_of(clip)[0], clip.get("transcript", ""), events, waveform)


def events_of(clip: dict[str, Any], audio: AudioConfig) -> list[Event]:
    """UserError where the clip's events or labels are none."""
    try:
        if "events" in clip:
            events = [Event(str(e["name"]), float(e["start"]), float(e["duration"])) for e in clip["events"]]
            return sorted(events, key=lambda event: event.start)
        labels = list(clip.get("labels") or ())
    except (KeyError, TypeError, ValueError):
        raise UserError(f"clip {clip['key']}: its events need name, start and duration, its labels a list") from None
    return [Event(str(labels[0]), 0.0, audio.clip_seconds)] if len(labels) == 1 else []


def digest_of_index(split: Path) -> str:
    """SHA-256 of the split's index, which holds its shards' own: another one means other clips."""
    index = json.dumps(ShardFolder(split).index, sort_keys=True)
    return hashlib.sha256(index.encode()).hexdigest()
