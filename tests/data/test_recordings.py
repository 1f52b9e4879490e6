"""Files that hold something else than their name says: whole videos, cut downloads, silent channels."""

import sys

import numpy as np
import pytest
import soundfile

from audioldm2_pl.errors import UserError
from data.recordings import Segment, read_sound

RATE = 16_000


def tone(hz: float, seconds: float) -> np.ndarray:
    return 0.4 * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)


def hz_of(waveform: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(waveform)).argmax() * RATE / len(waveform))


def read(*paths, **segment):
    return read_sound(paths, Segment(**segment), RATE)


def cut(path, part=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: round(part * len(content))])
    return path


def test_a_clip_is_cut_out_of_the_whole_recording(tmp_path):
    path = tmp_path / "video.wav"
    soundfile.write(path, np.concatenate([tone(440, 4), tone(1000, 2)]), RATE)
    sound = read(path, duration=2, recording_start=4)
    assert (sound.start, len(sound.waveform)) == (4, 2 * RATE) and hz_of(sound.waveform) == pytest.approx(1000, abs=2)
    assert len(read(path, duration=2, recording_start=5).waveform) == RATE  # the recording ends a little early
    assert hz_of(read(path, duration=2, recording_start=0).waveform) == pytest.approx(440, abs=2)
    with pytest.raises(UserError, match="neither the clip of 2 s nor the recording up to its end"):
        read(path, duration=2, recording_start=20)
    soundfile.write(path, tone(440, 2.2), RATE)  # the clip itself, cut at a key frame
    assert read(path, duration=2, recording_start=20).start == 0


def test_short_files_are_told_or_left_out(tmp_path):
    path = tmp_path / "clip.wav"
    soundfile.write(path, tone(440, 0.05), RATE)
    with pytest.raises(UserError, match=r"0\.05 s is too short"):
        read(path)
    soundfile.write(path, tone(440, 3), RATE)
    assert read(path, duration=10, recording_start=20).changed == ["3.00 s where 10 s are meant"]
    assert not read(path, duration=10).changed  # 10 s at most
    for duration in (0, -1):
        with pytest.raises(UserError, match="ends before it begins"):
            read(path, duration=duration)


@pytest.mark.parametrize("suffix", ["wav", "mp3", "flac", "ogg", "opus"])
def test_cut_downloads_are_left_out(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    options = {"format": "OGG", "subtype": "OPUS"} if suffix == "opus" else {}
    soundfile.write(path, tone(440, 8) + 0.05 * np.random.default_rng(0).standard_normal(8 * RATE), RATE, **options)
    whole = path.read_bytes()
    assert len(read(path).waveform) == len(read(path, duration=600).waveform) == 8 * RATE
    cut(path)
    for segment in ({}, {"duration": 600}, {"start": 3, "duration": 4}):
        with pytest.raises(UserError, match=r"cut off|cannot be read|ends before"):
            read(path, **segment)
    if suffix in ("wav", "mp3", "ogg"):
        assert len(read(path, start=1, duration=1).waveform) == RATE  # what is there is right
    path.write_bytes(whole[:30])
    with pytest.raises(UserError, match="cannot be read"):
        read(path)


def test_whatever_a_decoder_raises_is_one_line(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(440, 1), RATE)
    content = bytearray(path.read_bytes())
    content[22:26] = b"\xff\xff\xff\xff"  # more samples than any memory holds
    content[21] |= 0x0F
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.flac: "):
        read(path)


def test_a_stream_that_never_knew_its_length_is_whole(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(440, 1), RATE)
    content = bytearray(path.read_bytes())
    content[4:8] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert len(read(path).waveform) == RATE


@pytest.mark.parametrize("suffix", ["m4a", "webm"])
def test_cut_containers_and_whole_videos(tmp_path, suffix):
    av = pytest.importorskip("av")
    path = tmp_path / f"video.{suffix}"
    samples = np.concatenate([tone(440, 4), tone(1000, 2)]).astype(np.float32).repeat(3)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libopus" if suffix == "webm" else "aac", rate=48_000, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.stack([0 * samples, samples]), format="fltp", layout="stereo")
        frame.sample_rate = 48_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    sound = read(path, duration=2, recording_start=4)
    assert sound.start == 4 and hz_of(sound.waveform) == pytest.approx(1000, abs=3)
    assert sound.changed == ["its first channel is silent, the loudest was taken"]
    cut(path)
    with pytest.raises(UserError, match=r"cut off|cannot be read|ends before"):
        read(path)


def test_the_next_file_of_a_name_where_one_is_damaged(tmp_path, monkeypatch):
    broken, whole = tmp_path / "a.mp4", tmp_path / "a.wav"
    broken.write_bytes(bytes(100))
    soundfile.write(whole, tone(440, 1), RATE)
    assert len(read(broken, whole).waveform) == RATE
    monkeypatch.setitem(sys.modules, "av", None)  # makes `import av` fail
    assert len(read(broken, whole).waveform) == RATE
    with pytest.raises(UserError, match=r"needs PyAV; install audioldm2-pl\[video\]"):
        read(broken, tmp_path / "none.wav")


@pytest.mark.parametrize("num_channels", [2, 6])
def test_a_silent_first_channel(tmp_path, num_channels):
    path = tmp_path / "a.wav"
    channels = np.zeros((RATE, num_channels))
    soundfile.write(path, channels, RATE)
    with pytest.raises(UserError, match="is silent"):
        read(path)
    channels[:, 0], channels[:, -1] = 1e-5 * tone(300, 1), tone(440, 1)
    soundfile.write(path, channels, RATE, subtype="FLOAT")
    sound = read(path)
    assert hz_of(sound.waveform) == pytest.approx(440, abs=2) and sound.changed
    channels[:, 0] = 0.01 * tone(300, 1)  # soft is not silent
    soundfile.write(path, channels, RATE, subtype="FLOAT")
    sound = read(path, duration=0.5)
    assert hz_of(sound.waveform) == pytest.approx(300, abs=2) and not sound.changed


def test_rates_that_no_sound_has(tmp_path):
    for rate in (1, 2_000_000_000):
        soundfile.write(tmp_path / "a.wav", tone(440, 1), rate)
        with pytest.raises(UserError, match=f"{rate} Hz is no rate"):
            read(tmp_path / "a.wav")
