"""Files that hold something else than their name says: whole videos, cut downloads, silent channels."""

import sys
from fractions import Fraction

import numpy as np
import pytest
import soundfile

from audioldm2_pl.errors import UserError
from audioldm2_pl.mp3 import frame_size
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


def test_an_mp3_that_does_not_tell_its_length(tmp_path):
    """Of varying bitrate: decoders guess the length by the first frame."""
    path = tmp_path / "a.mp3"
    loud = 0.5 * np.random.default_rng(0).uniform(-1, 1, 2 * RATE)
    for pieces in ([1e-3 * tone(440, 8), loud, tone(1000, 2)], [loud, 1e-3 * tone(440, 8), tone(1000, 2)]):
        soundfile.write(path, np.concatenate(pieces), RATE, bitrate_mode="VARIABLE", compression_level=0.3)
        content = path.read_bytes()
        path.write_bytes(content[frame_size(content, 0) :])  # without LAME's header
        assert len(read(path).waveform) == pytest.approx(12 * RATE, abs=0.2 * RATE)
        sound = read(path, duration=2, recording_start=10.2)
        assert sound.start == 10.2 and hz_of(sound.waveform) == pytest.approx(1000, abs=3)
        path.write_bytes(path.read_bytes()[:-150])
        for segment in ({}, {"duration": 600}, {"start": 11, "duration": 2}):
            with pytest.raises(UserError, match=r"cut off"):
                read(path, **segment)
        assert len(read(path, start=1, duration=1).waveform) == RATE


def test_a_file_that_may_be_clip_or_recording_is_left_out(tmp_path):
    path = tmp_path / "video.wav"
    soundfile.write(path, np.concatenate([tone(440, 0.4), tone(1000, 2)]), RATE)
    with pytest.raises(UserError, match=r"2\.40 s may be the clip of 2 s or a recording in which it begins at 0\.4 s"):
        read(path, duration=2, recording_start=0.4)
    assert read(path, duration=2, recording_start=0).start == 0  # one as the other
    assert read(path, duration=2, recording_start=1.5).start == 0  # the recording would end before the clip's middle
    soundfile.write(path, tone(440, 2.05), RATE)  # what encoders add
    assert read(path, duration=2, recording_start=0.4).start == 0


def write_video(path, tones, begin: float = 0.0, sound_begin: float = 0.0) -> None:
    """10 pictures a second from `begin` on, and tones from `sound_begin` seconds later."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        webm = path.suffix == ".webm"
        sound = container.add_stream("libopus" if webm else "aac", rate=48_000, layout="mono")
        video = container.add_stream("libvpx" if webm else "mpeg4", rate=10)
        video.width = video.height = 32
        frame = av.AudioFrame.from_ndarray(tones.astype(np.float32).repeat(3)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48_000, round(48_000 * (begin + sound_begin))
        packets = [*sound.encode(frame), *sound.encode(None)]
        for index in range(round(10 * (len(tones) / RATE + sound_begin))):
            picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 * index % 256, np.uint8), format="rgb24")
            picture.pts, picture.time_base = index + round(10 * begin), Fraction(1, 10)
            packets += video.encode(picture)
        packets += video.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.pts * packet.time_base):
            container.mux(packet)


@pytest.mark.parametrize("suffix", ["mkv", "webm", "mp4"])
def test_videos_with_pictures(suffix, tmp_path):
    """Matroska tells the length of the whole file alone, not of its sound."""
    path = tmp_path / f"video.{suffix}"
    write_video(path, np.concatenate([tone(440, 8), tone(1000, 4)]))
    sound = read(path, duration=3, recording_start=8.5)
    assert sound.start == 8.5 and hz_of(sound.waveform) == pytest.approx(1000, abs=3)
    assert len(read(path).waveform) == pytest.approx(12 * RATE, abs=0.1 * RATE)
    cut(path, 0.3)  # holds the first seconds alone, which are not the clip
    with pytest.raises(UserError, match=r"cut off|cannot be read|ends before"):
        read(path, duration=3, recording_start=8.5)
    with pytest.raises(UserError, match=r"cut off|cannot be read|ends before"):
        read(path)


def test_a_clip_that_keeps_its_recordings_clock(tmp_path):
    path = tmp_path / "clip.mkv"
    write_video(path, np.concatenate([tone(440, 1), tone(1000, 2)]), begin=30)
    sound = read(path, duration=3, recording_start=30)
    assert sound.start == 0 and len(sound.waveform) == 3 * RATE
    assert [hz_of(part) for part in (sound.waveform[:12_000], sound.waveform[-12_000:])] == [
        pytest.approx(440, abs=3),
        pytest.approx(1000, abs=3),
    ]


def test_sound_that_begins_after_the_pictures_is_where_it_belongs(tmp_path):
    path = tmp_path / "clip.mkv"
    write_video(path, tone(440, 2), sound_begin=1)
    waveform = read(path, duration=3).waveform
    assert (
        len(waveform) == 3 * RATE and np.abs(waveform[: RATE - 800]).max() < 0.01 < np.abs(waveform[RATE + 800 :]).max()
    )
