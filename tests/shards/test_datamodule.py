"""The order of clips, crops and captions, over ranks, workers, epochs and resumed runs."""

import itertools
import json
import os
import shutil
import signal
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from audioldm2_pl.audio import AudioConfig
from audioldm2_pl.errors import UserError
from audioldm2_pl.shards import reader as shard_reader
from audioldm2_pl.shards.crop import Crop
from audioldm2_pl.shards.datamodule import AudioShards, DataConfig
from audioldm2_pl.shards.format import BadClip
from audioldm2_pl.shards.order import each_clip, endless_blocks, select, storage_blocks, weighted_blocks
from audioldm2_pl.shards.reader import ShardFolder
from audioldm2_pl.shards.stream import ClipStream
from data.shards import Clip, write_shards

torch.set_num_threads(1)
AUDIO = AudioConfig(clip_seconds=2.56)
NUM_SAMPLES = 1600  # of a crop: short, so that starts differ
NUM_CLIPS = 12  # in the train split of `shards`


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Five clips of one second in shards of 2, 2 and 1, three captions each; sample number / 32768 is the sound."""
    folder = tmp_path_factory.mktemp("corpus") / "train"
    ramp = np.arange(16_000, dtype=np.float32) / 32_768
    clips = [
        Clip(f"clip{i}", captions=[f"{i}a", f"{i}b", f"{i}c"], transcript=f"word {i}", waveform=ramp) for i in range(5)
    ]
    write_shards(clips, folder, clips_per_shard=2, num_workers=1)
    return folder


def stream(folder, start=0, rank=0, world_size=1, seed=0, batch_size=2):
    return ClipStream([ShardFolder(folder)], AUDIO, NUM_SAMPLES, seed, batch_size, start, rank, world_size)


def take(clips, count: int) -> list[dict]:
    return list(itertools.islice(clips, count))


def same(a: dict, b: dict) -> bool:
    return a["key"] == b["key"] and a["text"] == b["text"] and torch.equal(a["waveform"], b["waveform"])


def flatten(batches) -> list[dict]:
    return [
        {"key": key, "text": text, "waveform": waveform}
        for batch in batches
        for key, text, waveform in zip(batch["key"], batch["text"], batch["waveform"])
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_each_epoch_has_every_clip_once_over_the_ranks(shards, world_size):
    all_keys = {key for shard in range(3) for key, _ in ShardFolder(shards / "train").table(shard)}
    assert len(all_keys) == NUM_CLIPS
    per_rank = 2 * NUM_CLIPS // world_size
    ranks = [take(stream(shards / "train", 0, rank, world_size), per_rank) for rank in range(world_size)]
    keys = [clip["key"] for step in zip(*ranks) for clip in step]
    for epoch in (keys[:NUM_CLIPS], keys[NUM_CLIPS:]):
        assert sorted(epoch) == sorted(all_keys)


@pytest.mark.parametrize("world_size", [1, 2])
def test_workers_give_the_same_batches_as_none(shards, world_size):
    for rank in range(world_size):
        clips = {}
        for workers in (0, 2):
            data = AudioShards(DataConfig([str(shards / "train")], num_workers=workers), AUDIO, 0, 2, 0.1)
            loader = data.loader(stream(shards / "train", 3, rank, world_size))
            clips[workers] = flatten(take(loader, 4))
            del loader
        assert len(clips[2]) == 8 and all(same(a, b) for a, b in zip(clips[0], clips[2]))


@pytest.mark.parametrize("start", [1, 5, 11, 12, 13, 27])
def test_resuming_at_any_position_goes_on_with_the_same_clips(shards, start):
    straight = take(stream(shards / "train"), start + 6)[start:]
    resumed = take(stream(shards / "train", start), 6)
    assert all(same(a, b) for a, b in zip(straight, resumed))


@pytest.mark.parametrize("new_world_size", [1, 3, 4])
def test_another_world_size_goes_on_with_the_same_order(shards, new_world_size):
    straight = take(stream(shards / "train"), 20)
    before = [take(stream(shards / "train", 0, rank, 2), 4) for rank in range(2)]
    after = [
        take(stream(shards / "train", 8, rank, new_world_size), 12 // new_world_size) for rank in range(new_world_size)
    ]
    clips = [clip for ranks in (before, after) for step in zip(*ranks) for clip in step]
    assert len(clips) == 20 and all(same(a, b) for a, b in zip(straight, clips))


def test_ranks_and_workers_share_out_an_epoch(shards):
    all_keys = {key for shard in range(3) for key, _ in ShardFolder(shards / "train").table(shard)}
    data = AudioShards(DataConfig([str(shards / "train")], num_workers=3), AUDIO, 0, 2, 0.1)
    loaders = [data.loader(stream(shards / "train", 0, rank, 2)) for rank in range(2)]
    clips = [clip for rank in loaders for clip in flatten(take(rank, 3))]  # 2 ranks x 3 workers, a batch of 2 each
    assert sorted(clip["key"] for clip in clips) == sorted(all_keys)


@pytest.mark.parametrize("world_size, workers", [(1, 0), (1, 3), (2, 3), (3, 0)])
def test_evaluation_reads_each_clip_once_over_ranks_and_workers(world_size, workers, shards):
    config = DataConfig([str(shards / "train")], test=str(shards / "train"), num_workers=workers)
    keys = []
    for rank in range(world_size):
        data = AudioShards(config, AUDIO, 0, 2)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)  # type: ignore[assignment]
        keys += [clip["key"] for clip in flatten(data.val_dataloader())]
    assert len(keys) == len(set(keys)) == NUM_CLIPS


@pytest.mark.parametrize("world_size, workers", [(1, 0), (2, 3), (3, 0), (5, 2), (8, 0)])
@pytest.mark.parametrize("bad", [(), (0,), (3, 4), (0, 1, 2, 3)])
def test_validation_has_as_many_batches_on_every_rank(bad, world_size, workers, corpus, tmp_path):
    folder = shutil.copytree(corpus, tmp_path / "test")
    for tar in folder.glob("*.tar"):
        content = tar.read_bytes()
        for i in bad:
            content = content.replace(f'["{i}a", "{i}b", "{i}c"]'.encode(), b'["  ", "  ", "  "]')
        tar.write_bytes(content)
    config = DataConfig([str(corpus)], str(folder), num_workers=workers, max_bad_fraction=1.0)
    ranks = []
    for rank in range(world_size):
        data = AudioShards(config, AUDIO, 0, 2)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)  # type: ignore[assignment]
        ranks.append(list(data.val_dataloader()))
    clips = -(-5 // world_size)
    assert [[len(batch["id"]) for batch in batches] for batches in ranks] == [
        [min(2, clips - i) for i in range(0, clips, 2)]
    ] * world_size
    heard = {name for batches in ranks for batch in batches for name in batch["id"]}
    assert heard == {f"test/0/{i // 2}/{i % 2}" for i in range(5) if i not in bad}


def test_an_empty_test_split_is_refused(corpus, tmp_path):
    folder = shutil.copytree(corpus, tmp_path / "test")
    edit_index(folder, lambda index: index.update(shards=[]))
    with pytest.raises(UserError, match=rf"{folder}: holds no clips"):
        AudioShards(DataConfig([str(corpus)], str(folder)), AUDIO, 0, 2).val_dataloader()


def test_whole_shards_are_skipped_by_count(shards, monkeypatch):
    opened = []
    table = ShardFolder.table
    monkeypatch.setattr(ShardFolder, "table", lambda self, shard: opened.append(shard) or table(self, shard))
    folder = ShardFolder(shards / "train")
    planned = [clip[2] for clip in take(each_clip(endless_blocks([folder], 0, 10**6 * NUM_CLIPS + 8)), 4)]
    take(stream(shards / "train", 10**6 * NUM_CLIPS + 8), 4)
    assert opened == planned and len(set(opened)) == 1  # the third shard of the epoch alone


def run_until_killed(data: AudioShards, world_size: int, log) -> None:
    """All ranks' training loop, in a process of its own: a line a step, as {keys in the order's order, state}."""
    loaders = []
    for rank in range(world_size):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
        loaders.append(iter(data.train_dataloader()))
    for batch_idx, batches in enumerate(zip(*loaders), data.batches):
        keys = [key for step in zip(*(batch["key"] for batch in batches)) for key in step]
        data.trainer.fit_loop = SimpleNamespace(batch_idx=batch_idx)
        log.write(json.dumps({"keys": keys, "state": data.state_dict()}) + "\n")
        log.flush()
        time.sleep(0.002)


def killed_run(data: AudioShards, world_size: int, path, num_steps: int) -> list[dict]:
    """The steps that a process had taken when it was killed, some time after its first `num_steps`."""
    child = os.fork()
    if child == 0:
        try:
            with path.open("w") as log:
                run_until_killed(data, world_size, log)
        finally:
            os._exit(1)
    steps: list[str] = []
    while len(steps) < num_steps:
        time.sleep(0.002)
        steps = path.read_text().splitlines(keepends=True) if path.exists() else []
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


@pytest.mark.parametrize("weights", [[], [1.0, 3.0]])
def test_ten_kills_at_random_steps_leave_the_order_as_it_was(weights, shards, corpus, tmp_path):
    rng = np.random.default_rng(0)
    config = DataConfig([str(shards / "train"), str(corpus)], weights=weights)
    folders = [ShardFolder(shards / "train"), ShardFolder(corpus)]
    state, found = None, []
    for run in range(10):
        world_size = int(rng.integers(1, 4))  # another number of ranks and workers each time
        data = AudioShards(DataConfig(config.train, weights=weights, num_workers=2 * (run % 4 == 3)), AUDIO, 7, 2, 0.1)
        if state:
            data.load_state_dict(state)
        steps = killed_run(data, world_size, tmp_path / f"{run}.jsonl", int(rng.integers(1, 6)))
        found += [key for step in steps for key in step["keys"]]
        state = steps[-1]["state"]
        assert state["position"] == len(found)
    blocks = weighted_blocks(folders, weights, 7, 0, 32) if weights else endless_blocks(folders, 7, 0, 32)
    order = each_clip(blocks)
    assert found == [folders[f].table(s)[clip][0] for _, f, s, clip in take(order, len(found))]


def test_state_counts_clips_whatever_the_number_of_ranks(shards):
    data = AudioShards(DataConfig([str(shards / "train")]), AUDIO, seed=0, batch_size=2)
    data.trainer = SimpleNamespace(global_rank=0, world_size=3, fit_loop=SimpleNamespace(batch_idx=4))  # type: ignore[assignment]
    state = data.state_dict()
    assert state == {"position": 30, "batches": 5, "interleave_shards": 32}
    data.load_state_dict(state)
    data.trainer = SimpleNamespace(global_rank=0, world_size=4, fit_loop=SimpleNamespace(batch_idx=6))  # type: ignore[assignment]
    assert data.state_dict() == {"position": 30 + 2 * 2 * 4, "batches": 7, "interleave_shards": 32}


def test_weights_set_the_folders_shares(shards, corpus):
    folders = [ShardFolder(shards / "train"), ShardFolder(corpus)]  # 12 and 5 clips
    places = take(each_clip(weighted_blocks(folders, [1, 3], 0, 0)), 17 * 40)
    assert [place[0] for place in places] == list(range(len(places)))
    drawn = Counter(place[1] for place in places)
    assert drawn[0] == 4 * 40 and drawn[1] == 13 * 40  # an epoch of 17 clips, a quarter and three quarters
    for f, num_clips in enumerate((12, 5)):  # each folder's turns go through its clips before any comes again
        own = [place[2:] for place in places if place[1] == f]
        assert all(len(set(own[i : i + num_clips])) == num_clips for i in range(0, len(own) - num_clips, num_clips))
    epochs = [[place[1] for place in places[i : i + 17]] for i in (0, 17, 34)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert places != take(each_clip(weighted_blocks(folders, [1, 3], 1, 0)), 17 * 40)


@pytest.mark.parametrize("start", [1, 16, 17, 18, 100, 500])
def test_a_weighted_order_is_entered_at_any_position(start, shards, corpus):
    folders = [ShardFolder(shards / "train"), ShardFolder(corpus)]
    places = take(each_clip(weighted_blocks(folders, [0.3, 0.7], 5, 0)), start + 40)
    assert take(each_clip(weighted_blocks(folders, [0.3, 0.7], 5, start)), 40) == places[start:]


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, 1.0, 1.0]])
def test_a_weight_for_each_folder(weights):
    with pytest.raises(UserError, match=r"data\.weights"):
        DataConfig(["a", "b"], weights=weights)


def test_a_folder_of_features_for_each_train_folder():
    with pytest.raises(UserError, match=r"data\.encoded has 1 entries for the 2"):
        DataConfig(["a", "b"], encoded=["a.encoded"])


def test_order_differs_between_epochs_and_seeds(shards):
    folders = [ShardFolder(shards / "train")]

    def order(seed: int, epoch: int) -> list[tuple[int, ...]]:
        clips = take(each_clip(endless_blocks(folders, seed, epoch * NUM_CLIPS)), NUM_CLIPS)
        assert [clip[0] for clip in clips] == list(range(epoch * NUM_CLIPS, (epoch + 1) * NUM_CLIPS))
        return [clip[1:] for clip in clips]

    orders = [order(0, 0), order(0, 1), order(1, 0), order(1, 1)]
    assert all(sorted(one) == sorted(orders[0]) for one in orders)
    assert all(a != b for a, b in itertools.combinations(orders, 2))
    assert order(0, 1) == orders[1]


def test_several_folders_make_one_epoch(shards, corpus):
    folders = [ShardFolder(shards / "train"), ShardFolder(corpus)]
    clips = take(each_clip(endless_blocks(folders, 0, 0)), NUM_CLIPS + 5)
    assert len({clip[1:] for clip in clips}) == NUM_CLIPS + 5
    mixed = ClipStream(folders, AUDIO, NUM_SAMPLES, 0, 2, None)
    assert len({clip["key"] for clip in mixed}) == NUM_CLIPS + 5


@pytest.mark.parametrize("num_clips", [2, 6, 17, 100])
def test_every_shard_has_its_share_of_fewer_clips(num_clips, shards, corpus):
    folders = [ShardFolder(shards / "train"), ShardFolder(corpus)]  # 12 clips of three shards, 5 of three
    select(folders, num_clips)
    selected = min(num_clips, NUM_CLIPS + 5)
    stored = [place[1:] for place in each_clip(storage_blocks(folders))]
    assert len(stored) == len(set(stored)) == sum(map(len, folders)) == selected
    for f, folder in enumerate(folders):
        assert abs(len(folder) - selected * sum(folder.counts) / (NUM_CLIPS + 5)) < 1
        for s, count in enumerate(folder.selected):  # the first of a shard
            assert [clip for g, t, clip in stored if (g, t) == (f, s)] == list(range(count))
    for order in (each_clip(endless_blocks(folders, 3, selected)), each_clip(weighted_blocks(folders, [1, 1], 3, 0))):
        assert {place[1:] for place in take(order, 20 * selected)} == set(stored)
    assert sorted(place[1:] for place in take(each_clip(endless_blocks(folders, 3, selected)), selected)) == sorted(
        stored
    )


def test_fewer_clips_are_trained_on(shards, corpus):
    config = DataConfig([str(shards / "train"), str(corpus)])
    data = AudioShards(config, AUDIO, 0, 2)
    data.limit_clips(6)
    trained = Counter(key for batch in take(data.train_dataloader(), 9) for key in batch["key"])
    assert len(trained) == 6 and set(trained.values()) == {3}
    assert set(trained) == {key for batch in data.storage_order() for key in batch["key"]}
    assert data.quarantine.num_clips == NUM_CLIPS + 5  # the bad clips of all stages are counted together
    with pytest.raises(UserError, match=r"train: max_clips=1 leaves none of its clips; give more"):
        data.limit_clips(1)


def test_storage_order_has_each_clip_once_as_the_shards_hold_them(shards):
    data = AudioShards(DataConfig([str(shards / "train")]), AUDIO, seed=0, batch_size=5)
    keys = [key for batch in data.storage_order() for key in batch["key"]]
    folder = ShardFolder(shards / "train")
    assert keys == [key for shard in range(3) for key, _ in folder.table(shard)]


def test_left_out_sound_is_not_decoded_and_changes_no_caption(corpus, shards, monkeypatch):
    loud, silent = (AudioShards(DataConfig([str(corpus)], str(shards / "test")), AUDIO, 0, 2) for _ in range(2))
    expected = take(loud.train_dataloader(), 12)
    silent.skip_sound({name for batch in silent.storage_order() for name in batch["id"]})
    assert "waveform" in next(iter(silent.storage_order())) and "waveform" in next(iter(silent.val_dataloader()))
    monkeypatch.setattr(shard_reader, "decode_sound", None)
    for batch, other in zip(take(silent.train_dataloader(), 12), expected, strict=True):
        assert batch == {name: value for name, value in other.items() if name != "waveform"}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_clip_whose_sound_is_bad_stays_out_without_sound_too(num_workers, corpus, tmp_path):
    folder = tmp_path / "train"
    shutil.copytree(corpus, folder)
    tar = bytearray((folder / "000000.tar").read_bytes())
    at = tar.index(b"fLaC") + 200
    tar[at : at + 64] = bytes(64)
    (folder / "000000.tar").write_bytes(tar)
    config = DataConfig([str(folder)], num_workers=num_workers, max_bad_fraction=0.5)
    loud, silent = (AudioShards(config, AUDIO, 0, 2) for _ in range(2))
    good = {name for batch in silent.storage_order() for name in batch["id"]}
    assert len(good) == 4
    silent.skip_sound(good)
    for batch, other in zip(take(silent.train_dataloader(), 10), take(loud.train_dataloader(), 10), strict=True):
        assert "waveform" not in batch and (batch["key"], batch["text"]) == (other["key"], other["text"])


def test_an_id_is_one_clip_of_all_folders_in_every_order(corpus, tmp_path):
    """Two folders with equal keys; of the second a clip is bad, so that another comes in its place."""
    rng = np.random.default_rng(0)
    other = [Clip(f"clip{i}", text=f"other {i}", waveform=rng.uniform(-0.5, 0.5, 8000)) for i in range(5)]
    other[2].text = "  "
    write_shards(other, tmp_path / "other", clips_per_shard=2, num_workers=1)
    data = AudioShards(DataConfig([str(corpus), str(tmp_path / "other")], max_bad_fraction=0.5), AUDIO, 0, 2)
    stored = {name: clip for batch in data.storage_order() for name, clip in zip(batch["id"], flatten([batch]))}
    assert len(stored) == 9 and len({clip["key"] for clip in stored.values()}) == 5
    drawn = [pair for batch in take(data.train_dataloader(), 20) for pair in zip(batch["id"], flatten([batch]))]
    assert {name for name, _ in drawn} == set(stored)
    for name, clip in drawn:
        assert clip["key"] == stored[name]["key"] and torch.equal(clip["waveform"], stored[name]["waveform"])


def test_storage_order_refuses_crops(shards):
    data = AudioShards(DataConfig([str(shards / "train")]), AUDIO, seed=0, batch_size=5, crop_seconds=0.5)
    with pytest.raises(UserError, match="cache_features"):
        data.storage_order()


def test_batches(shards):
    data = AudioShards(DataConfig([str(shards / "train")]), AUDIO, seed=0, batch_size=3)
    batch = next(iter(data.train_dataloader()))
    assert batch["waveform"].shape == (3, AUDIO.num_samples) and batch["waveform"].dtype == torch.float32
    assert all(len(batch[name]) == 3 for name in ("text", "transcript", "key"))
    assert all(isinstance(text, str) and text for text in batch["text"])


def test_validation_sees_the_test_split_once(shards):
    data = AudioShards(DataConfig([str(shards / "train")], test=str(shards / "test")), AUDIO, 0, 3)
    keys = [key for batch in data.val_dataloader() for key in batch["key"]]
    assert len(keys) == len(set(keys)) == 4
    assert AudioShards(DataConfig([str(shards / "train")]), AUDIO, 0, 3).val_dataloader() == []


def test_state_moves_the_start(shards):
    data = AudioShards(DataConfig([str(shards / "train")]), AUDIO, seed=0, batch_size=2, crop_seconds=0.1)
    straight = flatten(take(data.train_dataloader(), 5))
    data.load_state_dict({"position": 6, "interleave_shards": 32})
    assert all(same(a, b) for a, b in zip(straight[6:], flatten(take(data.train_dataloader(), 2))))


def test_crops_and_captions_are_drawn_anew_each_epoch(corpus):
    clips = take(stream(corpus), 150)
    captions = {clip["text"] for clip in clips}
    assert captions == {f"{i}{letter}" for i in range(5) for letter in "abc"}
    assert all(clip["text"].startswith(clip["key"][-1]) for clip in clips)
    assert all(clip["transcript"] == f"word {clip['key'][-1]}" for clip in clips)
    # a ramp's piece less its mean is the same everywhere: look at the crops themselves
    crops = [Crop(NUM_SAMPLES, 16_000, np.random.default_rng(i)) for i in range(20)]
    waveforms = [ShardFolder(corpus).load(0, 0, crop=crop)["waveform"] for crop in crops]
    starts = {round(waveform[0] * 32_768) for waveform in waveforms}
    assert len(starts) == 20 and min(starts) >= 0 and max(starts) <= 16_000 - NUM_SAMPLES


def test_one_text_is_the_caption(tmp_path):
    noise = np.random.default_rng(0).normal(size=3200).astype(np.float32) * 0.1
    write_shards([Clip("a", text="a hiss", waveform=noise), Clip("b", waveform=noise)], tmp_path / "x", num_workers=1)
    assert [clip["text"] for clip in stream(tmp_path / "x", start=None)] == ["a hiss", ""]


def test_crops_avoid_silence(tmp_path):
    waveform = np.zeros(10_000, dtype=np.float32)
    waveform[3000:7000] = 0.5
    clips = [Clip("part", text="a", waveform=waveform), Clip("none", text="b", waveform=0 * waveform)]
    write_shards(clips, tmp_path / "x", num_workers=1)
    folder = ShardFolder(tmp_path / "x")
    for seed in range(30):
        assert folder.load_audible(0, 0, crop=Crop(1000, 16_000, np.random.default_rng(seed)))["waveform"].any()
    for num_samples in (10_000, 20_000):
        whole = folder.load_audible(0, 0, crop=Crop(num_samples, 16_000, np.random.default_rng(0)))["waveform"]
        assert np.array_equal(whole, folder.read(0, 0)["waveform"])
    assert not folder.load_audible(0, 0, crop=Crop(2000, 16_000))["waveform"].any()  # silent, the clip is not
    with pytest.raises(BadClip, match="silent"):
        folder.load_audible(0, 1, crop=Crop(1000, 16_000, np.random.default_rng(0)))


@pytest.mark.parametrize("rate", [8000, 22_050, 48_000])
def test_shards_at_another_rate_are_resampled(rate, tmp_path):
    time = np.arange(2 * rate) / rate
    tone = (0.2 * np.sin(2 * np.pi * 500 * time)).astype(np.float32)
    write_shards([Clip("tone", text="a tone", waveform=tone)], tmp_path / "train", sample_rate=rate, num_workers=1)
    clips = ClipStream([ShardFolder(tmp_path / "train")], AUDIO, 16_000, 0, 1, 0)
    (clip,) = take(clips, 1)
    assert clip["waveform"].shape == (16_000,) and clip["waveform"].dtype == torch.float32
    assert clip["waveform"].abs().max().item() == pytest.approx(0.5, abs=1e-4)
    spectrum = torch.fft.rfft(clip["waveform"]).abs()
    assert spectrum.argmax().item() == 500  # one second: bins are Hz


def test_short_clips_are_padded_at_the_end(tmp_path):
    noise = np.random.default_rng(0).normal(size=1000).astype(np.float32) * 0.1
    write_shards([Clip("short", text="short", waveform=noise)], tmp_path / "train", num_workers=1)
    (clip,) = take(stream(tmp_path / "train"), 1)
    assert clip["waveform"].shape == (NUM_SAMPLES,)
    assert clip["waveform"][1000:].std() < 1e-6 < clip["waveform"][:1000].std()


def copied(shards, tmp_path):
    return shutil.copytree(shards / "train", tmp_path / "broken")


def edit_index(folder, change) -> None:
    index = json.loads((folder / "index.json").read_text())
    change(index)
    (folder / "index.json").write_text(json.dumps(index))


def test_a_folder_without_index_is_refused(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        ShardFolder(tmp_path)
    with pytest.raises(UserError, match="nowhere"):
        AudioShards(DataConfig([str(tmp_path / "nowhere")]), AUDIO, 0, 2)
    with pytest.raises(UserError, match=r"data\.train"):
        AudioShards(DataConfig(), AUDIO, 0, 2)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 1}', '{"format": 1, "shards": [{"name": "0"}]}'])
def test_a_broken_index_is_refused(content, shards, tmp_path):
    folder = copied(shards, tmp_path)
    (folder / "index.json").write_text(content)
    with pytest.raises(UserError, match=str(folder / "index.json")):
        ShardFolder(folder)


def test_another_format_is_refused(shards, tmp_path):
    folder = copied(shards, tmp_path)
    edit_index(folder, lambda index: index.update(format=2))
    with pytest.raises(UserError, match=f"{folder}.*format 2"):
        ShardFolder(folder)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_a_truncated_tar_is_refused(share, shards, tmp_path):
    folder = copied(shards, tmp_path)
    tar = folder / "000001.tar"
    content = tar.read_bytes()
    tar.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=str(tar)):
        take(stream(folder), NUM_CLIPS)


def test_a_missing_tar_is_refused(shards, tmp_path):
    folder = copied(shards, tmp_path)
    (folder / "000002.tar").unlink()
    with pytest.raises(UserError, match=str(folder / "000002.tar")):
        take(stream(folder), NUM_CLIPS)


def test_a_wrong_count_is_refused(shards, tmp_path):
    folder = copied(shards, tmp_path)
    edit_index(folder, lambda index: index["shards"][0].update(num_clips=3))
    with pytest.raises(UserError, match=f"{folder / '000000.tar'}: 4 clips where index.json says 3"):
        take(stream(folder), NUM_CLIPS)


def test_a_broken_clip_is_named(shards, tmp_path):
    folder = copied(shards, tmp_path)
    broken = ShardFolder(folder)
    key, members = broken.table(0)[1]
    tar = folder / "000000.tar"
    content = bytearray(tar.read_bytes())
    offset, _ = members["flac"]
    content[offset : offset + 100] = bytes(100)
    tar.write_bytes(content)
    with pytest.raises(UserError, match=f"{tar}: clip {key}"):
        broken.read(0, 1)
