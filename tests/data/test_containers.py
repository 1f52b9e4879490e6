"""Segments of AAC and opus files that PyAV itself wrote."""

import numpy as np
import pytest

from audioldm2_pl.errors import UserError
from data.containers import container_seconds, decode_segment
from data.shards import Clip, load_sound

av = pytest.importorskip("av")
RATE = 48_000


@pytest.fixture(params=["m4a", "mp4", "webm"])
def recording(request, tmp_path):
    """3 s in stereo: 440 Hz, from 1 s on 880 Hz; the second channel is silent."""
    path = tmp_path / f"sound.{request.param}"
    times = np.arange(3 * RATE) / RATE
    tone = 0.5 * np.sin(2 * np.pi * np.where(times < 1, 440, 880) * times)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libopus" if request.param == "webm" else "aac", rate=RATE, layout="stereo")
        frame = av.AudioFrame.from_ndarray(
            np.stack([tone, 0 * tone]).astype(np.float32), format="fltp", layout="stereo"
        )
        frame.sample_rate = RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return path


def loudest_hz(waveform: np.ndarray, rate: int) -> float:
    return float(np.abs(np.fft.rfft(waveform)).argmax() * rate / len(waveform))


def test_a_segment_is_where_it_should_be(recording):
    waveform, rate = decode_segment(recording, start=0.25, duration=0.5)
    assert rate == RATE and waveform.shape == (RATE // 2, 2) and waveform.dtype == np.float32
    assert loudest_hz(waveform[:, 0], rate) == pytest.approx(440, abs=3) and 0.4 < np.abs(waveform[:, 0]).max() < 0.6
    later, _ = decode_segment(recording, start=1.5, duration=1.0)
    assert loudest_hz(later[:, 0], rate) == pytest.approx(880, abs=3)
    whole, _ = decode_segment(recording)
    assert len(whole) == pytest.approx(3 * RATE, abs=0.03 * RATE)
    assert container_seconds(recording) == pytest.approx(3, abs=0.03)


def test_clips_read_it_resampled(recording):
    waveform = load_sound(Clip("a", path=recording, start=1.5, duration=1.0), 16_000).waveform
    assert len(waveform) == 16_000 and loudest_hz(waveform, 16_000) == pytest.approx(880, abs=3)
    assert len(load_sound(Clip("a", path=recording), 16_000).waveform) == pytest.approx(48_000, abs=500)


def test_bad_files_are_user_errors(recording, tmp_path):
    with pytest.raises(UserError, match="ends before 9"):
        decode_segment(recording, start=9.0)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    for path, message in ((broken, "cannot be read as audio"), (tmp_path / "none.mp4", "no such audio file")):
        with pytest.raises(UserError, match=message):
            load_sound(Clip("a", path=path), 16_000)
