"""Comments of sound files, and that other readers find the same samples beside them."""

import struct

import numpy as np
import pytest
import soundfile

from audioldm2_pl.audio import save_waveform
from audioldm2_pl.errors import UserError
from audioldm2_pl.tags import read_comment

SAMPLES = np.linspace(-0.5, 0.5, 1_001)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize("comment", ["a bell", "ein Glöckchen läutet", '{"a": "\\n"}' * 9_000])
def test_a_comment_of_any_length_comes_back_and_the_samples_stay(suffix, comment, tmp_path):
    path, plain = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    save_waveform(path, SAMPLES, 16_000, comment)
    save_waveform(plain, SAMPLES, 16_000)
    assert read_comment(path) == comment and read_comment(plain) is None
    (found, rate), (expected, _) = soundfile.read(path, dtype="int16"), soundfile.read(plain, dtype="int16")
    assert rate == 16_000 and np.array_equal(found, expected)


def test_a_wav_file_with_a_comment_is_whole(tmp_path):
    path = tmp_path / "a.wav"
    save_waveform(path, SAMPLES, 16_000, "odd")
    content = path.read_bytes()
    assert struct.unpack("<I", content[4:8])[0] == len(content) - 8
    with soundfile.SoundFile(path) as file:
        assert file.comment == "odd"  # as libsndfile reads it, too


@pytest.mark.parametrize("cut", [5, 13, 30, 2_050, 2_060])
def test_a_cut_wav_file_has_no_comment(cut, tmp_path):
    path = tmp_path / "a.wav"
    save_waveform(path, SAMPLES, 16_000, "a bell")
    path.write_bytes(path.read_bytes()[:cut])
    assert read_comment(path) is None


def test_what_is_no_sound_is_told(tmp_path):
    (tmp_path / "a.flac").write_bytes(b"no sound")
    with pytest.raises(UserError, match="cannot be read as sound"):
        read_comment(tmp_path / "a.flac")
    with pytest.raises(UserError, match=r"b\.wav: No such file"):
        read_comment(tmp_path / "b.wav")
