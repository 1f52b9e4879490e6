"""Bad clips: which are found, what comes in their place, how they are counted, and what is never run."""

import io
import itertools
import json
import os
import pickle
import re
import shutil
import tarfile

import numpy as np
import pytest
import soundfile
import torch

from audioldm2_pl.audio import AudioConfig
from audioldm2_pl.datamodule import AudioShards, ClipStream, DataConfig, ShardFolder
from audioldm2_pl.errors import UserError
from audioldm2_pl.quarantine import Quarantine
from audioldm2_pl.shard_reader import BadClip
from data.shards import Clip, write_shards

torch.set_num_threads(1)
AUDIO = AudioConfig(clip_seconds=0.1)
NUM_SAMPLES = 1600
NUM_CLIPS = 8


def flac(waveform, rate: int = 16_000, kind: str = "FLAC", subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, waveform, rate, format=kind, subtype=subtype)
    return file.getvalue()


NOISE = np.random.default_rng(0).uniform(-0.3, 0.3, NUM_SAMPLES).astype(np.float32)
GOOD = {"flac": flac(NOISE), "json": b'{"text": "a hiss"}'}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Eight clips of a tenth of a second in one shard."""
    rng = np.random.default_rng(1)
    folder = tmp_path_factory.mktemp("corpus") / "train"
    clips = [
        Clip(f"clip{i}", text=f"caption {i}", waveform=rng.uniform(-0.3, 0.3, NUM_SAMPLES).astype(np.float32))
        for i in range(NUM_CLIPS)
    ]
    write_shards(clips, folder, num_workers=1)
    return folder


def make_shard(folder, clips: dict[str, dict[str, bytes]]):
    """A folder with one shard of these members, as index.json describes it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "000000.tar", "w") as tar:
        for key, members in clips.items():
            for suffix, content in members.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    shards = [{"name": "000000.tar", "num_clips": len(clips)}]
    index = {"format": 1, "sample_rate": 16_000, "longest_seconds": 0.1, "shards": shards}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def stream(folder, start: int | None = 0, fraction: float = 1.0, rank: int = 0, world_size: int = 1, path=None):
    folders = [ShardFolder(folder)]
    quarantine = Quarantine(folders, fraction, path)
    return ClipStream(folders, AUDIO, NUM_SAMPLES, 0, 2, start, rank, world_size, quarantine=quarantine)


def keys(clips, count: int | None = None) -> list[str]:
    return [clip["key"] for clip in itertools.islice(clips, count)]


def damaged(content: bytes, rng: np.random.Generator) -> tuple[bytes, int, int]:
    """The content with a flipped bit, a burst of noise, zeros or a cut, and where the damage begins and ends."""
    at = int(rng.integers(len(content)))
    kind = rng.integers(4)
    if kind == 0:
        return content[:at], at, len(content)
    end = at + 1 if kind == 1 else min(len(content), at + int(rng.integers(1, 2000)))
    middle = {1: bytes([content[at] ^ 1 << int(rng.integers(8))]), 2: rng.bytes(end - at), 3: bytes(end - at)}
    return content[:at] + middle[int(kind)] + content[end:], at, end


def test_300_random_corruptions_lose_only_what_they_touch(corpus, tmp_path):
    rng = np.random.default_rng(0)
    content = (corpus / "000000.tar").read_bytes()
    whole = {clip["key"]: clip for clip in stream(corpus, None)}
    places = ShardFolder(corpus).clips(0)
    folder = shutil.copytree(corpus, tmp_path / "broken")
    num_lost = 0
    for _ in range(300):
        broken, begin, end = damaged(content, rng)
        (folder / "000000.tar").write_bytes(broken)
        clips = stream(folder, None)
        delivered = {clip["key"]: clip for clip in clips}
        assert len(delivered) + len(clips.quarantine.bad) == NUM_CLIPS
        num_lost += len(clips.quarantine.bad)
        for key, members in places:
            first = min(offset for offset, _ in members.values()) - 512
            last = max(offset + size for offset, size in members.values())
            if end <= first or last <= begin:
                assert key in delivered
            if key in delivered:
                assert torch.equal(delivered[key]["waveform"], whole[key]["waveform"])
    assert num_lost > 200


def test_lost_bytes_are_accounted_for(corpus, tmp_path):
    content = (corpus / "000000.tar").read_bytes()
    folder = shutil.copytree(corpus, tmp_path / "broken")
    for at in range(100, len(content), 3000):  # all that follows lies off the tar's blocks
        (folder / "000000.tar").write_bytes(content[:at] + content[at + 77 :])
        clips = stream(folder, None)
        assert len(keys(clips)) + len(clips.quarantine.bad) == NUM_CLIPS


