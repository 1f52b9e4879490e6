"""Shards in, batches out: {"waveform" (B, T), "text", "transcript", "key", "id"}.

A key is unique within its split. An id, "folder/shard/clip" by number, is unique within all folders of `data.train`;
those of validation begin with "test/".

Of encoded clips (see `encoded_shards`) "features", name -> (B, ...), stand in the waveform's place; where the stage
keeps every clip's features itself, nothing does.

The shard format. A split is a folder of uncompressed tars and an index.json:

    {"format": 1, "sample_rate": 16000, "num_clips": N, "seconds": S, "longest_seconds": l,
     "shards": [{"name": "000000.tar", "num_clips": n, "seconds": s, "sha256": "..."}]}

A clip is two members, `<key>.flac` (16-bit mono) and `<key>.json` with "text" or "captions" (a list), and, where
known, "transcript", "labels", "source", "licence", "start", "duration". Of other writers' shards wav, mp3, ogg and
opus, txt for the caption, lists under "text" and folders in names are read, too, as webdataset reads them.

The order of the clips is a function of (seed, epoch): shards are shuffled, then the clips of each shard. Ranks and
workers take that one order in strides. A position in it is all that a resumed run needs. A bad clip's position takes
the sound and text of the next position that has a good one, so that batches stay full and every rank takes equal
steps. In validation, too, and where the clips do not fill the ranks' last step, the first ones come once more.
"""

from __future__ import annotations

import signal
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice, zip_longest
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import distributed
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from audioldm2_pl.audio import SILENT_PEAK, AudioConfig, prepare_clip
from audioldm2_pl.shards.order import Place, deal, endless_order, storage_order, weighted_order
from audioldm2_pl.shards.encoded import EncodedFolder, choose_caption, stack_features
from audioldm2_pl.errors import UserError, reason_of
from audioldm2_pl.fields import bounded, check_fields
from audioldm2_pl.shards.quarantine import MAX_BAD_FRACTION, Quarantine
from audioldm2_pl.shards.remote import CACHE_GIB, RemoteFolder, is_remote
from audioldm2_pl.shards.reader import BadClip, ShardFolder, captions_of, tell_unread_caption

CROP_TRIES = 10  # draws before a silent crop is taken after all
STORAGE_BATCH = 16  # clips of a batch in storage order: one number for all stages, which share what they make of them
GRACE_SECONDS = 30  # for which a worker outlives SIGTERM
BATCHES_AHEAD = 4  # remote shards are fetched at least so many global batches before their clips are read


@dataclass
class DataConfig:
    """Which shards are read, and how. A folder of shards is a path, a URL: http(s)://…, s3://…, or pipe:COMMAND.

    A pipe's shell command prints the file {name}; the command line permits it, no file does.
    """

    train: list[str] = field(default_factory=list)  # folders of the training split's shards
    test: str | None = None  # folder of the held-out split: validation and the report
    judge: str | None = None  # folder of the split that trains the report's judge
    num_workers: int = bounded(0, ge=0, le=1_024)  # processes that decode; 0 decodes in the training process
    weights: list[float] = bounded(list, gt=0)  # of the train folders' draws; empty: each clip once an epoch
    encoded: list[str] = field(default_factory=list)  # of each train folder its features, from python -m data.encode
    max_bad_fraction: float = bounded(
        MAX_BAD_FRACTION, ge=0, le=1
    )  # of the clips; training stops when more cannot be used
    cache: str | None = None  # local folder for shards from URLs; null makes one in the temporary directory
    cache_gib: float = bounded(CACHE_GIB, gt=0)  # what it may hold; two shards of each train folder at least

    def __post_init__(self) -> None:
        check_fields(self, "data.")
        if self.weights and len(self.weights) != len(self.train):
            raise UserError(
                f"data.weights has {len(self.weights)} numbers for the {len(self.train)} folders of data.train; "
                "give one for each"
            )
        if self.encoded and len(self.encoded) != len(self.train):
            raise UserError(
                f"data.encoded has {len(self.encoded)} folders for the {len(self.train)} of data.train; "
                "give one for each"
            )

    def open(self, path: str) -> ShardFolder:
        return ShardFolder(path, self.remote(path))

    def remote(self, path: str) -> RemoteFolder | None:
        return RemoteFolder(path, self.cache, self.cache_gib) if is_remote(path) else None


