import io
import json
import tarfile

import numpy as np
import pytest
import soundfile

from audioldm2_pl.errors import UserError
from audioldm2_pl.shards.reader import ShardFolder
from data import shards
from data.shards import Clip, key_of, write_shards
from data.verify import verify

RATE = 16_000


def some_clips(num_clips=5, num_samples=1600):
    rng = np.random.default_rng(0)
    for i in range(num_clips):
        waveform = rng.uniform(-1, 1, num_samples).astype(np.float32)
        yield Clip(key=f"clip-{i}", text=f"sound {i}", waveform=waveform, labels=["noise"])


def test_round_trip(tmp_path):
    index = write_shards(some_clips(), tmp_path / "train", sample_rate=RATE, clips_per_shard=2, num_workers=1)
    assert [shard["num_clips"] for shard in index["shards"]] == [2, 2, 1]
    assert (index["format"], index["num_clips"], index["seconds"]) == (1, 5, 0.5)
    assert index == json.loads((tmp_path / "train" / "index.json").read_text())

    read = {}
    for shard in index["shards"]:
        with tarfile.open(tmp_path / "train" / shard["name"]) as archive:
            for name in archive.getnames():
                read[name] = archive.extractfile(name).read()
    assert list(read)[:2] == ["clip-0.flac", "clip-0.json"]
    for clip in some_clips():
        waveform, rate = soundfile.read(io.BytesIO(read[f"{clip.key}.flac"]), dtype="float32")
        assert rate == RATE
        np.testing.assert_allclose(waveform, clip.waveform, atol=1 / 32768)
        fields = json.loads(read[f"{clip.key}.json"])
        assert fields == {"text": clip.text, "labels": ["noise"], "start": 0.0, "duration": 0.1}