BAD = {
    "NaN or infinite samples": {"wav": flac(NOISE * np.nan, kind="WAV", subtype="FLOAT"), "json": GOOD["json"]},
    "no samples": {"wav": flac(NOISE[:0], kind="WAV"), "json": GOOD["json"]},
    "wrong rate (8000 Hz where index.json says 16000)": {"flac": flac(NOISE[:800], 8000), "json": GOOD["json"]},
    "damaged flac (0.20 s, longer than index.json says)": {"flac": flac(np.tile(NOISE, 2)), "json": GOOD["json"]},
    "damaged flac (holds OGG)": {"flac": flac(NOISE, kind="OGG", subtype="VORBIS"), "json": GOOD["json"]},
    "empty caption": {**GOOD, "json": b'{"text": "  "}'},
    "caption that is no text": {**GOOD, "json": b'{"captions": ["a", 3]}'},
    "damaged json (no fields of a clip)": {**GOOD, "json": b"[1]"},
    "no sound member": {"json": GOOD["json"]},
    "no json member": {"flac": GOOD["flac"]},
}


@pytest.mark.parametrize("reason", BAD)
def test_each_kind_of_bad_clip_is_named(reason, tmp_path):
    folder = make_shard(tmp_path / "x", {"good": GOOD, "bad": BAD[reason]})
    clips = stream(folder, None)
    assert keys(clips) == ["good"]
    assert list(clips.quarantine.bad.values()) == [reason]
    with pytest.raises(UserError, match=f"{folder}/000000.tar: clip bad cannot be read"):
        ShardFolder(folder).read(0, 1)


@pytest.mark.parametrize("json", [b'{"captions": ["", "a hiss"]}', b'{"text": "a hiss"}'])
def test_blank_captions_are_not_drawn(json, tmp_path):
    folder = make_shard(tmp_path / "x", {"a": {**GOOD, "json": json}})
    assert {clip["text"] for clip in itertools.islice(stream(folder), 20)} == {"a hiss"}


def test_a_txt_member_is_the_caption_and_an_array_a_field(tmp_path):
    array = io.BytesIO()
    np.save(array, np.arange(3))
    members = {"wav": flac(NOISE, kind="WAV"), "txt": b"a hiss\n", "latent.npy": array.getvalue()}
    clip = ShardFolder(make_shard(tmp_path / "x", {"a": members})).read(0, 0)
    assert clip["text"] == "a hiss" and clip["latent"].tolist() == [0, 1, 2] and len(clip["waveform"]) == NUM_SAMPLES


def test_long_keys_are_read(tmp_path):
    clips = {"k" * 150 + str(i): GOOD for i in range(3)}  # the tar puts such names into headers of their own
    assert keys(stream(make_shard(tmp_path / "x", clips), None)) == list(clips)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", ["pyd", "pickle", "pkl", "pth", "pt", "PKL", "pickle.gz"])
def test_a_shard_with_pickles_is_refused_by_name(suffix, tmp_path):
    folder = make_shard(tmp_path / "x", {"a": GOOD, "b": {**GOOD, suffix: pickle.dumps(Payload(tmp_path / "ran"))}})
    with pytest.raises(UserError, match=rf"{folder}/000000\.tar: carries b\.{suffix}"):
        keys(stream(folder, None))
    assert not (tmp_path / "ran").exists()


def test_an_array_of_pickles_runs_no_code(tmp_path):
    array = io.BytesIO()
    np.save(array, np.array([Payload(tmp_path / "ran")]), allow_pickle=True)
    folder = make_shard(tmp_path / "x", {"a": GOOD, "b": {**GOOD, "loa.npy": array.getvalue()}})
    clips = stream(folder, None)
    assert keys(clips) == ["a"] and "damaged loa.npy" in str(clips.quarantine.bad)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../000000.tar", "/etc/passwd", "a/b.tar", ".hidden"])
def test_an_index_points_to_its_own_folder_only(name, tmp_path):
    folder = make_shard(tmp_path / "x", {"a": GOOD})
    (folder / "index.json").write_text(json.dumps({"format": 1, "shards": [{"name": name, "num_clips": 1}]}))
    with pytest.raises(UserError, match=r"index\.json"):
        ShardFolder(folder)


