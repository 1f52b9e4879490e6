"""MP3 files without a header of their length are as long as their frames, wherever they are read."""

import io

import numpy as np
import pytest
import soundfile

from audioldm2_pl.audio import load_waveform, read_audio
from audioldm2_pl.mp3 import count_frames, frame_size, open_sound
from audioldm2_pl.shards.format import decode_sound

SECONDS = 4


def varying(rate: int, num_channels: int = 1) -> bytes:
    """A second of noise after three that are nearly silent, of varying bitrate, without LAME's header."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (SECONDS * rate, num_channels))
    noise[: 3 * rate] *= 1e-3
    file = io.BytesIO()
    soundfile.write(file, noise, rate, format="MP3", bitrate_mode="VARIABLE", compression_level=0.3)
    content = file.getvalue()
    return content[frame_size(content, 0) :]


@pytest.mark.parametrize(("rate", "num_channels"), [(44_100, 1), (32_000, 2), (22_050, 2), (16_000, 1), (8_000, 1)])
def test_lengths_are_counted_not_guessed(rate, num_channels, tmp_path):
    content, path = varying(rate, num_channels), tmp_path / "a.mp3"
    with soundfile.SoundFile(io.BytesIO(content)) as file:
        assert abs(file.frames / rate - SECONDS) > 0.5  # libsndfile's guess
    tagged = b"ID3\x04\0\0\0\0\x07\x76" + bytes(1014) + content + b"TAG" + bytes(125)
    for whole in (content, tagged):
        path.write_bytes(whole)
        for source in (path, io.BytesIO(whole)):
            with open_sound(source) as file:
                assert file.frames / rate == pytest.approx(SECONDS, abs=0.2) and file.channels == num_channels
                waveform = file.read()
                assert len(waveform) == file.frames
                file.seek(round(3.5 * rate))
                np.testing.assert_allclose(file.read(500), waveform[round(3.5 * rate) :][:500], atol=1e-3)
    cut = content[: frame_size(content, 0) - 1]
    assert count_frames(content)[1] is False and count_frames(cut) == (1, True)


def test_every_reader_takes_all_of_it(tmp_path):
    content, path = varying(16_000), tmp_path / "a.mp3"
    path.write_bytes(content)
    lengths = [len(load_waveform(path, 16_000)), len(read_audio(path)[0])]
    lengths.append(len(decode_sound("mp3", content, float("inf"))["waveform"]))
    assert min(lengths) == max(lengths) == pytest.approx(SECONDS * 16_000, abs=3200)
    with pytest.raises(ValueError, match=r"of \d+ samples"):
        decode_sound("mp3", content[:-100], float("inf"))


def test_files_that_tell_their_length_are_read_as_they_are(tmp_path):
    waveform = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000)
    for suffix in ("mp3", "flac", "ogg", "wav"):
        soundfile.write(tmp_path / f"a.{suffix}", waveform, 16_000)
        with open_sound(tmp_path / f"a.{suffix}") as file:
            assert file.frames == 16_000 and file.name == str(tmp_path / f"a.{suffix}")


def test_what_only_looks_like_frames_ends(tmp_path):
    """Damage is stepped over, and a file of nothing but beginnings of frames is read through once."""
    content = bytearray(varying(44_100))
    content[3000:3900] = b"\xff" * 900
    num_frames, is_cut = count_frames(bytes(content))
    assert 0 < count_frames(varying(44_100))[0] - num_frames < 10 and not is_cut
    assert count_frames(b"\xff\xfb" * 200_000) == (0, False)
