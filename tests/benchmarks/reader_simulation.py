"""The order of clips of a big run, without GPUs: 512 ranks with 8 workers each over 2,000 shards. `make bench-order`.

Over one epoch of index.json's counts: whether every clip comes once, and from how many shards the global batches and
those of one rank draw. For one worker: what it takes to find its clips, and to begin in the middle of an epoch. Tars
are written for a few shards of as many clips, in which the headers that a worker reads are counted.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np

from audioldm2_pl.audio import AudioConfig
from audioldm2_pl.shards import reader, tar
from audioldm2_pl.shards.members import MEMBERS_FILE, pack
from audioldm2_pl.shards.order import endless_blocks
from audioldm2_pl.shards.reader import ShardFolder
from audioldm2_pl.shards.stream import ClipStream
from data.shards import Clip, write_shards
from data.writer import write_index, write_members

SEED = 0
CLIP_BYTES = 230_000  # of a FLAC of 10 s


def corpus(num_shards: int, clips_per_shard: int, folder: Path) -> ShardFolder:
    """A folder whose index describes tars that are not there, of sizes that vary by a tenth."""
    rng = np.random.default_rng(SEED)
    counts = rng.integers(clips_per_shard * 9 // 10, clips_per_shard * 11 // 10, num_shards)
    shards, blocks = [], []
    for shard, count in enumerate(counts.tolist()):
        sizes = rng.integers(CLIP_BYTES * 8 // 10, CLIP_BYTES * 12 // 10, count)
        ends = np.cumsum(-(-sizes // tar.BLOCK) * tar.BLOCK + 3 * tar.BLOCK)
        begins = np.concatenate([[0], ends[:-1]])
        clips = [
            (f"{shard:04d}__{i:012d}", {"flac": (begin + 512, size), "json": (end - 512, 300)})
            for i, (begin, end, size) in enumerate(zip(begins.tolist(), ends.tolist(), sizes.tolist()))
        ]
        blocks.append(pack(clips))
        entry = {"name": f"{shard:06d}.tar", "num_clips": count, "seconds": 10.0 * count, "longest_seconds": 10.0}
        shards.append(entry | {"sha256": "0" * 64, "bytes": int(ends[-1]) + 1024})
    folder.mkdir(parents=True)
    shards = [entry | place for entry, place in zip(shards, write_members(folder, blocks))]
    write_index(folder, {"format": 1, "sample_rate": 16_000, "longest_seconds": 10.0, "shards": shards})
    return ShardFolder(folder)


def seconds_of(run: Callable[[], Any], num_times: int = 5) -> float:
    """CPU time, the median of a few."""
    seconds = []
    for _ in range(num_times):
        before = time.process_time()
        run()
        seconds.append(time.process_time() - before)
    return statistics.median(seconds)


def coverage(folder: ShardFolder, interleave: int, ranks: int, workers: int, batch_size: int) -> dict[str, Any]:
    """One epoch shared out as `ClipStream.assigned` does: clips missing and twice, and how evenly the workers have
    them."""
    firsts = np.cumsum([0, *folder.counts])  # a clip's number in the corpus
    seen = np.zeros(len(folder), np.int32)
    shares = np.zeros(ranks * workers, np.int64)
    for block in islice(endless_blocks([folder], SEED, 0, interleave), len(folder.counts)):
        np.add.at(seen, firsts[block.clips[:, 1]] + block.clips[:, 2], 1)
        own, rank = np.divmod(block.position + np.arange(block.length), ranks)
        np.add.at(shares, rank * workers + own // batch_size % workers, 1)
    return {
        "clips": len(folder),
        "missing": int((seen == 0).sum()),
        "twice": int((seen > 1).sum()),
        "clips_of_a_worker": [int(shares.min()), int(shares.max())],
        "clips_after_the_last_global_batch": len(folder) % (ranks * batch_size),
    }


def mixing(folder: ShardFolder, interleave: int, ranks: int, batch_size: int) -> dict[str, Any]:
    """Distinct shards in the global batches of an epoch, in a rank's, and in batches of 1,024 clips in a row."""
    blocks = islice(endless_blocks([folder], SEED, 0, interleave), len(folder.counts))
    shards = np.concatenate([block.clips[:, 1] for block in blocks]).astype(np.int32)  # (clips,)
    steps = shards[: len(shards) // (ranks * batch_size) * ranks * batch_size].reshape(-1, batch_size, ranks)
    local = [len(np.unique(step[:, rank])) for step in steps for rank in range(0, ranks, 61)]
    rows = shards[: len(shards) // 1024 * 1024].reshape(-1, 1024)
    return {
        "global_batch": smallest_and_median([len(np.unique(step)) for step in steps]),
        "batch_of_a_rank": smallest_and_median(local),
        "batch_of_1024": smallest_and_median([len(np.unique(row)) for row in rows[::7]]),
    }


def smallest_and_median(numbers: list[int]) -> dict[str, float]:
    return {"shards_at_least": min(numbers), "shards_median": statistics.median(numbers)}


class Told(ShardFolder):
    """Shards whose clips are only told, with their sound, so that finding them is all the work."""

    def load_audible(self, shard: int, clip: int, *_: Any, **__: Any) -> dict[str, Any]:
        return {"key": f"{shard}/{clip}", "text": "a sound"}


def one_worker(folder: ShardFolder, interleave: int, ranks: int, workers: int, batch_size: int) -> dict[str, Any]:
    """What it costs a worker of the last rank to go through the order, and to begin anywhere."""
    told = Told(folder.path)

    def clips(start: int, count: int) -> list[str]:
        stream = ClipStream([told], AudioConfig(), 160, SEED, batch_size, start, ranks - 1, ranks,
                            interleave_shards=interleave)  # fmt: skip
        return [clip["id"] for clip in islice(stream.assigned(workers - 1, workers), count)]

    middle, step = len(folder) // 2, ranks * batch_size * workers
    start = middle // step * step
    number = 4 * batch_size
    straight = clips(0, start // step * batch_size + number) if start else clips(0, number)
    per_clip = (seconds_of(lambda: clips(0, 40 * batch_size)) - seconds_of(lambda: clips(0, 1))) / (40 * batch_size - 1)
    return {
        "microseconds_to_find_a_clip": round(1e6 * per_clip, 1),
        "milliseconds_to_begin_an_epoch": round(1e3 * seconds_of(lambda: clips(0, 1)), 1),
        "milliseconds_to_resume_in_the_middle": round(1e3 * seconds_of(lambda: clips(start, 1)), 1),
        "milliseconds_to_come_there_from_the_start": round(1e3 * seconds_of(lambda: clips(0, len(straight)), 1), 1),
        "resumed_as_straight": clips(start, number) == straight[-number:],
        "milliseconds_to_read_the_index": round(1e3 * seconds_of(lambda: ShardFolder(folder.path)), 1),
    }


def headers_read(clips_per_shard: int, num_clips: int, folder: Path) -> dict[str, Any]:
    """Headers and open files of a worker that reads `num_clips` clips of 40 real shards, with members.bin and by the
    tars' headers, and the CPU time of a clip."""
    rng = np.random.default_rng(SEED)
    sounds = [rng.uniform(-0.3, 0.3, 1600).astype(np.float32) for _ in range(10)]
    clips = [Clip(f"{i:016d}", text="a hiss", waveform=sounds[i % 10]) for i in range(40 * clips_per_shard)]
    write_shards(clips, folder, clips_per_shard=clips_per_shard, num_workers=1)
    results: dict[str, Any] = {}
    for name in ("with_members_bin", "by_headers"):
        split = ShardFolder(folder)
        if name == "by_headers":
            for shard in split.index["shards"]:
                del shard["members"]
        count = SimpleNamespace(headers=0)
        real = tar.read_header

        def counted(block: bytes, count: SimpleNamespace = count, real: Callable = real):
            count.headers += 1
            return real(block)

        tar.read_header = reader.read_header = counted
        stream = ClipStream([split], AudioConfig(), 1600, SEED, 16, 0, interleave_shards=32)
        before = time.process_time()
        for _ in islice(stream, num_clips):
            pass
        spent = time.process_time() - before
        tar.read_header = reader.read_header = real
        results[name] = {
            "headers": count.headers,
            "shards": len(split.tables),
            "open_files": len(split.opened),
            "milliseconds_a_clip": round(1e3 * spent / num_clips, 3),
        }
    return results


def measure(arguments: argparse.Namespace, path: Path) -> dict[str, Any]:
    folder = corpus(arguments.shards, arguments.clips_per_shard, path / "corpus")
    layout = {"ranks": arguments.ranks, "workers": arguments.workers, "batch_size": arguments.batch_size}
    sizes = {name: (path / "corpus" / name).stat().st_size for name in ("index.json", MEMBERS_FILE)}
    results = {}
    for interleave in (1, 32):
        results[f"interleave_{interleave}"] = {
            "coverage": coverage(folder, interleave, **layout),
            "mixing": mixing(folder, interleave, arguments.ranks, arguments.batch_size),
            "one_worker": one_worker(folder, interleave, **layout),
        }
    return {
        "layout": layout | {"shards": arguments.shards, "clips": len(folder)},
        "results": results,
        "index": sizes | {"bytes_a_clip": round(sum(sizes.values()) / len(folder), 1), "bytes_of_a_key": 18},
        "one_worker_of_40_real_shards": headers_read(200, 400, path / "real"),
        "how": "CPU time, one thread; medians of five. Seed 0",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=2_000, metavar="N")
    parser.add_argument("--clips-per-shard", type=int, default=1_000, metavar="N")
    parser.add_argument("--ranks", type=int, default=512, metavar="N")
    parser.add_argument("--workers", type=int, default=8, metavar="N", help="of each rank")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="of each rank")
    parser.add_argument("--output", type=Path, default=Path("docs/results/bench_order.json"))
    arguments = parser.parse_args()
    with TemporaryDirectory() as path:
        found = measure(arguments, Path(path))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
