"""The clips of one rank in the order of training: drawn, cropped, levelled, collated.

The order of the clips is a function of (seed, epoch): shards are shuffled, then the clips of each shard. Ranks and
workers take that one order in strides. A position in it is all that a resumed run needs. A bad clip is replaced by the
sound and text of the next good one in the order, so that batches stay full and every rank takes equal steps. In
validation, too, and where the clips do not fill the ranks' last step, the first ones come once more.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, zip_longest
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from audioldm2_pl.audio import SILENT_PEAK, AudioConfig, prepare_clip
from audioldm2_pl.errors import UserError, reason_of
from audioldm2_pl.shards.encoded import choose_caption, stack_features
from audioldm2_pl.shards.format import BadClip, captions_of, warn_unread_caption
from audioldm2_pl.shards.order import ClipIndex, endless_order, storage_order, weighted_order
from audioldm2_pl.shards.quarantine import Quarantine
from audioldm2_pl.shards.reader import ShardFolder

CROP_TRIES = 10  # draws before a silent crop is taken after all
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
        first = self.start or 0
        steps = -(-sum(map(len, self.folders)) // self.world_size)
        for position, *index in islice(self.fetched_ahead(), steps * self.world_size if self.validation else None):
            own, rest = divmod(position - first, self.world_size)
            if rest == self.rank and own // self.batch_size % num_workers == worker:
                clip = self.load(position, *index) or self.replacement(position)
                if clip:
                    yield clip

    def order(self, start: int) -> Iterator[ClipIndex]:
        if self.validation:
            return ((p, *index[1:]) for p, index in islice(enumerate(cycle(storage_order(self.folders))), start, None))
        if self.start is None:
            return islice(storage_order(self.folders), start, None)
        if self.weights:
            return weighted_order(self.folders, self.weights, self.seed, start)
        return endless_order(self.folders, self.seed, start)

    def fetched_ahead(self) -> Iterator[ClipIndex]:
        """The order; remote shards are fetched while the one before is read."""
        start = self.start or 0
        if not any(folder.remote for folder in self.folders):
            yield from self.order(start)
            return
        num_shards = sum(len(folder.counts) for folder in self.folders)
        a_shard = sum(map(len, self.folders)) // num_shards * (len(self.folders) if self.weights else 1)
        ahead = self.order(start + max(a_shard, BATCHES_AHEAD * self.batch_size * self.world_size))
        wanted: dict[int, int] = {}  # folder -> shard
        for index, later in zip_longest(self.order(start), ahead):
            if later and wanted.get(later[1]) != later[2]:
                wanted[later[1]] = later[2]
                self.folders[later[1]].prefetch(later[2])
            yield index

    def load(self, position: int, f: int, shard: int, clip: int) -> dict[str, Any] | None:
        """A clip as it is trained on at `position`; None for a bad one, which is quarantined."""
        folder = self.folders[f]
        if (folder.shard_path(shard), clip) in self.quarantine:
            return None
        try:
            name = f"{'test/' if self.validation else ''}{f}/{shard}/{clip}"
            fields = folder.load_audible(shard, clip, name not in self.without_sound, self.images)
            if self.rank == 0 and ((worker := get_worker_info()) is None or worker.id == 0):
                warn_unread_caption(folder.path, fields)
            return self.prepare(fields, position) | {"id": name}
        except BadClip as bad:
            self.quarantine.add(folder, shard, clip, bad)
            return None

    def replacement(self, position: int) -> dict[str, Any] | None:
        """The next good clip of the order for a bad one; None where each good clip comes once."""
        if self.start is None and not self.validation:
            return None
        num_clips = sum(map(len, self.folders))
        for _, *index in islice(self.order(position + 1), num_clips):
            if clip := self.load(position, *index):
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
        sound: dict[str, Any] = {}
        if "waveform" in clip:
            sound = {"waveform": torch.from_numpy(self.cut(clip["waveform"], clip["sample_rate"], rng))}
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

    def cut(self, waveform: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
        """(T,) at `rate` Hz => (num_samples,) at the rate and level of the audio config."""
        wanted = round(self.num_samples * rate / self.audio.sample_rate)
        start = draw_crop(waveform, wanted, rng) if self.start is not None else 0
        return prepare_clip(waveform, rate, self.audio, self.num_samples, start)


def draw_crop(waveform: np.ndarray, num_samples: int, rng: np.random.Generator) -> int:
    """Start of a random crop of a waveform (T,) that is not silent, if a few draws find one."""
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
