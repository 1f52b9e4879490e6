"""Copy synthesis: names, lengths and levels of what comes back, and the files it refuses."""

import numpy as np
import pytest
import soundfile
import torch

from audioldm2_pl.audio import AudioConfig
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.models.istft import ISTFTConfig
from audioldm2_pl.models.vocoder import VocoderConfig, build_vocoder, note_front_end
from evaluation.__main__ import main


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder of nothing but an untrained vocoder that knows the spectrum's envelope."""
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = VocoderConfig(kind="istft", istft=ISTFTConfig(hidden_size=16, intermediate_size=32, num_layers=1))
    ModelFolder(path).save("vocoder", note_front_end(build_vocoder(config, AudioConfig()), AudioConfig()))
    return path


@pytest.fixture
def sounds(tmp_path):
    rng = np.random.default_rng(0)
    for name, rate, num_samples in [
        ("dog/1-a.wav", 22_050, 22_050),
        ("dog/2-a.flac", 16_000, 300),
        ("rain/1-b.wav", 16_000, 16_001),
    ]:
        path = tmp_path / "sounds" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.2 * rng.standard_normal(num_samples), rate)
    return tmp_path / "sounds"


@pytest.mark.parametrize("vocoder", ["folder", "griffin-lim"])
def test_recordings_come_back_under_their_names(model, sounds, tmp_path, vocoder, capsys):
    output = tmp_path / "copies"
    assert main(["copy-synthesis", str(model), str(sounds), str(output), "--vocoder", vocoder]) == 0
    assert "3 files" in capsys.readouterr().out
    lengths = {}
    for path in output.rglob("*.wav"):
        waveform, rate = soundfile.read(path)
        lengths[str(path.relative_to(output))] = len(waveform)
        assert rate == 16_000 and waveform.std() > 0.01
    assert lengths == {"dog/1-a.wav": 16_000, "dog/2-a.wav": 300, "rain/1-b.wav": 16_001}


def test_names_are_chosen_by_a_pattern(model, sounds, tmp_path, capsys):
    output = tmp_path / "copies"
    assert main(["copy-synthesis", str(model), str(sounds), str(output), "--match", "1-*"]) == 0
    assert sorted(path.name for path in output.rglob("*.wav")) == ["1-a.wav", "1-b.wav"]
    assert main(["copy-synthesis", str(model), str(sounds), str(output), "--match", "9-*"]) == 2
    assert "holds no audio whose name matches '9-*'" in capsys.readouterr().err


def test_a_folder_without_a_vocoder(sounds, tmp_path, capsys):
    (tmp_path / "empty/vae").mkdir(parents=True)
    assert main(["copy-synthesis", str(tmp_path / "empty"), str(sounds), str(tmp_path / "copies")]) == 2
    assert "vocoder/ is missing" in capsys.readouterr().err
