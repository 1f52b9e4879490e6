"""The clips of a test set, and the folders that hold what systems make of them.

Shapes: B clips, T samples.
"""

import csv
import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audioldm2_pl.atomic import written_whole
from audioldm2_pl.audio import AudioConfig, load_waveform, save_waveform
from audioldm2_pl.errors import UserError
from audioldm2_pl.shards.reader import ShardFolder, captions_of

from ..clips import LabelledClip, digest_of_index, read_clips
from .generate import System


@dataclass
class TestClip(LabelledClip):
    """A clip as a model takes it, and as the shards have it: scores compare with the latter."""

    __test__ = False  # no test, though pytest would think so

    captions: list[str]
    stored: np.ndarray  # float32 (T,)
    stored_rate: int  # Hz


def read_test_clips(split: Path, audio: AudioConfig, limit: int | None = None) -> Iterator[TestClip]:
    """All clips or a random `limit` of them, in the order of the shards; a larger limit holds a smaller one's clips."""
    folder = ShardFolder(split)
    order = list(range(len(folder)))
    random.Random(0).shuffle(order)
    chosen = set(order[:limit])
    stored = (folder.read(shard, number) for shard, count in enumerate(folder.counts) for number in range(count))
    for number, (clip, fields) in enumerate(zip(read_clips(split, audio), stored)):
        if number in chosen:
            yield TestClip(**vars(clip), captions=captions_of(fields),
                           stored=fields["waveform"], stored_rate=fields["sample_rate"])  # fmt: skip


def select_clips(split: Path, audio: AudioConfig, clips_per_class: int, order_clips: int) -> list[TestClip]:
    """The split's first clips: `clips_per_class` with one event of each class, sorted by class, then
    `order_clips` with two events of different classes."""
    single: list[TestClip] = []
    ordered: list[TestClip] = []
    count: Counter[str] = Counter()
    for clip in read_test_clips(split, audio):
        if len(clip.events) == 1 and count[clip.names[0]] < clips_per_class:
            count[clip.names[0]] += 1
            single.append(clip)
        elif clip.is_ordered_pair and len(ordered) < order_clips:
            ordered.append(clip)
    if not single:
        raise UserError(f"{split}: no clip with one named event; accuracy needs labelled clips")
    return sorted(single, key=lambda clip: clip.names[0]) + ordered


def write_test_set(split: Path, audio: AudioConfig, folder: Path, transcripts: bool, limit: int | None = None) -> None:
    """folder/sound/reference/<key>.flac and folder/captions.csv, of speech its transcripts, of a split or of `limit`
    clips of it; what is there of the same split and number stays."""
    sounds = AudioFolder(folder / "sound", {"test": digest_of_index(split), "clips": limit})
    rows = []
    for clip in read_test_clips(split, audio, limit):
        if not sounds.path("reference", clip.key).is_file():
            sounds.save("reference", clip.key, clip.stored, clip.stored_rate)
        rows += [[f"{clip.key}.flac", text] for text in ([clip.transcript] if transcripts else clip.captions)]
    with written_whole(folder / "captions.csv") as part, part.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["filename", "caption"], *rows])


class AudioFolder:
    """<folder>/<system>/<key>.flac, and in index.json what they were made with and how long it took.

    `origin` is all that decides the audio of a clip: opened with another one, the folder is emptied.
    """

    def __init__(self, folder: Path, origin: dict[str, Any]):
        self.folder = folder
        self.index = folder / "index.json"
        self.origin = origin
        self.seconds = 0.0  # spent on what is there, in earlier reports too
        facts = json.loads(self.index.read_text()) if self.index.is_file() else {}
        if facts.get("origin") == origin:
            self.seconds = facts["seconds"]
        else:
            shutil.rmtree(folder, ignore_errors=True)
            self.write_index()

    def write_index(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.index.write_text(json.dumps({"origin": self.origin, "seconds": self.seconds}, indent=2) + "\n")

    def path(self, system: str, key: str) -> Path:
        return self.folder / system / f"{key}.flac"

    def missing(self, system: str, clips: Iterable[TestClip]) -> list[TestClip]:
        return [clip for clip in clips if not self.path(system, clip.key).is_file()]

    def save(self, system: str, key: str, waveform: Tensor | np.ndarray, sample_rate: int) -> None:
        """Waveform (T,). In one step: half a file is never taken for the clip."""
        path = self.path(system, key)
        partial = path.with_name(f".{path.name}")
        save_waveform(partial, waveform, sample_rate)
        partial.replace(path)

    def fill(self, system: str, run: System, clips: Sequence[TestClip], sample_rate: int, batch_size: int) -> None:
        """Writes what is missing, batch by batch: an interrupted report resumes where it stopped."""
        todo = self.missing(system, clips)
        for start in range(0, len(todo), batch_size):
            begin = time.perf_counter()
            batch = todo[start : start + batch_size]
            waveform = torch.from_numpy(np.stack([clip.waveform for clip in batch]))  # (B, T)
            with torch.no_grad():
                output = run(batch, waveform)  # (B, T)
            for clip, samples in zip(batch, output):
                self.save(system, clip.key, samples, sample_rate)
            self.seconds += time.perf_counter() - begin
            self.write_index()
            print(f"{system}: {start + len(batch)} of {len(todo)} clips", flush=True)

    def read(self, system: str, keys: Sequence[str], audio: AudioConfig) -> Tensor:
        """=> (B, T), as written, cut or zero-padded to the experiment's length"""
        waveform = torch.zeros(len(keys), audio.num_samples)
        for i, key in enumerate(keys):
            samples = load_waveform(self.path(system, key), audio.sample_rate)[: audio.num_samples]
            waveform[i, : len(samples)] = torch.from_numpy(samples)
        return waveform
