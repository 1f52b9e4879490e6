"""Shards in, batches out: {"waveform" (B, T), "text", "transcript", "key", "id"}.

A key is unique within its split. An id, "folder/shard/clip" by number, is unique within all folders of `data.train`;
those of validation begin with "test/".

Of precomputed clips (see `encoded`) "features", name -> (B, ...), replace the waveform; a stage that caches every
clip's features itself gets neither. A stage that asks for pictures also gets "image", a list of uint8 (H, W, 3), and
"image_id" (B,), equal for clips of the same pictures; one that speaks "phonemes", which the data workers make.
`format` says what a folder of shards holds, `stream` in which order it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import distributed
from torch.utils.data import DataLoader

from audioldm2_pl.audio import AudioConfig
from audioldm2_pl.errors import UserError
from audioldm2_pl.fields import bounded, check_fields
from audioldm2_pl.shards.encoded import EncodedFolder
from audioldm2_pl.shards.order import select
from audioldm2_pl.shards.quarantine import MAX_BAD_FRACTION, Quarantine
from audioldm2_pl.shards.reader import ShardFolder
from audioldm2_pl.shards.remote import CACHE_GIB, RemoteFolder, is_remote
from audioldm2_pl.shards.stream import ClipLoader, ClipStream, collate, outlive_signals

OPEN_SHARDS = 256  # files of all folders together that a process keeps open
STORAGE_BATCH = 16  # clips of a batch in storage order: one number for all stages, which share what they make of them


@dataclass
class DataConfig:
    """Which shards are read, and how. A folder of shards is a path, a URL: http(s)://…, s3://…, or pipe:COMMAND.

    A pipe's shell command prints the file {name}; the command line permits it, no file does.
    """

    train: list[str] = field(default_factory=list)  # folders of the training split's shards
    test: str | None = None  # folder of the held-out split: validation and the report
    judge: str | None = None  # folder of the split that trains the report's sound classifier
    num_workers: int = bounded(0, ge=0, le=1_024)  # processes that decode; 0 decodes in the training process
    interleave_shards: int = bounded(32, ge=1, le=512)  # read at a time, with weights of each folder
    weights: list[float] = bounded(list, gt=0)  # of the train folders' draws; empty: each clip once an epoch
    encoded: list[str] = field(default_factory=list)  # of each train folder its features, from python -m data.encode
    max_bad_fraction: float = bounded(
        MAX_BAD_FRACTION, ge=0, le=1
    )  # of the clips; training stops when more cannot be used
    cache: str | None = None  # local folder for shards from URLs; null makes one in the temporary directory
    cache_gib: float = bounded(CACHE_GIB, gt=0)  # what it may hold; above interleave_shards shards at least

    def __post_init__(self) -> None:
        check_fields(self, "data.")
        for name, entries in (("weights", self.weights), ("encoded", self.encoded)):
            if entries and len(entries) != len(self.train):
                raise UserError(
                    f"data.{name} has {len(entries)} entries for the {len(self.train)} folders of data.train; "
                    "give one for each"
                )

    def open(self, path: str) -> ShardFolder:
        folder = ShardFolder(path, self.remote(path))
        folder.remote = self.remote(str(folder.location))  # the shards may lie elsewhere than their index
        return folder

    def remote(self, path: str) -> RemoteFolder | None:
        return RemoteFolder(path, self.cache, self.cache_gib) if is_remote(path) else None


class AudioShards(L.LightningDataModule):
    """The batches of one stage. Its state is the position in the order of clips.

    `seed` should differ between stages; `crop_seconds` trains on random crops, None on whole clips; bad clips are
    listed in the file `quarantine`, which all ranks share.
    """

    def __init__(
        self,
        data: DataConfig,
        audio: AudioConfig,
        seed: int,
        batch_size: int,
        crop_seconds: float | None = None,
        quarantine: str | Path | None = None,
    ):
        super().__init__()
        if not data.train:
            raise UserError("data.train is empty; name the folders of the training shards")
        self.data = data
        self.audio = audio
        self.seed = seed
        self.batch_size = batch_size
        self.num_samples = round((crop_seconds or audio.clip_seconds) * audio.sample_rate)
        self.train = [data.open(path) for path in data.train]
        for folder in self.train:
            folder.num_open = max(2, OPEN_SHARDS // len(self.train))
            if not len(folder):
                raise UserError(f"{folder.path}: holds no clips; take it out of data.train")
        self.quarantine = Quarantine(self.train, data.max_bad_fraction, quarantine)
        self.test_quarantine: Quarantine | None = None
        self.cached: Container[str] = ()  # ids of training clips whose sound the stage does not need
        self.images = False  # whether the stage reads the clips' pictures
        self.phonemize: Callable[[str], str] | None = None  # the stage reads "phonemes" of transcripts, made by this
        self.interleave_shards = data.interleave_shards
        self.check_cache()
        self.start = 0  # position of the next clip
        self.batches = 0  # that were trained on before it

    def check_cache(self) -> None:
        """UserError where the cache cannot hold the remote shards that are read at a time, and the next one."""
        num_shards, groups = self.interleave_shards + 1, [self.train]
        if self.data.weights:
            groups = [[folder] for folder in self.train]
        sizes = [
            sorted(shard.get("bytes", 0) for folder in group if folder.remote for shard in folder.index["shards"])
            for group in groups
        ]
        wanted = sum(sum(group[-num_shards:]) for group in sizes) / 2**30
        if wanted > self.data.cache_gib:
            num_shards = min(num_shards, max(map(len, sizes)))
            raise UserError(
                f"data.cache_gib={self.data.cache_gib:g}: the {num_shards} shards that are read and fetched at a time "
                f"take {wanted:.3g} GiB; give it that much, or lower data.interleave_shards"
            )

    def limit_clips(self, max_clips: int | None) -> None:
        """From now on only so many clips are read, of each shard its first. UserError where a folder gets none."""
        if max_clips is None:
            return
        select(self.train, max_clips)
        if empty := [folder for folder in self.train if not len(folder)]:
            raise UserError(f"{empty[0].path}: max_clips={max_clips} leaves none of its clips; give more")

    def clip_stream(self, **fields: Any) -> ClipStream:
        """The clips of training in storage order, each once, unless `fields` of `ClipStream` say otherwise."""
        own = {"folders": self.train, "quarantine": self.quarantine, "start": None, "weights": self.data.weights}
        own |= {"interleave_shards": self.interleave_shards}
        own |= {
            name: getattr(self, name) for name in ("audio", "num_samples", "seed", "batch_size", "images", "phonemize")
        }
        return ClipStream(**own | fields)

    def loader(self, stream: ClipStream) -> DataLoader:
        workers = self.data.num_workers
        return ClipLoader(
            stream,
            stream.batch_size,
            num_workers=workers,
            collate_fn=collate,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),  # copied to a GPU beside what it computes
            worker_init_fn=outlive_signals,
        )

    def train_dataloader(self) -> DataLoader:
        rank, world_size = self.rank_and_world_size()
        return self.loader(
            self.clip_stream(start=self.start, rank=rank, world_size=world_size, without_sound=self.cached)
        )

    def first_clips(self) -> DataLoader:
        """The batches of one rank that has all clips, from the first on, wherever training has begun."""
        return self.loader(self.clip_stream(start=0))

    def val_dataloader(self) -> DataLoader | list:
        """Every rank has as many batches as the others, and one at least, whatever clips are bad."""
        if self.data.test is None:
            return []
        folders = [self.data.open(self.data.test)]
        if not len(folders[0]):
            raise UserError(f"{folders[0].path}: holds no clips; take it out of data.test")
        self.test_quarantine = Quarantine(folders, self.data.max_bad_fraction, self.quarantine.path)
        rank, world_size = self.rank_and_world_size()
        own = {"folders": folders, "quarantine": self.test_quarantine, "rank": rank, "world_size": world_size}
        return self.loader(self.clip_stream(**own, validation=True))

    def storage_order(self) -> DataLoader:
        """Every training clip once, in the order in which the shards hold them: what caching goes through.

        Raises UserError where clips are longer than a training clip, since a cached crop would never change.
        """
        self.check_whole("cache_features needs whole clips, set it to false")
        return self.loader(self.clip_stream(batch_size=STORAGE_BATCH))

    def skip_sound(self, ids: Container[str]) -> None:
        """From now on these clips come to training without their waveforms, which are not decoded."""
        self.cached = ids

    def check_whole(self, advice: str) -> None:
        """UserError where clips are longer than a training clip."""
        for folder in self.train:
            longest = folder.longest_seconds
            if longest * self.audio.sample_rate > self.num_samples + 16:  # the index rounds to milliseconds
                raise UserError(
                    f"{folder.path}: clips of up to {longest:.2f} s; {self.num_samples} samples are trained on; "
                    f"{advice}"
                )

    def read_encoded(self, needed: Sequence[str], texts: Sequence[str], model: Path) -> None:
        """From now on the features `needed`, and where stored those of `texts`, replace the waveforms in training.

        Raises UserError where `data.encoded` misses a needed feature, or is not of these shards, this front end, or
        the parts in the model folder.
        """
        self.check_whole("features are of whole clips, set data.encoded=[]")
        if self.images:
            raise UserError("data.encoded: holds no pictures, which conditioners.image hears; set data.encoded=[]")
        if self.num_samples != self.audio.num_samples:
            raise UserError("data.encoded: features are of whole clips; take crop_seconds out of the stage's recipe")
        folders = [EncodedFolder(path, (*needed, *texts), self.data.remote(path)) for path in self.data.encoded]
        for source, folder in zip(self.train, folders):
            folder.check_source(source, self.audio)
            folder.check_parts(model, needed)
            folder.selected = source.selected
        if len({tuple(folder.features) for folder in folders}) > 1:
            raise UserError("data.encoded: its folders hold different features; encode them with one experiment")
        self.train = list(folders)
        self.quarantine = Quarantine(self.train, self.data.max_bad_fraction, self.quarantine.path)

    def bad_clips(self) -> list[str]:
        """A line for each split of which clips were left out."""
        quarantines = [self.quarantine, *([self.test_quarantine] if self.test_quarantine else [])]
        return [line for line in (quarantine.summary() for quarantine in quarantines) if line]

    def rank_and_world_size(self) -> tuple[int, int]:
        if self.trainer:
            return self.trainer.global_rank, self.trainer.world_size
        joined = distributed.is_available() and distributed.is_initialized()
        return (distributed.get_rank(), distributed.get_world_size()) if joined else (0, 1)

    @property
    def world_size(self) -> int:
        return self.rank_and_world_size()[1]

    def state_dict(self) -> dict[str, Any]:
        assert self.trainer is not None
        batches = self.trainer.fit_loop.batch_idx + 1  # counts on from a run that was resumed
        since = (batches - self.batches) * self.batch_size * self.trainer.world_size
        return {"position": self.start + since, "batches": batches, "interleave_shards": self.interleave_shards}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The position is that of the order, whatever number of ranks took their share of it."""
        _, world_size = self.rank_and_world_size()
        self.start = state_dict["position"]
        self.interleave_shards = state_dict.get("interleave_shards", 1)  # of a run that began before there were more
        # a state that does not count its batches is of as many ranks as there are now
        self.batches = state_dict.get("batches", self.start // (self.batch_size * world_size))