def test_same_clips_give_same_bytes_and_replace_what_was_there(tmp_path):
    for num_workers in (1, 3):
        write_shards(some_clips(), tmp_path / f"by-{num_workers}", num_workers=num_workers)
    assert (tmp_path / "by-1/000000.tar").read_bytes() == (tmp_path / "by-3/000000.tar").read_bytes()
    write_shards(some_clips(9), tmp_path / "by-1", clips_per_shard=3, num_workers=1)
    write_shards(some_clips(2), tmp_path / "by-1", num_workers=1)
    assert sorted(p.name for p in (tmp_path / "by-1").iterdir()) == ["000000.tar", "index.json", "members.bin"]
    assert verify(tmp_path / "by-1")["num_clips"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["by-1", "by-3"]


def test_files_are_resampled_and_cut(tmp_path):
    seconds = np.arange(2 * 8000) / 8000
    soundfile.write(tmp_path / "tone.wav", 0.5 * np.sin(2 * np.pi * 440 * seconds), 8000)
    whole = shards.load_sound(Clip("a", path=tmp_path / "tone.wav"), RATE).waveform
    part = shards.load_sound(Clip("b", path=tmp_path / "tone.wav", start=0.5, duration=1.0), RATE).waveform
    assert (whole.shape, part.shape) == ((2 * RATE,), (RATE,))
    middle = slice(2000, -2000)  # away from the resampler's edges
    np.testing.assert_allclose(part[middle], whole[8000:-8000][middle], atol=1e-3)
    with pytest.raises(UserError, match="ends before"):
        shards.load_sound(Clip("c", path=tmp_path / "tone.wav", start=3.0), RATE)


def test_unreadable_clips_are_left_out_and_listed(tmp_path):
    (tmp_path / "text.wav").write_text("no audio")
    bad = [
        Clip("missing", path=tmp_path / "missing.wav"),
        Clip("text", path=tmp_path / "text.wav"),
        Clip("nan", waveform=np.array([0.0, np.nan])),
        Clip("empty", waveform=np.zeros(0)),
    ]
    index = write_shards([*bad, *some_clips(1)], tmp_path / "out", num_workers=1)
    assert index["num_clips"] == 1
    assert [clip["key"] for clip in index["skipped"]] == ["missing", "text", "nan", "empty"]
    assert "left out missing" in shards.summary(tmp_path / "out", index)
    with pytest.raises(UserError, match="no clip could be written"):
        write_shards(bad, tmp_path / "none", num_workers=1)
    assert not (tmp_path / "none").exists()


def test_a_failed_run_keeps_the_old_shards(tmp_path):
    write_shards(some_clips(), tmp_path / "out", num_workers=1)

    def broken():
        yield from some_clips(2)
        raise RuntimeError("disk")

    with pytest.raises(RuntimeError):
        write_shards(broken(), tmp_path / "out", num_workers=1)
    assert verify(tmp_path / "out")["num_clips"] == 5
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("names", [["photo.png"], ["000000.tar"], ["index.json", "notes.txt"]])
def test_refuses_a_folder_of_other_things(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match="name another folder"):
        write_shards(some_clips(), tmp_path, num_workers=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.parametrize("key", ["a.b", "a/b", "a b", ""])
def test_bad_keys(tmp_path, key):
    with pytest.raises(UserError, match="key"):
        write_shards([Clip(key, waveform=np.zeros(10))], tmp_path / "out", num_workers=1)


def test_keys(tmp_path):
    assert key_of("dog", "1-100 (2).ogg") == "dog__1-100-2-ogg"


def test_keys_that_come_again_are_numbered_and_listed(tmp_path):
    rng = np.random.default_rng(0)
    keys = ["a-b", "a-b", "a-b__2", "a-b"]
    clips = [Clip(key, text=str(number), waveform=rng.uniform(-1, 1, 800)) for number, key in enumerate(keys)]
    index = write_shards(clips, tmp_path / "out", num_workers=1)
    fields = json_members(tmp_path / "out/000000.tar")
    assert {key: clip["text"] for key, clip in fields.items()} == {
        "a-b": "0", "a-b__2": "1", "a-b__2__2": "2", "a-b__3": "3"
    }  # fmt: skip
    assert [clip["key"] for clip in index["changed"]] == ["a-b__2", "a-b__2__2", "a-b__3"]
    assert "changed a-b__3: numbered" in shards.summary(tmp_path / "out", index)
    assert verify(tmp_path / "out")["num_clips"] == 4


def json_members(path):
    with tarfile.open(path) as archive:
        return {
            name.removesuffix(".json"): json.load(archive.extractfile(name))
            for name in archive.getnames()
            if name.endswith(".json")
        }


@pytest.mark.parametrize("peak", [1.1, 4.0, 13107.0])
def test_floats_above_full_scale_are_scaled(tmp_path, peak):
    wave = peak * np.sin(2 * np.pi * 440 * np.arange(3200) / RATE)
    soundfile.write(tmp_path / "loud.wav", wave, RATE, subtype="FLOAT")
    for clip in (Clip("a", path=tmp_path / "loud.wav"), Clip("a", waveform=wave)):
        flac, fields, *_ = shards.encode_clip(clip, RATE)
        samples, _ = soundfile.read(io.BytesIO(flac))
        np.testing.assert_allclose(samples, wave / np.abs(wave).max(), atol=1e-4)
        told = json.loads(fields).get("changed")
        assert told is None if peak < 2 else told == [f"scaled to full scale from a peak of {peak:g}"]


@pytest.mark.parametrize(
    "words",
    [
        {"text": ""},
        {"text": " \n"},
        {"text": float("nan")},
        {"text": ["a", "b"]},
        {"text": "caf\ufffd"},
        {"text": "a\x00"},
        {"text": "a \ud800"},
        {"captions": ["a", None]},
        {"captions": ["", " "]},
        {"captions": ["a", "caf\ufffd"]},
        {"transcript": " "},
        {"text": "a", "extra": {"title": "\udcff"}},
        {"text": "a", "extra": {"year": float("nan")}},
    ],
)
def test_words_that_training_would_refuse_or_learn_wrongly_are_listed(tmp_path, words):
    sound = np.random.default_rng(0).uniform(-1, 1, 800)
    index = write_shards([Clip("bad", waveform=sound, **words), *some_clips(1)], tmp_path / "out", num_workers=1)
    assert [clip["key"] for clip in index["skipped"]] == ["bad"] and index["num_clips"] == 1


def test_blank_captions_among_others_are_taken_out(tmp_path):
    clip = Clip("a", captions=["rain", " ", "wind"], waveform=np.random.default_rng(0).uniform(-1, 1, 800))
    index = write_shards([clip], tmp_path / "out", num_workers=1)
    assert json_members(tmp_path / "out/000000.tar")["a"]["captions"] == ["rain", "wind"]
    assert index["changed"] == [{"key": "a", "reason": "1 blank captions left out"}]


def test_clips_are_spread_over_the_shards(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 800)
    clips = [Clip(f"{i:03d}", waveform=noise) for i in range(100)]
    for name, num_held in (("a", 1000), ("b", 1000), ("some", 20), ("none", 0)):
        write_shards(clips, tmp_path / name, clips_per_shard=10, num_workers=1, shuffle=num_held)
    keys = {}
    for name in ("a", "some", "none"):
        folder = ShardFolder(tmp_path / name)
        keys[name] = [[int(key) for key, _ in folder.table(shard)] for shard in range(10)]
        assert sorted(key for shard in keys[name] for key in shard) == list(range(100))
    assert keys["none"] == [list(range(i, i + 10)) for i in range(0, 100, 10)]
    assert all(max(shard) - min(shard) > 40 for shard in keys["a"])
    assert all(max(shard) - min(shard) > 10 and max(shard) < 10 * i + 31 for i, shard in enumerate(keys["some"]))
    for shard in range(10):
        name = f"{shard:06d}.tar"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with pytest.raises(UserError, match="shuffled"):
        write_shards(clips, tmp_path / "c", shuffle=-1)
