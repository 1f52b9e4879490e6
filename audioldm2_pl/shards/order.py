"""The one order of the training clips: a function of (seed, epoch) that can be entered at any position.

The position counts clips from the start of training over all ranks and workers. What lies before a position is skipped
by the counts of index.json; no shard is opened for it.

K shards are read at a time. An epoch shuffles the S shards and goes through S windows: shard r has an equal share of
its clips in each of the windows r, r + 1, ..., r + K - 1, modulo S, and a window's clips are shuffled. With every
window one shard begins and one ends, and a batch draws from all K. With K = 1 the clips of a shard follow each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, pairwise

import numpy as np

from audioldm2_pl.seeds import seed_of
from audioldm2_pl.shards.reader import ShardFolder

ClipIndex = tuple[int, int, int, int]  # position, folder, shard, clip
Block = tuple[int, np.ndarray]  # position of the first, and (n, 3) folder, shard and clip of those that follow
TURNS = 8_192  # of folders drawn by weight that are looked up at a time


def select(folders: Sequence[ShardFolder], num_clips: int) -> None:
    """Limits the orders to `num_clips` of the folders' clips, or all if they hold fewer: of each shard its share."""
    total = sum(sum(folder.counts) for folder in folders)
    num_clips = min(num_clips, total)
    before = 0  # clips of the shards before
    for folder in folders:
        folder.selected = []
        for size in folder.counts:
            after = before + size
            folder.selected.append(after * num_clips // total - before * num_clips // total)
            before = after


class Epoch:
    """The windows of one epoch over shards of these sizes, `interleave` of them at a time."""

    def __init__(self, sizes: np.ndarray, seed: int, epoch: int, interleave: int = 1):
        self.seed = (seed, epoch)
        self.interleave = min(interleave, len(sizes))
        self.order = np.random.default_rng(self.seed).permutation(len(sizes))  # (S,) shards
        self.bounds = (
            np.outer(sizes, np.arange(self.interleave + 1)) // self.interleave
        )  # (S, K + 1) of a shard's shares
        shares = np.diff(self.bounds[self.order])  # (S, K)
        self.lengths = np.sum(
            [np.roll(shares[:, k], k) for k in range(self.interleave)], axis=0
        )  # (S,) clips of each window
        self.shuffled: dict[int, np.ndarray] = {}  # shard -> its clips

    def window(self, number: int) -> np.ndarray:
        """(n, 2) shard and clip."""
        parts = []
        for share in range(self.interleave):
            shard = int(self.order[number - share])
            begin, end = self.bounds[shard, share : share + 2]
            clips = self.shuffled_clips(shard)[begin:end]
            parts.append(np.stack([np.full(len(clips), shard), clips], axis=1))
            if share == self.interleave - 1:
                del self.shuffled[shard]
        if self.interleave == 1:
            return parts[0]
        window = np.concatenate(parts)
        return window[np.random.default_rng((*self.seed, number, 1)).permutation(len(window))]

    def shuffled_clips(self, shard: int) -> np.ndarray:
        """(n,) a shard's clips in the order in which this epoch reads them."""
        if shard not in self.shuffled:
            self.shuffled[shard] = np.random.default_rng((*self.seed, shard)).permutation(self.bounds[shard, -1])
        return self.shuffled[shard]


def endless_blocks(folders: Sequence[ShardFolder], seed: int, start: int, interleave: int = 1) -> Iterator[Block]:
    """The windows from position `start` on, for ever, each epoch over the shards of all folders."""
    places = np.array([(f, s) for f, folder in enumerate(folders) for s in range(len(folder.counts))])  # (S, 2)
    sizes = np.array([size for folder in folders for size in folder.selected])
    first, skip = divmod(start, int(sizes.sum()))
    for number in count(first):
        epoch = Epoch(sizes, seed, number, interleave)
        ends = np.cumsum(epoch.lengths)
        for w in range(int(np.searchsorted(ends, skip, "right")), len(ends)):
            begin = int(ends[w] - epoch.lengths[w])
            cut = max(0, skip - begin)
            window = epoch.window(w)[cut:]
            yield number * int(ends[-1]) + begin + cut, np.concatenate([places[window[:, 0]], window[:, 1:]], axis=1)
        skip = 0


def weighted_blocks(
    folders: Sequence[ShardFolder], weights: Sequence[float], seed: int, start: int, interleave: int = 1
) -> Iterator[Block]:
    """From position `start` on, for ever: folders drawn by weight, and each folder's own endless order.

    An epoch is about as many clips as the folders hold, of each folder its exact share of them in shuffled turns:
    how often a folder has had its turn before an epoch is then a product, not a count.
    """
    num_clips = sum(len(folder) for folder in folders)
    turns = np.maximum(1, np.rint(num_clips * np.array(weights) / sum(weights))).astype(np.int64)  # (folders,) an epoch
    length = int(turns.sum())
    first, skip = divmod(start, length)
    draws = draw_folders(turns, seed, first)
    before = first * turns + np.bincount(draws[:skip], minlength=len(folders))
    orders = [Taken(endless_blocks([folder], seed_of(seed, "folder", f), int(before[f]), interleave))
              for f, folder in enumerate(folders)]  # fmt: skip
    for epoch in count(first):
        for begin, end in pairwise([*range(skip, length, TURNS), length]):
            block = np.zeros((end - begin, 3), np.int64)
            block[:, 0] = draws[begin:end]
            for f, order in enumerate(orders):
                own = block[:, 0] == f
                block[own, 1:] = order.take(int(own.sum()))
            yield epoch * length + begin, block
        skip = 0
        draws = draw_folders(turns, seed, epoch + 1)


class Taken:
    """A folder's blocks, from which any number of clips is taken at a time."""

    def __init__(self, blocks: Iterator[Block]):
        self.blocks = blocks
        self.rest = np.zeros((0, 2), np.int64)

    def take(self, num_clips: int) -> np.ndarray:
        """(num_clips, 2) shard and clip."""
        parts = [self.rest]
        while sum(map(len, parts)) < num_clips:
            parts.append(next(self.blocks)[1][:, 1:])
        clips = np.concatenate(parts)
        self.rest = clips[num_clips:]
        return clips[:num_clips]


def draw_folders(turns: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Whose turn it is at each position of an epoch (length,): folder f `turns[f]` times."""
    return np.random.default_rng((seed, epoch)).permutation(np.repeat(np.arange(len(turns), dtype=np.int16), turns))


def storage_blocks(folders: Sequence[ShardFolder]) -> Iterator[Block]:
    """Every selected clip once, as the shards hold them."""
    position = 0
    for f, folder in enumerate(folders):
        for s, size in enumerate(folder.selected):
            yield position, np.stack([np.full(size, f), np.full(size, s), np.arange(size)], axis=1)
            position += size


def each_clip(blocks: Iterator[Block]) -> Iterator[ClipIndex]:
    """The clips of blocks one by one."""
    for position, block in blocks:
        for k, (f, s, clip) in enumerate(block.tolist()):
            yield position + k, f, s, clip
