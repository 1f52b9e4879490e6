"""How the clips of many shards are mixed, and that the order of it has every clip once and can be entered anywhere."""

import itertools
from dataclasses import dataclass, field

import numpy as np
import pytest

from audioldm2_pl.audio import AudioConfig
from audioldm2_pl.errors import UserError
from audioldm2_pl.shards.datamodule import AudioShards, DataConfig
from audioldm2_pl.shards.order import each_clip, endless_blocks, weighted_blocks
from audioldm2_pl.shards.reader import ShardFolder
from audioldm2_pl.shards.stream import ClipStream
from data.shards import Clip, write_shards

AUDIO = AudioConfig(clip_seconds=0.1)


@dataclass
class Counted:
    """As much of a folder as an order asks for."""

    counts: list[int]
    selected: list[int] = field(default_factory=list)

    def __post_init__(self):
        self.selected = self.counts

    def __len__(self):
        return sum(self.selected)


UNEVEN = [0, 1, 7, 200, 3, 64, 0, 31, 90, 5]


def take(blocks, count: int) -> list[tuple[int, ...]]:
    return list(itertools.islice(each_clip(blocks), count))


@pytest.mark.parametrize("counts, fewest", [([500] * 100, 31), ([7000] * 100, 31), ([50] * 100, 32)])
def test_a_big_batch_draws_from_many_shards(counts, fewest):
    folder = Counted(counts)
    clips = np.array(take(endless_blocks([folder], 0, 0, 32), min(sum(counts), 50 * 1024)))
    batches = [clips[i : i + 1024, 2] for i in range(0, len(clips) - 1023, 1024)]
    assert min(len(np.unique(batch)) for batch in batches) >= fewest
    alone = np.array(take(endless_blocks([folder], 0, 0, 1), 1024))
    assert len(np.unique(alone[:, 2])) == -(-1024 // counts[0])


@pytest.mark.parametrize("interleave", [1, 2, 3, 10, 32])
@pytest.mark.parametrize("counts", [UNEVEN, [4], [1, 1, 1]])
def test_an_epoch_has_each_clip_once_and_is_entered_anywhere(counts, interleave):
    folders = [Counted(counts[:3]), Counted(counts[3:])] if len(counts) > 3 else [Counted(counts)]
    num_clips = sum(counts)
    clips = take(endless_blocks(folders, 3, 0, interleave), 3 * num_clips + 10)
    assert [clip[0] for clip in clips] == list(range(3 * num_clips + 10))
    epochs = [[clip[1:] for clip in clips[i * num_clips : (i + 1) * num_clips]] for i in range(3)]
    held = sorted((f, s, c) for f, folder in enumerate(folders) for s, n in enumerate(folder.counts) for c in range(n))
    assert all(sorted(epoch) == held for epoch in epochs)
    assert num_clips < 10 or epochs[0] != epochs[1] != epochs[2]
    for start in sorted({1, num_clips // 3, num_clips - 1, num_clips, num_clips + 1, 2 * num_clips - 2}):
        assert take(endless_blocks(folders, 3, start, interleave), 10) == clips[start : start + 10]


@pytest.mark.parametrize("interleave", [1, 4])
def test_weighted_folders_are_mixed_and_entered_anywhere(interleave):
    folders = [Counted([40] * 20), Counted([25] * 8)]
    clips = take(weighted_blocks(folders, [1, 3], 5, 0, interleave), 30_000)
    for start in (1, 999, 1000, 8191, 8192, 8193, 20_000):
        assert take(weighted_blocks(folders, [1, 3], 5, start, interleave), 30) == clips[start : start + 30]
    for f, num_clips in enumerate((800, 200)):
        own = [clip[2:] for clip in clips if clip[1] == f]
        assert all(len(set(own[i : i + num_clips])) == num_clips for i in range(0, len(own) - num_clips, num_clips))


def test_one_shard_at_a_time_is_the_order_of_runs_before():
    folder, seed, epoch = Counted(UNEVEN), 7, 2
    expected = []
    for shard in np.random.default_rng((seed, epoch)).permutation(len(UNEVEN)):
        clips = np.random.default_rng((seed, epoch, shard)).permutation(UNEVEN[shard])
        expected += [(0, int(shard), int(clip)) for clip in clips]
    found = take(endless_blocks([folder], seed, epoch * sum(UNEVEN), 1), sum(UNEVEN))
    assert [clip[1:] for clip in found] == expected


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """48 clips in 12 shards."""
    rng = np.random.default_rng(0)
    clips = [Clip(f"clip{i}", text=f"caption {i}", waveform=rng.uniform(-0.3, 0.3, 2000)) for i in range(48)]
    folder = tmp_path_factory.mktemp("many") / "train"
    write_shards(clips, folder, clips_per_shard=4, num_workers=1)
    return folder


@pytest.mark.parametrize("ranks, workers", [(1, 0), (3, 0), (2, 2), (4, 1)])
def test_resuming_on_other_ranks_and_workers_goes_on_with_the_same_clips(ranks, workers, many):
    """In the middle of an epoch, crops included."""
    data = AudioShards(DataConfig([str(many)], num_workers=workers, interleave_shards=5), AUDIO, 7, 2, 0.05)
    straight = [clip for clip, _ in zip(data.clip_stream(start=0), range(72))]
    data.load_state_dict({"position": 24, "batches": 3, "interleave_shards": 5})
    streams = [data.clip_stream(start=data.start, rank=rank, world_size=ranks) for rank in range(ranks)]
    batches = [list(itertools.islice(data.loader(stream), 48 // 2 // ranks)) for stream in streams]
    for step, together in enumerate(zip(*batches)):
        for k in range(2):
            for rank, batch in enumerate(together):
                expected = straight[24 + (2 * step + k) * ranks + rank]
                assert (batch["id"][k], batch["text"][k]) == (expected["id"], expected["text"])
                assert np.array_equal(batch["waveform"][k], expected["waveform"])


def test_a_run_that_began_before_shards_were_interleaved_keeps_its_order(many):
    data = AudioShards(DataConfig([str(many)]), AUDIO, 7, 2)
    data.load_state_dict({"position": 10, "batches": 5})
    found = [name for batch, _ in zip(data.train_dataloader(), range(4)) for name in batch["id"]]
    before = ClipStream([ShardFolder(many)], AUDIO, AUDIO.num_samples, 7, 2, 10)
    assert found == [clip["id"] for clip, _ in zip(before, range(8))]


def test_each_shard_is_opened_once_where_there_is_room(many, monkeypatch):
    opened = []
    real = ShardFolder.is_of
    monkeypatch.setattr(
        ShardFolder, "is_of", lambda self, table, shard: opened.append(shard) or real(self, table, shard)
    )
    data = AudioShards(DataConfig([str(many)], interleave_shards=4), AUDIO, 7, 2)
    for _ in zip(data.train_dataloader(), range(24)):
        pass
    assert sorted(opened) == list(range(12)) and len(data.train[0].opened) == 12


@pytest.mark.parametrize("number", [0, 513])
def test_the_number_of_shards_has_a_range(number):
    with pytest.raises(UserError, match=r"data\.interleave_shards=\d+ has to be from 1 to 512"):
        DataConfig(interleave_shards=number)
