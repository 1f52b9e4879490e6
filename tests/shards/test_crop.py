"""Crops that are read by seeking are those that decoding everything and cutting would give."""

import io
import json
import tarfile

import numpy as np
import pytest
import soundfile
import torch

from audioldm2_pl.audio import AudioConfig, choose_channel, prepare_clip
from audioldm2_pl.shards.crop import LONG_BYTES, Crop, MemberFile
from audioldm2_pl.shards.format import BadClip
from audioldm2_pl.shards.quarantine import Quarantine
from audioldm2_pl.shards.reader import ShardFolder
from audioldm2_pl.shards.stream import ClipStream

torch.set_num_threads(1)
AUDIO = AudioConfig(clip_seconds=0.5)
SUBTYPES = {"flac": ["PCM_16", "PCM_24"], "wav": ["PCM_16", "FLOAT"], "ogg": ["VORBIS"], "opus": ["OPUS"],
            "mp3": ["MPEG_LAYER_III"]}  # fmt: skip


def sound(suffix: str, subtype: str, rate: int, num_channels: int = 1, seconds: float = 6.0) -> bytes:
    """A noise of falling spectrum; every channel another."""
    rng = np.random.default_rng(0)
    spectrum = np.fft.rfft(rng.normal(size=(round(seconds * rate), num_channels)), axis=0)
    spectrum /= np.maximum(1.0, np.arange(len(spectrum)) / seconds / 50.0)[:, None] ** 0.5
    waveform = np.fft.irfft(spectrum, round(seconds * rate), axis=0)
    file, kind = io.BytesIO(), {"opus": "OGG"}.get(suffix, suffix.upper())
    soundfile.write(file, 0.5 * waveform / np.abs(waveform).max(), rate, format=kind, subtype=subtype)
    return file.getvalue()


def make_folder(path, clips: dict[str, bytes]) -> ShardFolder:
    """A shard of sounds by their members' names, each with a caption."""
    path.mkdir(exist_ok=True)
    with tarfile.open(path / "000000.tar", "w") as tar:
        for name, content in clips.items():
            for member, bytes_ in ((name, content), (f"{name.partition('.')[0]}.json", b'{"captions": ["a", "b"]}')):
                info = tarfile.TarInfo(member)
                info.size = len(bytes_)
                tar.addfile(info, io.BytesIO(bytes_))
    index = {"format": 1, "shards": [{"name": "000000.tar", "num_clips": len(clips)}]}
    (path / "index.json").write_text(json.dumps(index))
    return ShardFolder(path)


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("suffix, subtype", [(s, subtype) for s, subtypes in SUBTYPES.items() for subtype in subtypes])
def test_a_crop_is_what_decoding_everything_gives(suffix, subtype, rate, tmp_path):
    if suffix == "opus" and rate in (22_050, 44_100):
        pytest.skip("Opus has no such rate")
    content = sound(suffix, subtype, rate, num_channels=2)
    folder = make_folder(tmp_path / "x", {f"a.{suffix}": content})
    whole = choose_channel(soundfile.read(io.BytesIO(content), dtype="float32")[0])
    stream = ClipStream([folder], AUDIO, 8000, 0, 1, 0)
    for position, clip in zip(range(12), stream):
        rng = np.random.default_rng((0, position, 1))
        start = int(rng.integers(len(whole) - rate // 2 + 1))
        expected = prepare_clip(whole, rate, AUDIO, 8000, start)
        if suffix == "mp3":  # two decodings of it differ by rounding
            assert np.allclose(clip["waveform"], expected, rtol=0, atol=2e-6)
        else:
            assert np.array_equal(clip["waveform"], expected)
        assert clip["text"] == "ab"[rng.integers(2)]
    first = Crop(8000, 16_000)
    assert np.allclose(folder.load(0, 0, crop=first)["waveform"], whole[: rate // 2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("suffix, subtype", [("flac", "PCM_16"), ("wav", "PCM_16")])
def test_little_is_read_of_a_long_recording(suffix, subtype, tmp_path, monkeypatch):
    content = sound(suffix, subtype, 44_100, seconds=60)
    assert len(content) > LONG_BYTES
    folder = make_folder(tmp_path / "x", {f"a.{suffix}": content})
    whole, num_read = soundfile.read(io.BytesIO(content), dtype="float32")[0], []
    readinto = MemberFile.readinto
    monkeypatch.setattr(MemberFile, "readinto", lambda *args: num_read.append(n := readinto(*args)) or n)
    for seed in range(20):
        waveform = folder.load(0, 0, crop=Crop(8000, 16_000, np.random.default_rng(seed)))["waveform"]
        start = int(np.random.default_rng(seed).integers(len(whole) - 22_050 + 1))
        assert np.array_equal(waveform, whole[start : start + 22_050])
    assert sum(num_read) / 20 < 0.2 * len(content)


def test_damage_is_in_no_crop(tmp_path):
    """Of 300 damaged recordings a crop is that of the whole one, or the clip is left out."""
    content = sound("flac", "PCM_16", 16_000, seconds=20)
    whole, rng = soundfile.read(io.BytesIO(content), dtype="float32")[0], np.random.default_rng(1)
    num_good = 0
    for seed in range(300):
        at, length = int(rng.integers(len(content))), int(rng.integers(1, 20_000))
        middle = rng.bytes(length) if seed % 2 else bytes(length)
        broken = (content[:at] + middle + content[at + length :])[: len(content)]
        folder = make_folder(tmp_path / "x", {"a.flac": broken})
        try:
            waveform = folder.load_audible(0, 0, crop=Crop(16_000, 16_000, np.random.default_rng(seed)))["waveform"]
        except BadClip:
            continue
        start = int(np.random.default_rng(seed).integers(len(whole) - 16_000 + 1))
        assert np.array_equal(waveform, whole[start : start + 16_000])
        num_good += 1
    assert 200 < num_good < 300


def test_a_resumed_run_leaves_out_the_same_crops(tmp_path):
    """A clip whose damage one crop has met comes again where another crop does not meet it."""
    good, bad = sound("flac", "PCM_16", 16_000, seconds=8), bytearray(sound("flac", "PCM_16", 16_000, seconds=4))
    bad[len(bad) // 2 : len(bad) // 2 + 20_000] = bytes(20_000)
    folder = make_folder(tmp_path / "x", {"good.flac": good, "bad.flac": bytes(bad)})

    def keys(start: int, path=None) -> list[str]:
        quarantine = Quarantine([folder], 0.5, path)
        stream = ClipStream([folder], AUDIO, 8000, 0, 1, start, quarantine=quarantine)
        return [clip["key"] for clip, _ in zip(stream, range(60 - start))]

    straight = keys(0, tmp_path / "quarantine.jsonl")
    assert 0 < straight.count("bad") < 30
    assert keys(31) == straight[31:]
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 1  # one line a clip


def test_a_recording_that_is_silent_all_along_is_left_out(tmp_path):
    quiet = io.BytesIO()
    soundfile.write(quiet, np.full(80_000, 0.2), 16_000, format="FLAC")
    part = np.zeros(80_000)
    part[70_000:] = 0.3 * np.sin(np.arange(10_000))
    rare = io.BytesIO()
    soundfile.write(rare, part, 16_000, format="FLAC")
    folder = make_folder(tmp_path / "x", {"a.flac": quiet.getvalue(), "b.flac": rare.getvalue()})
    for seed in range(10):
        crop = Crop(8000, 16_000, np.random.default_rng(seed))
        with pytest.raises(BadClip, match="silent"):
            folder.load_audible(0, 0, crop=crop)
        folder.load_audible(0, 1, crop=crop)
