"""A tiny corpus of three easy sounds, and a model that gives every clip back."""

import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch

from audioldm2_pl.audio import AudioConfig
from evaluation.clips import read_clips

AUDIO = AudioConfig(clip_seconds=0.64)
NAMES = ("hiss", "hum", "whistle")


def sound(name: str, seconds: float, rng: np.random.Generator) -> np.ndarray:
    times = np.arange(round(seconds * AUDIO.sample_rate)) / AUDIO.sample_rate
    hz = {"hiss": 0, "hum": rng.uniform(200, 300), "whistle": rng.uniform(2500, 3500)}[name]
    wave = np.sin(2 * np.pi * hz * times) if hz else rng.standard_normal(len(times)) / 4
    return 0.4 * wave


def write_split(folder: Path, num_clips: int, seed: int) -> Path:
    """Every third clip holds two events; the others take the classes in turn."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    half = AUDIO.clip_seconds / 2
    with tarfile.open(folder / "000000.tar", "w") as archive:
        for i in range(num_clips):
            pair = i % 3 == 2
            names = list(rng.permutation(NAMES)[:2]) if pair else [NAMES[(i - i // 3) % 3]]
            length = half if pair else AUDIO.clip_seconds
            wave = np.concatenate([sound(name, length, rng) for name in names])
            flac = io.BytesIO()
            soundfile.write(flac, wave, AUDIO.sample_rate, format="FLAC", subtype="PCM_16")
            events = [{"name": str(name), "start": k * half, "duration": length} for k, name in enumerate(names)]
            fields = {"text": f"clip {seed}-{i}: {' then '.join(names)} <loud>", "events": events}
            members = {"flac": flac.getvalue(), "json": json.dumps(fields).encode()}
            for suffix, content in members.items():
                info = tarfile.TarInfo(f"clip-{seed}-{i:03d}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    shard = {
        "name": "000000.tar",
        "num_clips": num_clips,
        "seconds": num_clips * AUDIO.clip_seconds,
        "sha256": hashlib.sha256((folder / "000000.tar").read_bytes()).hexdigest(),
    }
    index = {"format": 1, "sample_rate": AUDIO.sample_rate, "num_clips": num_clips, "shards": [shard]}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


class PerfectModel:
    """Stands in for AudioLDM2: gives back the clip that a prompt belongs to."""

    sample_rate, reads_transcripts = AUDIO.sample_rate, False

    def __init__(self, split: Path):
        self.clips = {clip.text: torch.from_numpy(clip.waveform) for clip in read_clips(split, AUDIO)}
        self.num_generated = 0

    def generate(self, requests, *, seconds, sampling, loa=None, **changes):
        assert replace(sampling, **changes).num_steps
        assert seconds == AUDIO.clip_seconds
        self.num_generated += len(requests)
        return torch.stack([self.clips[request.prompt] for request in requests]) if loa is None else loa

    def reconstruct(self, waveform):
        return waveform

    def loa_of(self, waveform, speaks=False):
        return waveform
