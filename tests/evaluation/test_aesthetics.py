"""Audiobox Aesthetics: random weights in the hub's layout, one layer in place of twelve."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audioldm2_pl.errors import UserError
from evaluation.metrics.embeddings.audiobox_aesthetics import AXES, FILES, load_audiobox
from evaluation.pairs import Inputs
from evaluation.score import ScoreOptions, score_folders

SCALES = {axis: {"mean": 5.0 + n, "std": 1.5} for n, axis in enumerate(AXES)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Iterator[Path]:
    """As `save_pretrained` of the package writes them, its layers fewer and narrower."""
    aes = pytest.importorskip("audiobox_aesthetics.model.aes")
    sizes = {"encoder_layers": 1, "encoder_embed_dim": 64, "encoder_ffn_embed_dim": 32, "encoder_attention_heads": 2}
    folder = tmp_path_factory.mktemp("weights") / "audiobox-aesthetics"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in sizes.items():
            patch.setattr(aes.DEFAULT_AUDIO_CFG, name, value)
        torch.manual_seed(0)
        model = aes.AesMultiOutput(nth_layer=2, proj_num_layer=2, proj_ln=True, target_transform=SCALES)
        model.save_pretrained(folder)
        assert all((folder / file).is_file() for file in FILES)
        yield folder


def write(path: Path, seconds: float, channels: int = 1) -> Path:
    draw = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * draw.normal(size=(round(seconds * 16_000), channels)), 16_000)
    return path


def test_ratings_are_those_of_the_package(weights, tmp_path):
    """The package's own predictor, which only a network would fetch for, around the same module."""
    infer = pytest.importorskip("audiobox_aesthetics.infer")
    paths = [write(tmp_path / "short.wav", 3.0), write(tmp_path / "long.wav", 12.5, channels=2)]
    rated = load_audiobox(weights, "cpu").rate(paths)
    predictor = object.__new__(infer.AesPredictor)
    predictor.device, predictor.sample_rate, predictor.data_col = torch.device("cpu"), 16_000, "path"
    predictor.model = infer.AesMultiOutput.from_pretrained(weights).eval()
    predictor.target_transform = {axis: infer.Normalize(**SCALES[axis]) for axis in AXES}
    sounds = [torch.from_numpy(soundfile.read(path, always_2d=True)[0].T).float() for path in paths]
    expected = [predictor.forward([{"path": sound, "sample_rate": 16_000}])[0] for sound in sounds]
    for axis in AXES:
        np.testing.assert_allclose(rated[axis], [found[axis] for found in expected], atol=1e-4)


def test_the_protocol_gives_four_axes(weights, tmp_path):
    for number in range(3):
        write(tmp_path / "clips" / f"{number}.wav", 0.5 + number)
    result, _ = score_folders(Inputs(tmp_path / "clips"), "aesthetics", ScoreOptions(weights.parent, resamples=10))
    assert list(result["scores"]) == ["ce", "cu", "pc", "pq"]
    assert len(set(result["scores"]["pq"]["per_clip"].values())) == 3


def test_a_folder_that_is_none_is_one_line(weights, tmp_path):
    with pytest.raises(UserError, match="facebook/audiobox-aesthetics there, or add --download"):
        score_folders(Inputs(write(tmp_path / "clips/a.wav", 1).parent), "aesthetics", ScoreOptions(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "wavlm"}))
    with pytest.raises(UserError, match=r"config\.json: not Audiobox Aesthetics'"):
        load_audiobox(tmp_path, "cpu")
