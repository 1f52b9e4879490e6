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
from collections.abc import Callable
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


def systems_of(
    model: Any, seed: int, sampling: dict[str, Any]
) -> dict[str, Callable[[list[LabelledClip], Tensor], Tensor]]:
    """system -> function of clips and their waveforms (B, T) that gives waveforms (B, T)"""

    def generate(clips: list[LabelledClip], loa: Tensor | None = None) -> Tensor:
        # A seed a clip: its audio does not depend on which clips share its batch.
        seeds = [seed_of(seed, "report", clip.key) for clip in clips]
        seconds = len(clips[0].waveform) / model.sample_rate
        texts = [clip.text for clip in clips]
        return model.generate(texts, seconds=seconds, seed=seeds, loa=loa, **sampling)

    return {
        "real": lambda clips, waveform: waveform,
        "reconstruction": lambda clips, waveform: model.reconstruct(waveform),
        "loa_to_audio": lambda clips, waveform: generate(clips, loa=model.loa_of(waveform)),
        "text_to_audio": lambda clips, waveform: generate(clips),
    }


class AudioFolder:
    """<folder>/<system>/<key>.flac, and in index.json what they were made with and how long it took.

    `origin` is all that decides the audio of a clip: opened with another one, the folder is emptied.
    """

    def __init__(self, folder: Path, origin: dict[str, Any]):
        self.folder = folder
        self.index = folder / "index.json"
        self.origin = origin
        self.seconds = 0.0  # that earlier reports spent on what is kept
        if self.index.is_file():
            facts = json.loads(self.index.read_text())
            if facts["origin"] == origin:
                self.seconds = facts["seconds"]
            else:
                shutil.rmtree(folder)

    def path(self, system: str, clip: LabelledClip) -> Path:
        return self.folder / system / f"{clip.key}.flac"

    def missing(self, clips: list[LabelledClip]) -> dict[str, list[LabelledClip]]:
        return {s: [clip for clip in clips if not self.path(s, clip).is_file()] for s in SYSTEMS}

    def fill(self, model: Any, clips: list[LabelledClip], audio: AudioConfig, batch_size: int) -> None:
        """Writes what is missing, batch by batch: an interrupted report goes on where it stopped."""
        begin = time.perf_counter()
        self.folder.mkdir(parents=True, exist_ok=True)
        sampling = {k: v for k, v in self.origin["sampling"].items() if k != "sampler"}
        model.set_sampler(self.origin["sampling"]["sampler"])
        functions = systems_of(model, self.origin["seed"], sampling)
        for system, todo in self.missing(clips).items():
            for start in range(0, len(todo), batch_size):
                batch = todo[start : start + batch_size]
                waveform = torch.from_numpy(np.stack([clip.waveform for clip in batch]))  # (B, T)
                with torch.no_grad():
                    output = functions[system](batch, waveform)  # (B, T)
                for clip, samples in zip(batch, output):
                    save_waveform(self.path(system, clip), samples, audio.sample_rate)
                spent = self.seconds + time.perf_counter() - begin
                facts = {"origin": self.origin, "seconds": spent}
                self.index.write_text(json.dumps(facts, indent=2) + "\n")
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
