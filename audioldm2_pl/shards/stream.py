"""The clips of one rank in the order of training: drawn, cropped, levelled, collated.

The order of the clips is a function of (seed, epoch) (see `order`). Ranks and workers take that one order in strides. A
position in it is all that a resumed run needs. A bad clip is replaced by the sound and text of the next good one in the
order, so that batches stay full and every rank takes equal steps. In validation, too, and where the clips do not fill
the ranks' last step, the first ones come once more.

Of a clip that is longer than the crop, FLAC or WAV, only the crop is read: it is left out where damage or silence is
in the way there, and comes another time where it is not. What is in a crop follows from its position alone.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from audioldm2_pl.audio import AudioConfig, prepare_clip
from audioldm2_pl.errors import UserError, reason_of
from audioldm2_pl.shards.crop import Crop
from audioldm2_pl.shards.encoded import choose_caption, stack_features
from audioldm2_pl.shards.format import BadClip, captions_of, warn_unread_caption
from audioldm2_pl.shards.order import Block, each_clip, endless_blocks, storage_blocks, weighted_blocks
from audioldm2_pl.shards.quarantine import Quarantine
from audioldm2_pl.shards.reader import ShardFolder

GRACE_SECONDS = 30  # for which a worker outlives SIGTERM
BATCHES_AHEAD = 4  # remote shards are fetched at least so many global batches before their clips are read


@dataclass(eq=False)
class ClipStream(IterableDataset):
    """The training clips of one rank, or with `start=None` each good clip once in storage order: with `validation` in
    whole steps of all ranks.

    In a worker a UserError becomes a last clip {"error": its line}: see `ClipLoader`.
    """

    folders: Sequence[ShardFolder]
    audio: AudioConfig
    num_samples: int  # of a crop
    seed: int
    batch_size: int  # per rank
    start: int | None  # position of the first clip
    rank: int = 0
    world_size: int = 1
    weights: Sequence[float] = ()  # of the folders
    quarantine: Quarantine = None  # type: ignore[assignment]  # None: one of its own
    without_sound: Container[str] = ()  # ids of clips that come without their sound
    images: bool = False  # whether a picture comes along, one of the clip's at random
    phonemize: Callable[[str], str] | None = None  # transcript => "phonemes" that come along
    validation: bool = False
    interleave_shards: int = 1  # that clips are drawn from at a time, with weights of each folder

    def __post_init__(self) -> None:
        self.quarantine = self.quarantine or Quarantine(self.folders)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        try:
            yield from self.assigned(worker.id, worker.num_workers) if worker else self.assigned(0, 1)
        except UserError as error:
            if worker is None:
                raise
            yield {"error": str(error)}

    def assigned(self, worker: int, num_workers: int) -> Iterator[dict[str, Any]]:
        """Every rank takes each world_size-th clip, and its workers whole batches of these by turns."""
        start = self.start or 0
        steps = -(-sum(map(len, self.folders)) // self.world_size)
        for block in self.fetched_ahead():
            positions = block.position + np.arange(block.length)
            own, rest = np.divmod(positions - start, self.world_size)
            mine = (rest == self.rank) & (own // self.batch_size % num_workers == worker)
            for k in np.flatnonzero(mine):
                if self.validation and own[k] >= steps:
                    return
                index = block.clips[k].tolist()
                clip = self.load(int(positions[k]), *index) or self.replacement(int(positions[k]))
                if clip:
                    yield clip
            if self.validation and block.position + block.length >= steps * self.world_size:
                return

    def blocks(self, start: int) -> Iterator[Block]:
        """The order from a position on."""
        if self.validation:
            return after(start, repeated(self.folders))
        if self.start is None:
            return after(start, storage_blocks(self.folders))
        if self.weights:
            return weighted_blocks(self.folders, self.weights, self.seed, start, self.interleave_shards)
        return endless_blocks(self.folders, self.seed, start, self.interleave_shards)

    def fetched_ahead(self) -> Iterator[Block]:
        """The order; remote shards are fetched while those before are read."""
        start = self.start or 0
        if not any(folder.remote for folder in self.folders):
            yield from self.blocks(start)
            return
        num_ahead = BATCHES_AHEAD * self.batch_size * self.world_size
        later, reached, wanted = self.blocks(start), start, set()
        for block in self.blocks(start):
            # the next block, and more where a block is less than the batches ahead
            enough = block.position + block.length + (num_ahead if num_ahead > block.length else 0)
            while reached <= enough:
                if (following := next(later, None)) is None:
                    break
                for f, shard in following.shards():
                    if (f, shard) not in wanted:
                        self.folders[f].prefetch(shard)
                wanted, reached = set(following.shards()), following.position + following.length
            yield block

    def load(self, position: int, f: int, shard: int, clip: int) -> dict[str, Any] | None:
        """A clip as it is trained on at `position`; None for a bad one, which is quarantined."""
        folder, rng = self.folders[f], self.rng(position)
        crop = Crop(self.num_samples, self.audio.sample_rate, None if self.start is None else rng)
        try:
            name = f"{'test/' if self.validation else ''}{f}/{shard}/{clip}"
            fields = folder.load_audible(shard, clip, name not in self.without_sound, self.images, crop)
            if self.rank == 0 and ((worker := get_worker_info()) is None or worker.id == 0):
                warn_unread_caption(folder.path, fields)
            return self.prepare(fields, rng) | {"id": name}
        except BadClip as bad:
            self.quarantine.add(folder, shard, clip, bad)
            return None

    def rng(self, position: int) -> np.random.Generator:
        """What is drawn for a clip follows from (seed, position)."""
        return np.random.default_rng((self.seed, position, 1))

    def replacement(self, position: int) -> dict[str, Any] | None:
        """The next good clip of the order for a bad one; None where each good clip comes once."""
        if self.start is None and not self.validation:
            return None
        num_clips = sum(map(len, self.folders))
        for _, *index in islice(each_clip(self.blocks(position + 1)), num_clips):
            if clip := self.load(position, *index):
                return clip
        raise UserError(f"{', '.join(str(folder.path) for folder in self.folders)}: no clip that can be used")

    def prepare(self, clip: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Resample, level and choose a caption; BadClip, whatever goes wrong with it."""
        try:
            return self.drawn(clip, rng)
        except Exception as error:
            raise BadClip(clip["key"], f"no clip to train on ({reason_of(error)})") from None

    def drawn(self, clip: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        sound: dict[str, Any] = {}
        if "waveform" in clip:
            waveform = prepare_clip(clip["waveform"], clip["sample_rate"], self.audio, self.num_samples)
            sound = {"waveform": torch.from_numpy(waveform)}  # (T,)
        captions = captions_of(clip)
        caption = int(rng.integers(len(captions)))
        if "features" in clip:
            sound = {"features": choose_caption(clip["features"], caption)}
        if self.images:
            if "images" not in clip:
                raise ValueError("it has no picture, a png or jpg member")
            sound |= {"image": clip["images"][rng.integers(len(clip["images"]))], "image_id": clip["image_id"]}
        transcript = clip.get("transcript", "")
        spoken = {} if self.phonemize is None else {"phonemes": self.phonemize(transcript)}
        return {**sound, **spoken, "text": captions[caption], "transcript": transcript, "key": clip["key"]}


def repeated(folders: Sequence[ShardFolder]) -> Iterator[Block]:
    """Storage order over and over."""
    for turn in count():
        for block in storage_blocks(folders):
            block.position += turn * sum(map(len, folders))
            yield block


def after(start: int, blocks: Iterator[Block]) -> Iterator[Block]:
    """The blocks from a position on."""
    for block in blocks:
        if block.position + block.length > start:
            yield block[max(0, start - block.position) :]


def collate(clips: list[dict[str, Any]]) -> dict[str, Any]:
    """Clips => a batch of lists, with the "waveform" (B, T) or the "features" (B, ...) of `stack_features`.

    Pictures, of sizes of their own, are a list too; "image_id" is (B,).
    """
    if "error" in clips[-1]:
        return clips[-1]
    names = [name for name in ("text", "transcript", "phonemes", "key", "id") if name in clips[0]]
    batch: dict[str, Any] = {name: [clip[name] for clip in clips] for name in names}
    if "features" in clips[0]:
        batch["features"] = stack_features([clip["features"] for clip in clips])
    elif "waveform" in clips[0]:
        batch["waveform"] = torch.stack([clip["waveform"] for clip in clips])  # (B, T)
    if "image" in clips[0]:
        batch["image"] = [clip["image"] for clip in clips]
        batch["image_id"] = torch.tensor([clip["image_id"] for clip in clips])  # (B,)
    return batch


def outlive_signals(worker: int) -> None:
    """A signal to the whole job reaches the workers, too: they live until the trainer has saved its checkpoint."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda signum, frame: signal.alarm(GRACE_SECONDS))


class ClipLoader(DataLoader):
    """Raises a worker's UserError as it was; torch would wrap it in the worker's traceback."""

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        for batch in super().__iter__():
            if "error" in batch:
                self._iterator = None  # ends persistent workers with this loop, not whenever the loader is freed
                raise UserError(batch["error"])
            yield batch
