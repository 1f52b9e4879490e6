import io
import json
import tarfile

import numpy as np
import pytest
import soundfile

from audioldm2_pl.errors import UserError
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
    index = write_shards(some_clips(), tmp_path / "train", RATE, clips_per_shard=2, num_workers=1)
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
    assert sorted(p.name for p in (tmp_path / "by-1").iterdir()) == ["000000.tar", "index.json"]
    assert verify(tmp_path / "by-1")["num_clips"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["by-1", "by-3"]


def test_files_are_resampled_and_cut(tmp_path):
    seconds = np.arange(2 * 8000) / 8000
    soundfile.write(tmp_path / "tone.wav", 0.5 * np.sin(2 * np.pi * 440 * seconds), 8000)
    whole = shards.read_clip(Clip("a", path=tmp_path / "tone.wav"), RATE)
    part = shards.read_clip(Clip("b", path=tmp_path / "tone.wav", start=0.5, duration=1.0), RATE)
    assert (whole.shape, part.shape) == ((2 * RATE,), (RATE,))
    middle = slice(2000, -2000)  # away from the resampler's edges
    np.testing.assert_allclose(part[middle], whole[8000:-8000][middle], atol=1e-3)
    with pytest.raises(UserError, match="ends before"):
        shards.read_clip(Clip("c", path=tmp_path / "tone.wav", start=3.0), RATE)


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
    with pytest.raises(UserError, match="twice"):
        write_shards([*some_clips(1), *some_clips(1)], tmp_path / "out", num_workers=1)
