"""The four ways from a test clip or its prompt to audio, and the folders that hold what they give.

real              the test clip itself
reconstruction    its log-mel through VAE and vocoder: the ceiling of every generation
loa_to_audio      T-UNet, VAE and vocoder, given AudioMAE's LOA of the clip: as if GPT-2 were perfect
text_to_audio     the whole system, given the caption alone
"""

import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audioldm2_pl.audio import AudioConfig, load_waveform, save_waveform
from audioldm2_pl.errors import UserError
from audioldm2_pl.seeds import seed_of

from .clips import LabelledClip, read_clips

SYSTEMS = ("real", "reconstruction", "loa_to_audio", "text_to_audio")

System = Callable[[list[LabelledClip], Tensor], Tensor]  # clips and their waveforms (B, T) => waveforms (B, T)


def select_clips(split: Path, audio: AudioConfig, clips_per_class: int, order_clips: int) -> list[LabelledClip]:
    """The split's first clips: `clips_per_class` with one event of each class, sorted by class, then
    `order_clips` with two events of different classes."""
    single: list[LabelledClip] = []
    ordered: list[LabelledClip] = []
    count: Counter[str] = Counter()
    for clip in read_clips(split, audio):
        if len(clip.events) == 1 and count[clip.names[0]] < clips_per_class:
            count[clip.names[0]] += 1
            single.append(clip)
        elif clip.is_ordered_pair and len(ordered) < order_clips:
            ordered.append(clip)
    if not single:
        raise UserError(f"{split} holds no clip with one named event: the report needs labelled clips.")
    return sorted(single, key=lambda clip: clip.names[0]) + ordered


def generate_clips(
    model: Any, clips: list[LabelledClip], origin: dict[str, Any], loa: Tensor | None = None, **changes: Any
) -> Tensor:
    """The model's audio (B, T) for the clips' captions, by the origin's seed and sampling but for `changes`."""
    # A seed a clip: its audio does not depend on which clips share its batch.
    seeds = [seed_of(origin["seed"], "report", clip.key) for clip in clips]
    seconds = len(clips[0].waveform) / model.sample_rate
    sampling = {name: value for name, value in origin["sampling"].items() if name != "sampler"}
    texts = [clip.text for clip in clips]
    return model.generate(texts, seconds=seconds, seed=seeds, loa=loa, **{**sampling, **changes})


def systems_of(model: Any, origin: dict[str, Any]) -> dict[str, System]:
    return {
        "real": lambda clips, waveform: waveform,
        "reconstruction": lambda clips, waveform: model.reconstruct(waveform),
        "loa_to_audio": lambda clips, waveform: generate_clips(model, clips, origin, model.loa_of(waveform)),
        "text_to_audio": lambda clips, waveform: generate_clips(model, clips, origin),
    }


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

    def path(self, system: str, clip: LabelledClip) -> Path:
        return self.folder / system / f"{clip.key}.flac"

    def missing(self, systems: Iterable[str], clips: list[LabelledClip]) -> dict[str, list[LabelledClip]]:
        return {s: [clip for clip in clips if not self.path(s, clip).is_file()] for s in systems}

    def save(self, system: str, clip: LabelledClip, waveform: Tensor | np.ndarray, sample_rate: int) -> None:
        """In one step: half a file is never taken for the clip."""
        path = self.path(system, clip)
        partial = path.with_name(f".{path.name}")
        save_waveform(partial, waveform, sample_rate)
        partial.replace(path)

    def fill(self, systems: dict[str, System], clips: list[LabelledClip], sample_rate: int, batch_size: int) -> None:
        """Writes what is missing, batch by batch: an interrupted report goes on where it stopped."""
        for system, todo in self.missing(systems, clips).items():
            for start in range(0, len(todo), batch_size):
                begin = time.perf_counter()
                batch = todo[start : start + batch_size]
                waveform = torch.from_numpy(np.stack([clip.waveform for clip in batch]))  # (B, T)
                with torch.no_grad():
                    output = systems[system](batch, waveform)  # (B, T)
                for clip, samples in zip(batch, output):
                    self.save(system, clip, samples, sample_rate)
                self.seconds += time.perf_counter() - begin
                self.write_index()
                print(f"{system}: {start + len(batch)} of {len(todo)} clips", flush=True)


def read_audio(folder: Path, system: str, clips: list[LabelledClip], audio: AudioConfig) -> Tensor:
    """=> (len(clips), num_samples), as written, cut or zero-padded to the experiment's length"""
    waveform = torch.zeros(len(clips), audio.num_samples)
    for i, clip in enumerate(clips):
        samples = load_waveform(folder / system / f"{clip.key}.flac", audio.sample_rate)
        samples = samples[: audio.num_samples]
        waveform[i, : len(samples)] = torch.from_numpy(samples)
    return waveform


def digest_of_folder(folder: Path) -> str:
    """SHA-256 over names and contents of all files below `folder`."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(folder)).encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
