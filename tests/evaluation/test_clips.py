"""Clips of any writer's shards, as evaluation reads them."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audioldm2_pl.audio import AudioConfig
from audioldm2_pl.errors import UserError
from evaluation.clips import read_clips

AUDIO = AudioConfig(clip_seconds=0.2)


def write_clip(folder: Path, waveform: np.ndarray, fields: dict) -> Path:
    sound = io.BytesIO()
    soundfile.write(sound, waveform, 16_000, format="WAV")
    with tarfile.open(folder / "0.tar", "w") as archive:
        for suffix, content in (("wav", sound.getvalue()), ("json", json.dumps(fields).encode())):
            member = tarfile.TarInfo(f"./a.{suffix}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    (folder / "index.json").write_text(json.dumps({"format": 1, "shards": [{"name": "0.tar", "num_clips": 1}]}))
    return folder


def test_a_short_clip_is_levelled_before_it_is_padded(tmp_path):
    waveform = np.stack([np.zeros(1600), 0.3 + 0.1 * np.sin(np.arange(1600) / 10)], axis=1)
    (clip,) = read_clips(write_clip(tmp_path, waveform, {"text": ["a hum", "a tone"], "labels": ["hum"]}), AUDIO)
    assert (clip.key, clip.text, clip.names) == ("a", "a hum", ["hum"])
    assert np.abs(clip.waveform).max() == pytest.approx(0.5, abs=1e-3) and not clip.waveform[1600:].any()


def test_a_silent_clip_is_told(tmp_path):
    with pytest.warns(UserWarning, match=rf"{tmp_path}: clip a is silent"):
        (clip,) = read_clips(write_clip(tmp_path, np.zeros(1600), {"text": "nothing"}), AUDIO)
    assert not clip.waveform.any()


@pytest.mark.parametrize("fields", [{"events": [{"name": "hum"}]}, {"events": 3}, {"labels": 5}])
def test_events_that_are_none_are_named(fields, tmp_path):
    with pytest.raises(UserError, match="clip a: its events need name, start and duration"):
        list(read_clips(write_clip(tmp_path, np.sin(np.arange(1600.0)) / 2, fields), AUDIO))