@pytest.fixture
def half_bad(corpus, tmp_path):
    """The corpus with its second half cut off, and a clip without a caption."""
    folder = shutil.copytree(corpus, tmp_path / "half")
    content = (corpus / "000000.tar").read_bytes()
    content = content[: len(content) * 6 // 10].replace(b'"caption 1"', b'"         "')
    (folder / "000000.tar").write_bytes(content)
    return folder


def test_a_bad_clip_gives_way_to_the_next_good_one(corpus, half_bad):
    planned = keys(stream(corpus), 3 * NUM_CLIPS + 8)
    clips = stream(half_bad)
    found = keys(clips, 3 * NUM_CLIPS)
    good = {clip["key"] for clip in stream(half_bad, None)}
    assert 2 <= len(good) < 6 and len(clips.quarantine.bad) == NUM_CLIPS - len(good)
    assert found == [next(key for key in planned[k:] if key in good) for k in range(3 * NUM_CLIPS)]
    assert found[5:15] == keys(stream(half_bad, 5), 10)  # a resumed run replaces the same


def test_ranks_and_workers_take_equal_steps_over_bad_clips(half_bad, tmp_path):
    straight = keys(stream(half_bad), 24)
    path = tmp_path / "run" / "quarantine.jsonl"
    ranks = []
    for rank in range(2):
        data = AudioShards(DataConfig([str(half_bad)], num_workers=3, max_bad_fraction=1.0), AUDIO, 0, 2, 0.1, path)
        clips = stream(half_bad, 0, 1.0, rank, 2, path)
        ranks.append([key for batch in itertools.islice(data.loader(clips), 6) for key in batch["key"]])
    assert [key for step in zip(*ranks) for key in step] == straight
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert {record["shard"] for record in records} == {f"{half_bad}/000000.tar"}
    assert {(record["key"], record["reason"]) for record in records} >= {
        ("clip1", "empty caption"),
        (None, "lost in a damaged or cut off tar"),
    }
    bad = NUM_CLIPS - len(set(straight))
    assert len({record["clip"] for record in records}) == bad
    (line,) = data.bad_clips()  # the main process has met none: it knows from the file
    assert line.startswith(f"{bad} of {NUM_CLIPS} clips left out: ")
    assert "1 empty caption" in line and line.endswith(f"; listed in {path}")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_stops_when_too_many_are_bad(num_workers, half_bad, tmp_path):
    config = DataConfig([str(half_bad)], num_workers=num_workers)
    data = AudioShards(config, AUDIO, 0, 2, 0.1, tmp_path / "quarantine.jsonl")
    with pytest.raises(UserError) as caught:
        list(itertools.islice(data.train_dataloader(), 20))
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)
    stated = rf"[12] of {NUM_CLIPS} clips are bad, more than data\.max_bad_fraction=0\.01 allows"  # a worker each
    assert re.search(stated, str(caught.value))


def test_the_limit_counts_each_clip_once_over_the_epochs_and_processes(half_bad, tmp_path):
    path = tmp_path / "quarantine.jsonl"
    bad = NUM_CLIPS - len(keys(stream(half_bad, None)))
    assert len(keys(stream(half_bad, 0, bad / NUM_CLIPS, path=path), 5 * NUM_CLIPS)) == 5 * NUM_CLIPS
    again = stream(half_bad, 0, bad / NUM_CLIPS, path=path)  # as another process: the same clips are no new ones
    assert len(keys(again, NUM_CLIPS)) == NUM_CLIPS
    assert len(path.read_text().splitlines()) > bad == len(again.quarantine.bad)
    with pytest.raises(UserError, match=f"{bad} of {NUM_CLIPS} clips"):
        keys(stream(half_bad, 0, (bad - 0.5) / NUM_CLIPS, path=path), 1 * NUM_CLIPS)


def test_a_broken_line_of_the_list_is_passed_over(corpus, tmp_path):
    path = tmp_path / "quarantine.jsonl"
    path.write_text('{"shard": 3}\n\x00\n{"shard": "elsewhere", "clip": 1, "key": "a", "reason": "x"}\n{"sha')
    quarantine = Quarantine([ShardFolder(corpus)], 0.5, path)
    assert quarantine.summary() == ""
    quarantine.add(ShardFolder(corpus), 0, 2, BadClip("a", "no samples"))
    assert quarantine.summary().startswith(f"1 of {NUM_CLIPS} clips left out: 1 no samples")


def test_nothing_but_bad_clips_is_an_error(tmp_path):
    folder = make_shard(tmp_path / "x", {"a": BAD["no samples"], "b": BAD["empty caption"]})
    with pytest.raises(UserError, match="no clip that can be used"):
        keys(stream(folder), 1)
    assert keys(stream(folder, None)) == []


@pytest.mark.parametrize("fraction", [-0.1, 1.5])
def test_the_limit_is_a_share(fraction):
    with pytest.raises(UserError, match="max_bad_fraction"):
        DataConfig(max_bad_fraction=fraction)
