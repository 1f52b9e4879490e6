"""The one order of the training clips: a function of (seed, epoch) that can be entered at any position.

The position counts clips from the start of training over all ranks and workers. What lies before a position is skipped
by the counts of index.json; no shard is opened for it.

K shards are read at a time. An epoch shuffles the S shards and goes through S windows: shard r has an equal share of
its clips in each of the windows r, r + 1, ..., r + K - 1, modulo S, and a window's clips are shuffled. With every
window one shard begins and one ends, and a batch draws from all K. With K = 1 the clips of a shard follow each other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from itertools import count, pairwise

import numpy as np

from audioldm2_pl.seeds import seed_of
from audioldm2_pl.shards.reader import ShardFolder

ClipIndex = tuple[int, int, int, int]  # position, folder, shard, clip
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


class Block:
    """Clips that follow each other in the order from `position` on; which they are is found out where it is asked."""

    def __init__(
        self, position: int, length: int, make: Callable[[], np.ndarray], shards: Iterable[Sequence[int]] = ()
    ):
        self.position = position
        self.length = length
        self.make = make
        self.known = shards

    @cached_property
    def clips(self) -> np.ndarray:
        """(length, 3) folder, shard, clip."""
        return self.make()

    def shards(self) -> list[tuple[int, int]]:
        """(folder, shard) of each shard, once."""
        return list(dict.fromkeys((int(f), int(s)) for f, s in self.known or self.clips[:, :2].tolist()))

    def __getitem__(self, cut: slice) -> Block:
        """Without its first clips."""
        return Block(self.position + cut.start, self.length - cut.start, lambda: self.clips[cut], self.known)


class Epoch:
    """The windows of one epoch over shards of these sizes, `interleave` of them at a time."""

    def __init__(self, sizes: np.ndarray, seed: int, epoch: int, interleave: int = 1):
        self.seed = (seed, epoch)
        self.interleave = min(interleave, len(sizes))
        self.order = np.random.default_rng(self.seed).permutation(len(sizes))  # (S,) shards
        self.bounds = np.outer(sizes, np.arange(self.interleave + 1)) // self.interleave  # (S, K + 1) of its shares
        shares = np.diff(self.bounds[self.order])  # (S, K)
        self.lengths = np.sum([np.roll(shares[:, k], k) for k in range(self.interleave)], axis=0)  # (S,) of the windows
        self.shuffled: OrderedDict[int, np.ndarray] = OrderedDict()  # shard -> its clips

    def shards(self, number: int) -> np.ndarray:
        """(K,) those of a window, the one that begins first."""
        return self.order[number - np.arange(self.interleave)]

    def window(self, number: int) -> np.ndarray:
        """(n, 2) shard and clip."""
        parts, shards = [], self.shards(number)
        for share, shard in enumerate(shards.tolist()):
            begin, end = self.bounds[shard, share : share + 2]
            parts.append(self.shuffled_clips(shard)[begin:end])
        window = np.stack([np.repeat(shards, [len(part) for part in parts]), np.concatenate(parts)], axis=1)
        if self.interleave == 1:
            return window
        return window[np.random.default_rng((*self.seed, number, 1)).permutation(len(window))]

    def shuffled_clips(self, shard: int) -> np.ndarray:
        """(n,) a shard's clips in the order in which this epoch reads them."""
        if shard not in self.shuffled:
            self.shuffled[shard] = np.random.default_rng((*self.seed, shard)).permutation(self.bounds[shard, -1])
            if len(self.shuffled) > self.interleave + 1:
                self.shuffled.popitem(last=False)
        self.shuffled.move_to_end(shard)
        return self.shuffled[shard]


def endless_blocks(folders: Sequence[ShardFolder], seed: int, start: int, interleave: int = 1) -> Iterator[Block]:
    """The windows from position `start` on, for ever, each epoch over the shards of all folders."""
    places = np.array([(f, s) for f, folder in enumerate(folders) for s in range(len(folder.counts))])  # (S, 2)
    sizes = np.array([size for folder in folders for size in folder.selected])

    def clips(epoch: Epoch, number: int) -> np.ndarray:
        window = epoch.window(number)
        return np.concatenate([places[window[:, 0]], window[:, 1:]], axis=1)  # (n, 3)

    first, skip = divmod(start, int(sizes.sum()))
    for number in count(first):
        epoch = Epoch(sizes, seed, number, interleave)
        ends = np.cumsum(epoch.lengths)
        for w in range(int(np.searchsorted(ends, skip, "right")), len(ends)):
            length = int(epoch.lengths[w])
            begin = int(ends[w]) - length
            position = number * int(ends[-1]) + begin
            block = Block(position, length, partial(clips, epoch, w), places[epoch.shards(w)].tolist())
            yield block[max(0, skip - begin) :]
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
            yield Block(epoch * length + begin, len(block), partial(np.asarray, block))
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
            parts.append(next(self.blocks).clips[:, 1:])
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
            yield Block(position, size, partial(stored_clips, f, s, size), [(f, s)])
            position += size


def stored_clips(folder: int, shard: int, size: int) -> np.ndarray:
    """(size, 3) folder, shard, clip."""
    return np.stack([np.full(size, folder), np.full(size, shard), np.arange(size)], axis=1)


def each_clip(blocks: Iterator[Block]) -> Iterator[ClipIndex]:
    """The clips of blocks one by one."""
    for block in blocks:
        for k, (f, s, clip) in enumerate(block.clips.tolist()):
            yield block.position + k, f, s, clip