class ClipStream(IterableDataset):
    """The training clips of one rank, or with `start=None` each good clip once in storage order: with `validation` in
    whole steps of all ranks.

    In a worker a UserError becomes a last clip {"error": its line}: see `ClipLoader`.
    """

    def __init__(self, folders: Sequence[ShardFolder], audio: AudioConfig, num_samples: int, seed: int, batch_size: int,
                 start: int | None, rank: int = 0, world_size: int = 1,
                 weights: Sequence[float] = (), quarantine: Quarantine | None = None,
                 silent: Container[str] = (), validation: bool = False):  # fmt: skip
        self.folders = folders
        self.audio = audio
        self.num_samples = num_samples
        self.seed = seed
        self.batch_size = batch_size
        self.start = start
        self.rank = rank
        self.world_size = world_size
        self.weights = weights
        self.quarantine = quarantine or Quarantine(folders)
        self.silent = silent  # ids of clips that come without their sound
        self.validation = validation

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        try:
            yield from self.deal(worker.id, worker.num_workers) if worker else self.deal(0, 1)
        except UserError as error:
            if worker is None:
                raise
            yield {"error": str(error)}

    def deal(self, worker: int, num_workers: int) -> Iterator[dict[str, Any]]:
        """Every rank takes each world_size-th clip, and its workers whole batches of these by turns."""
        first = self.start or 0
        steps = -(-sum(map(len, self.folders)) // self.world_size)
        for position, *place in islice(self.fetched_ahead(), steps * self.world_size if self.validation else None):
            own, rest = divmod(position - first, self.world_size)
            if rest == self.rank and own // self.batch_size % num_workers == worker:
                clip = self.load(position, *place) or self.replacement(position)
                if clip:
                    yield clip

    def order(self, start: int) -> Iterator[Place]:
        if self.validation:
            return ((p, *place[1:]) for p, place in islice(enumerate(cycle(storage_order(self.folders))), start, None))
        if self.start is None:
            return islice(storage_order(self.folders), start, None)
        if self.weights:
            return weighted_order(self.folders, self.weights, self.seed, start)
        return endless_order(self.folders, self.seed, start)

    def fetched_ahead(self) -> Iterator[Place]:
        """The order; remote shards are fetched while the one before is read."""
        start = self.start or 0
        if not any(folder.remote for folder in self.folders):
            yield from self.order(start)
            return
        num_shards = sum(len(folder.counts) for folder in self.folders)
        a_shard = sum(map(len, self.folders)) // num_shards * (len(self.folders) if self.weights else 1)
        ahead = self.order(start + max(a_shard, BATCHES_AHEAD * self.batch_size * self.world_size))
        wanted: dict[int, int] = {}  # folder -> shard
        for place, later in zip_longest(self.order(start), ahead):
            if later and wanted.get(later[1]) != later[2]:
                wanted[later[1]] = later[2]
                self.folders[later[1]].prefetch(later[2])
            yield place

    def load(self, position: int, f: int, shard: int, clip: int) -> dict[str, Any] | None:
        """A clip as it is trained on at `position`, or None and a place in quarantine."""
        folder = self.folders[f]
        if (folder.shard_path(shard), clip) in self.quarantine:
            return None
        try:
            name = f"{'test/' if self.validation else ''}{f}/{shard}/{clip}"
            fields = folder.load_audible(shard, clip, name in self.silent)
            if self.rank == 0 and ((worker := get_worker_info()) is None or worker.id == 0):
                tell_unread_caption(folder.path, fields)
            return self.prepare(fields, position) | {"id": name}
        except BadClip as bad:
            self.quarantine.add(folder, shard, clip, bad)
            return None

    def replacement(self, position: int) -> dict[str, Any] | None:
        """The next good clip of the order for a bad one; None where each good clip comes once."""
        if self.start is None and not self.validation:
            return None
        num_clips = sum(map(len, self.folders))
        for _, *place in islice(self.order(position + 1), num_clips):
            if clip := self.load(position, *place):
                return clip
        raise UserError(f"{', '.join(str(folder.path) for folder in self.folders)}: no clip that can be used")

    def prepare(self, clip: dict[str, Any], position: int) -> dict[str, Any]:
        """Crop, resample, level and choose a caption; BadClip, whatever goes wrong with it."""
        try:
            return self.drawn(clip, position)
        except Exception as error:
            raise BadClip(clip["key"], f"no clip to train on ({reason_of(error)})") from None

    def drawn(self, clip: dict[str, Any], position: int) -> dict[str, Any]:
        """The draws follow from (seed, position)."""
        rng = np.random.default_rng((self.seed, position, 1))
        sound = {}
        if "waveform" in clip:
            sound = {"waveform": torch.from_numpy(self.cut(clip["waveform"], clip["sample_rate"], rng))}
        captions = captions_of(clip)
        caption = int(rng.integers(len(captions)))
        if "features" in clip:
            sound = {"features": choose_caption(clip["features"], caption)}
        return {
            **sound,
            "text": captions[caption],
            "transcript": clip.get("transcript", ""),
            "key": clip["key"],
        }

    def cut(self, waveform: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
        """(T,) at `rate` => (num_samples,) at the rate and level of the audio config."""
        wanted = round(self.num_samples * rate / self.audio.sample_rate)
        start = draw_crop(waveform, wanted, rng) if self.start is not None else 0
        return prepare_clip(waveform, rate, self.audio, self.num_samples, start)


def draw_crop(waveform: np.ndarray, num_samples: int, rng: np.random.Generator) -> int:
    """Start of a random crop that is not silent, if a few draws find one."""
    last = len(waveform) - num_samples
    if last <= 0:
        return 0
    start = 0
    for _ in range(CROP_TRIES):
        start = int(rng.integers(last + 1))
        if np.abs(waveform[start : start + num_samples]).max() > SILENT_PEAK:
            break
    return start


def collate(clips: list[dict[str, Any]]) -> dict[str, Any]:
    if "error" in clips[-1]:
        return clips[-1]
    batch: dict[str, Any] = {name: [clip[name] for clip in clips] for name in ("text", "transcript", "key", "id")}
    if "features" in clips[0]:
        batch["features"] = stack_features([clip["features"] for clip in clips])
    elif "waveform" in clips[0]:
        batch["waveform"] = torch.stack([clip["waveform"] for clip in clips])  # (B, T)
    return batch


def outlive_signals(worker: int) -> None:
    """A signal to the whole job reaches the workers, too: they go on until the trainer has saved its checkpoint."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda signum, frame: signal.alarm(GRACE_SECONDS))


class ClipLoader(DataLoader):
    """Raises a worker's UserError as it was; torch would wrap it in the worker's traceback."""

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        for batch in super().__iter__():
            if "error" in batch:
                self._iterator = None  # ends persistent workers with this loop, not whenever the loader is freed
                raise UserError(batch["error"])
            yield batch


class AudioShards(L.LightningDataModule):
    """The batches of one stage. Its state is the position in the order of clips.

    `seed` should differ between stages; `crop_seconds` trains on random crops, None on whole clips; bad clips are
    listed in the file `quarantine`, which all ranks share; `max_clips` trains on so many clips only, of each shard its
    first.
    """

    def __init__(
        self,
        data: DataConfig,
        audio: AudioConfig,
        seed: int,
        batch_size: int,
        crop_seconds: float | None = None,
        quarantine: str | Path | None = None,
        max_clips: int | None = None,
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
            if not len(folder):
                raise UserError(f"{folder.path}: holds no clips; take it out of data.train")
        if max_clips is not None:
            deal(self.train, max_clips)
            if empty := [folder for folder in self.train if not len(folder)]:
                raise UserError(f"{empty[0].path}: max_clips={max_clips} leaves none of its clips; give more")
        self.quarantine = Quarantine(self.train, data.max_bad_fraction, quarantine)
        self.test_quarantine: Quarantine | None = None
        self.silent: Container[str] = ()  # ids of training clips whose sound the stage does not need
        self.start = 0  # position of the next clip
        self.batches = 0  # that were trained on before it

    def stream(
        self, folders: Sequence[ShardFolder], quarantine: Quarantine, start: int | None, rank: int = 0,
        world_size: int = 1, silent: Container[str] = (), validation: bool = False,
    ) -> ClipStream:  # fmt: skip
        return ClipStream(
            folders, self.audio, self.num_samples, self.seed, self.batch_size, start, rank, world_size,
            self.data.weights, quarantine, silent, validation,
        )  # fmt: skip

    def loader(self, stream: ClipStream) -> DataLoader:
        workers = self.data.num_workers
        return ClipLoader(
            stream,
            stream.batch_size,
            num_workers=workers,
            collate_fn=collate,
            persistent_workers=workers > 0,
            worker_init_fn=outlive_signals,
        )

    def train_dataloader(self) -> DataLoader:
        place = (self.start, *self.rank_and_world_size())
        return self.loader(self.stream(self.train, self.quarantine, *place, silent=self.silent))

    def first_clips(self) -> DataLoader:
        """The batches of one rank that has all clips, from the first on, wherever training has begun."""
        return self.loader(self.stream(self.train, self.quarantine, 0))

    def val_dataloader(self) -> DataLoader | list:
        """Every rank has as many batches as the others, and one at least, whatever clips are bad."""
        if self.data.test is None:
            return []
        folders = [self.data.open(self.data.test)]
        if not len(folders[0]):
            raise UserError(f"{folders[0].path}: holds no clips; take it out of data.test")
        self.test_quarantine = Quarantine(folders, self.data.max_bad_fraction, self.quarantine.path)
        place = (None, *self.rank_and_world_size())
        return self.loader(self.stream(folders, self.test_quarantine, *place, validation=True))

    def storage_order(self) -> DataLoader:
        """Every training clip once, in the order in which the shards hold them: what caching goes through.

        Raises UserError where clips are longer than a training clip, since a cached crop would never change.
        """
        self.check_whole("cache_features needs whole clips, set it to false")
        stream = self.stream(self.train, self.quarantine, None)
        stream.batch_size = STORAGE_BATCH
        return self.loader(stream)

    def leave_out_sound(self, ids: Container[str]) -> None:
        """From now on these clips come to training without their waveforms, which are not decoded."""
        self.silent = ids

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
        """From now on the features `needed`, and where stored those of `texts`, stand for the waveforms in training.

        Raises UserError where `data.encoded` lacks a needed feature, or is not of these shards, this front end, or the
        parts in the model folder.
        """
        self.check_whole("features are of whole clips, set data.encoded=[]")
        if self.num_samples != self.audio.num_samples:
            raise UserError("data.encoded: features are of whole clips; take crop_seconds out of the stage's recipe")
        folders = [EncodedFolder(path, (*needed, *texts), self.data.remote(path)) for path in self.data.encoded]
        for source, folder in zip(self.train, folders):
            folder.check_source(source, self.audio)
            folder.check_parts(model, needed)
            folder.dealt = source.dealt
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
        return {"position": self.start + since, "batches": batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The position is that of the order, whatever number of ranks took their share of it."""
        _, world_size = self.rank_and_world_size()
        self.start = state_dict["position"]
        # a state that does not count its batches is of as many ranks as there are now
        self.batches = state_dict.get("batches", self.start // (self.batch_size * world_size))
