"""The one order of the training clips: a function of (seed, epoch) that can be entered at any position.

The position counts clips from the start of training over all ranks and workers. What lies before a position is skipped
by the counts of index.json; no shard is opened for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from audioldm2_pl.seeds import seed_of
from audioldm2_pl.shards.reader import ShardFolder

ClipIndex = tuple[int, int, int, int]  # position, folder, shard, clip


def select(folders: Sequence[ShardFolder], num_clips: int) -> None:
    """Limits the orders to `num_clips` of the folders' clips, or all if they hold fewer: of each shard its share."""
    total = sum(sum(folder.counts) for folder in folders)
    num_clips = min(num_clips, total)
    before = 0  # clips of the shards before
    for folder in folders:
        folder.selected = []
        for count in folder.counts:
            after = before + count
            folder.selected.append(after * num_clips // total - before * num_clips // total)
            before = after


def endless_order(folders: Sequence[ShardFolder], seed: int, start: int) -> Iterator[ClipIndex]:
    """From position `start` on, for ever: each epoch shuffles the shards of all folders, then each shard's clips."""
    num_clips = sum(len(folder) for folder in folders)
    shards = [(f, s) for f, folder in enumerate(folders) for s in range(len(folder.counts))]
    epoch = start // num_clips
    position = epoch * num_clips  # of the shard's first clip
    while True:
        for i in np.random.default_rng((seed, epoch)).permutation(len(shards)):
            f, s = shards[i]
            count = folders[f].selected[s]
            if position + count > start:
                clips = np.random.default_rng((seed, epoch, i)).permutation(count)
                for k in range(max(0, start - position), count):
                    yield position + k, f, s, int(clips[k])
            position += count
        epoch += 1


def weighted_order(
    folders: Sequence[ShardFolder], weights: Sequence[float], seed: int, start: int
) -> Iterator[ClipIndex]:
    """From position `start` on, for ever: folders drawn by weight, and each folder's own endless order.

    An epoch is about as many clips as the folders hold, of each folder its exact share of them in shuffled turns:
    how often a folder has had its turn before an epoch is then a product, not a count.
    """
    num_clips = sum(len(folder) for folder in folders)
    turns = np.maximum(1, np.rint(num_clips * np.array(weights) / sum(weights))).astype(np.int64)  # (folders,) an epoch
    length = int(turns.sum())
    epoch, skip = divmod(start, length)
    draws = draw_folders(turns, seed, epoch)
    before = epoch * turns + np.bincount(draws[:skip], minlength=len(folders))
    orders = [endless_order([folder], seed_of(seed, "folder", f), int(before[f])) for f, folder in enumerate(folders)]
    while True:
        for k in range(skip, length):
            f = int(draws[k])
            _, _, s, clip = next(orders[f])
            yield epoch * length + k, f, s, clip
        epoch, skip = epoch + 1, 0
        draws = draw_folders(turns, seed, epoch)


def draw_folders(turns: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Whose turn it is at each position of an epoch (length,): folder f `turns[f]` times."""
    return np.random.default_rng((seed, epoch)).permutation(np.repeat(np.arange(len(turns), dtype=np.int16), turns))


def storage_order(folders: Sequence[ShardFolder]) -> Iterator[ClipIndex]:
    """Every selected clip once, as the shards hold them."""
    position = 0
    for f, folder in enumerate(folders):
        for s, count in enumerate(folder.selected):
            for clip in range(count):
                yield position, f, s, clip
                position += 1
