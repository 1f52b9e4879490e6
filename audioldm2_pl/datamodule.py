"""Shards in, batches out: {"waveform" (B, T), "text", "transcript", "key"}.

The shard format. A split is a folder of uncompressed tars and an index.json:

    {"format": 1, "sample_rate": 16000, "num_clips": N, "seconds": S, "longest_seconds": l,
     "shards": [{"name": "000000.tar", "num_clips": n, "seconds": s, "sha256": "..."}]}

A clip is two members, `<key>.flac` (16-bit mono) and `<key>.json` with "text" or "captions" (a list), and, where
known, "transcript", "labels", "source", "licence", "start", "duration".

The order of the clips is a function of (seed, epoch): shards are shuffled, then the clips of each shard. Ranks and
workers take that one order in strides. A position in it is all that a resumed run needs.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import soundfile
import soxr
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from audioldm2_pl.audio import AudioConfig, fit_length, normalise
from audioldm2_pl.errors import UserError

SHARD_FORMAT = 1  # of index.json
SILENCE = 1e-4  # a crop whose peak is below this is drawn again
CROP_TRIES = 10  # draws before a silent crop is taken after all

Members = dict[str, tuple[int, int]]  # suffix -> (offset, size) in the tar


@dataclass
class DataConfig:
    """Which shards are read, and how."""

    train: list[str] = field(default_factory=list)  # folders of the training split's shards
    test: str | None = None  # folder of the held-out split: validation and the report
    judge: str | None = None  # folder of the split that trains the report's judge
    num_workers: int = 0  # processes that decode; 0 decodes in the training process


class ShardFolder:
    """One split's shards: its index, and each clip by number."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        index = self.path / "index.json"
        if not index.is_file():
            raise UserError(
                f"{self.path}: no shards here (index.json is missing); write them with python -m data.<corpus>"
            )
        try:
            self.index = json.loads(index.read_text())
            version = self.index.get("format")
            self.counts = [shard["num_clips"] for shard in self.index["shards"]] if version == SHARD_FORMAT else []
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{index}: not the index of a folder of shards; write the shards again") from None
        if version != SHARD_FORMAT:
            raise UserError(f"{index}: format {version!r}, this version reads {SHARD_FORMAT}; write it anew")
        self.advice = f"check the folder with python -m data.shards {self.path}"
        self.members: dict[int, list[tuple[str, Members]]] = {}  # shard -> its clips' keys and members

    def __len__(self) -> int:
        return sum(self.counts)

    def clips(self, shard: int) -> list[tuple[str, Members]]:
        """A shard's clips: key, and where its members lie. The tar's headers are read once."""
        if shard not in self.members:
            path = self.path / self.index["shards"][shard]["name"]
            clips: dict[str, Members] = {}
            try:
                with tarfile.open(path, "r:") as tar:
                    for member in tar:
                        key, _, suffix = member.name.partition(".")
                        clips.setdefault(key, {})[suffix] = (member.offset_data, member.size)
            except (OSError, tarfile.TarError) as error:
                raise UserError(f"{path}: cannot be read ({error}); {self.advice}") from None
            if len(clips) != self.counts[shard]:
                raise UserError(f"{path}: {len(clips)} clips where index.json says {self.counts[shard]}; {self.advice}")
            self.members[shard] = list(clips.items())
        return self.members[shard]

    def read(self, shard: int, clip: int) -> dict[str, Any]:
        """One clip: {"key", "waveform" (T,) at its own rate, "sample_rate", and the JSON's fields}."""
        key, members = self.clips(shard)[clip]
        path = self.path / self.index["shards"][shard]["name"]
        try:
            with path.open("rb") as file:
                content = {}
                for suffix in ("json", "flac"):
                    offset, size = members[suffix]
                    file.seek(offset)
                    content[suffix] = file.read(size)
            waveform, rate = soundfile.read(io.BytesIO(content["flac"]), dtype="float32", always_2d=True)
            fields = json.loads(content["json"])
        except (KeyError, ValueError, OSError, soundfile.LibsndfileError) as error:
            raise UserError(f"{path}: clip {key} cannot be read ({error}); {self.advice}") from None
        return {**fields, "key": key, "waveform": waveform[:, 0], "sample_rate": rate}


