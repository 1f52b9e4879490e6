"""Pictures in shards: decoded where a stage asks for them, one of several at random, damaged ones quarantined."""

import io
import itertools
import json
import tarfile

import numpy as np
import pytest
import soundfile
from PIL import Image

from audioldm2_pl.audio import AudioConfig
from audioldm2_pl.errors import UserError
from audioldm2_pl.shards.datamodule import AudioShards, DataConfig
from audioldm2_pl.shards.format import BadClip
from audioldm2_pl.shards.reader import ShardFolder

AUDIO = AudioConfig(clip_seconds=0.1)
NOISE = np.random.default_rng(0).uniform(-0.3, 0.3, 1_600)


def flac() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, NOISE, 16_000, format="FLAC")
    return file.getvalue()


def picture(level: int, kind: str = "PNG", side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("L", (side, side), level).save(file, kind)
    return file.getvalue()


def make_shards(folder, clips: dict[str, dict[str, bytes]]):
    """A folder with one shard of clips that have these pictures by suffix."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "000000.tar", "w") as tar:
        for key, pictures in clips.items():
            for suffix, content in {"flac": flac(), "json": b'{"text": "a hiss"}', **pictures}.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    shards = [{"name": "000000.tar", "num_clips": len(clips)}]
    index = {"format": 1, "sample_rate": 16_000, "longest_seconds": 0.1, "shards": shards}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def batches(folder, images: bool = True, count: int = 8, **fields):
    data = AudioShards(DataConfig([str(folder)], **fields), AUDIO, 0, 4, quarantine=folder / "quarantine.jsonl")
    data.images = images
    return list(itertools.islice(data.train_dataloader(), count))


SEVERAL = {"0.png": picture(10), "1.png": picture(20), "2.jpg": picture(30, "JPEG")}


def test_one_of_a_clips_pictures_comes_along_by_the_seeds_rule(tmp_path):
    one, other = {"png": picture(40)}, {"jpeg": picture(50, "JPEG")}
    folder = make_shards(tmp_path, {"a": SEVERAL, "b": SEVERAL, "c": one, "d": other})
    found = batches(folder)
    levels: dict[str, set[int]] = {}
    ids: dict[str, set[int]] = {}
    for batch in found:
        for key, image, number in zip(batch["key"], batch["image"], batch["image_id"].tolist(), strict=True):
            assert image.shape == (8, 8, 3) and image.dtype == np.uint8
            levels.setdefault(key, set()).add(int(image.mean().round()))
            ids.setdefault(key, set()).add(number)
    assert levels == {"a": {10, 20, 30}, "b": {10, 20, 30}, "c": {40}, "d": {50}}
    assert all(len(numbers) == 1 for numbers in ids.values())
    assert ids["a"] == ids["b"] and len(ids["a"] | ids["c"] | ids["d"]) == 3
    again = batches(folder)
    for one, other in zip(found, again, strict=True):
        assert one["key"] == other["key"] and all(map(np.array_equal, one["image"], other["image"]))


def test_pictures_are_not_looked_at_unless_asked_for(tmp_path):
    damaged = {key: {"png": b"no picture"} for key in "abcd"}
    whole = {key: {} for key in "abcd"}
    found, expected = (
        batches(make_shards(tmp_path / name, clips), images=False)
        for name, clips in (("damaged", damaged), ("whole", whole))
    )
    for one, other in zip(found, expected, strict=True):
        assert one["key"] == other["key"] and one["waveform"].equal(other["waveform"]) and "image" not in one


@pytest.mark.parametrize(
    "pictures, reason",
    [
        ({"png": picture(1)[:-30]}, "damaged png"),
        ({"0.png": picture(1), "1.png": picture(2, "JPEG")}, "damaged 1.png"),
        ({"png": picture(1, "TIFF")}, "damaged png"),
        ({"jpg": b""}, "damaged jpg"),
        ({}, "no picture"),
    ],
)
def test_clips_of_damaged_pictures_and_of_none_are_quarantined(tmp_path, pictures, reason):
    folder = make_shards(tmp_path, {"a": pictures, **{key: {"png": picture(9)} for key in "bcd"}})
    found = batches(folder, max_bad_fraction=0.5)
    assert {key for batch in found for key in batch["key"]} == {"b", "c", "d"}
    (line,) = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == "a" and reason in json.loads(line)["reason"]
    with pytest.raises(UserError, match="bad, more than"):
        batches(folder)


def test_a_bomb_is_damage(tmp_path, monkeypatch):
    folder = make_shards(tmp_path, {"a": {"png": picture(1, side=64)}})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3_000)
    with pytest.raises(BadClip, match="damaged png"):
        ShardFolder(folder).load(0, 0, with_images=True)
    assert "images" not in ShardFolder(folder).load(0, 0)