def shuffled(folders: list[ShardFolder], seed: int, epoch: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """One epoch's order: (folder, shard, the order of the shard's clips) by turns."""
    shards = [(f, s) for f, folder in enumerate(folders) for s in range(len(folder.counts))]
    rng = np.random.default_rng((seed, epoch))
    for i in rng.permutation(len(shards)):
        f, s = shards[i]
        yield f, s, np.random.default_rng((seed, epoch, i)).permutation(folders[f].counts[s])


def endless_order(folders: list[ShardFolder], seed: int, start: int) -> Iterator[tuple[int, int, int, int]]:
    """(position, folder, shard, clip) from position `start` on, for ever; what lies before is skipped by count."""
    num_clips = sum(len(folder) for folder in folders)
    position = start - start % num_clips
    while True:
        for f, s, order in shuffled(folders, seed, position // num_clips):
            skip = min(max(0, start - position), len(order))
            for clip in order[skip:]:
                yield position + skip, f, s, int(clip)
                skip += 1
            position += len(order)


class ClipStream(IterableDataset):
    """The training clips of one rank, or with `start=None` each clip once in storage order."""

    def __init__(self, folders: list[ShardFolder], audio: AudioConfig, num_samples: int, seed: int, batch_size: int,
                 start: int | None, rank: int = 0, world_size: int = 1):  # fmt: skip
        self.folders = folders
        self.audio = audio
        self.num_samples = num_samples
        self.seed = seed
        self.batch_size = batch_size
        self.start = start
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        for position, f, s, clip in self.order():
            own, rest = divmod(position - (self.start or 0), self.world_size)
            if rest == self.rank and own // self.batch_size % count == number:
                yield self.prepare(self.folders[f].read(s, clip), position)

    def order(self) -> Iterator[tuple[int, int, int, int]]:
        if self.start is not None:
            return endless_order(self.folders, self.seed, self.start)
        clips = [
            (f, s, c) for f, folder in enumerate(self.folders) for s, n in enumerate(folder.counts) for c in range(n)
        ]
        return ((position, *clip) for position, clip in enumerate(clips))

    def prepare(self, clip: dict[str, Any], position: int) -> dict[str, Any]:
        """Crop, resample, level and choose a caption; the draws follow from (seed, position)."""
        rng = np.random.default_rng((self.seed, position, 1))
        waveform, rate = clip["waveform"], clip["sample_rate"]
        wanted = round(self.num_samples * rate / self.audio.sample_rate)
        start = draw_crop(waveform, wanted, rng) if self.start is not None else 0
        waveform = fit_length(waveform, wanted, start)
        if rate != self.audio.sample_rate:
            waveform = fit_length(soxr.resample(waveform, rate, self.audio.sample_rate), self.num_samples)
        captions = clip.get("captions") or [clip.get("text", "")]
        return {
            "waveform": torch.from_numpy(normalise(waveform, self.audio.peak)),
            "text": captions[int(rng.integers(len(captions)))],
            "transcript": clip.get("transcript", ""),
            "key": clip["key"],
        }


def draw_crop(waveform: np.ndarray, num_samples: int, rng: np.random.Generator) -> int:
    """Start of a random crop that is not silent, if a few draws find one."""
    last = len(waveform) - num_samples
    if last <= 0:
        return 0
    start = 0
    for _ in range(CROP_TRIES):
        start = int(rng.integers(last + 1))
        if np.abs(waveform[start : start + num_samples]).max() > SILENCE:
            break
    return start


def collate(clips: list[dict[str, Any]]) -> dict[str, Any]:
    batch: dict[str, Any] = {name: [clip[name] for clip in clips] for name in ("text", "transcript", "key")}
    batch["waveform"] = torch.stack([clip["waveform"] for clip in clips])  # (B, T)
    return batch


class AudioShards(L.LightningDataModule):
    """The batches of one stage. Its state is the position in the order of clips.

    `seed` should differ between stages; `crop_seconds` trains on random crops, None on whole clips.
    """

    def __init__(
        self, data: DataConfig, audio: AudioConfig, seed: int, batch_size: int, crop_seconds: float | None = None
    ):
        super().__init__()
        if not data.train:
            raise UserError("data.train is empty; name the folders of the training shards")
        self.data = data
        self.audio = audio
        self.seed = seed
        self.batch_size = batch_size
        self.num_samples = round((crop_seconds or audio.clip_seconds) * audio.sample_rate)
        self.train = [ShardFolder(path) for path in data.train]
        self.start = 0  # position of the next clip

    def loader(self, stream: ClipStream) -> DataLoader:
        workers = self.data.num_workers
        return DataLoader(
            stream, stream.batch_size, num_workers=workers, collate_fn=collate, persistent_workers=workers > 0
        )

    def train_dataloader(self) -> DataLoader:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        stream = ClipStream(
            self.train, self.audio, self.num_samples, self.seed, self.batch_size, self.start, rank, world_size
        )
        return self.loader(stream)

    def val_dataloader(self) -> DataLoader | list:
        if self.data.test is None:
            return []
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        folders = [ShardFolder(self.data.test)]
        return self.loader(
            ClipStream(folders, self.audio, self.num_samples, self.seed, self.batch_size, None, rank, world_size)
        )

    def storage_order(self) -> DataLoader:
        """Every training clip once, in the order in which the shards hold them: what caching goes through.

        Raises UserError where clips are longer than a training clip, since a cached crop would never change.
        """
        for folder in self.train:
            longest = folder.index["longest_seconds"]
            if longest * self.audio.sample_rate > self.num_samples + 16:  # the index rounds to milliseconds
                raise UserError(
                    f"{folder.path}: clips of up to {longest:.2f} s; {self.num_samples} samples are trained on; "
                    "cache_features needs whole clips, set it to false"
                )
        return self.loader(ClipStream(self.train, self.audio, self.num_samples, self.seed, self.batch_size, None))

    def state_dict(self) -> dict[str, Any]:
        assert self.trainer is not None
        batches = self.trainer.fit_loop.batch_idx + 1
        return {"position": batches * self.batch_size * self.trainer.world_size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.start = state_dict["position"]
