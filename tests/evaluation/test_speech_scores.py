"""DNSMOS, speaker similarity and PocketSphinx's word error rate, on real speech."""

import csv
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audioldm2_pl.audio import load_waveform
from audioldm2_pl.errors import UserError
from evaluation.metrics.clap import cosines
from evaluation.metrics.embeddings import BACKENDS
from evaluation.metrics.embeddings.resemblyzer import load_resemblyzer
from evaluation.pairs import Inputs
from evaluation.score import ScoreOptions, score_folders

OPTIONS = ScoreOptions(resamples=0)
WEIGHTS = {"speechmos": "dnsmos_models", "resemblyzer": "pretrained.pt", "pocketsphinx": "model/en-us"}


@pytest.fixture(scope="module")
def speech(real_data, tmp_path_factory) -> Path:
    """Two short sentences of LJSpeech, as they are and under noise, and their texts."""
    folder = tmp_path_factory.mktemp("speech")
    with (real_data / "ljspeech/metadata.csv").open(encoding="utf-8", newline="") as file:
        texts = {row[0]: row[2] for row in csv.reader(file, delimiter="|", quoting=csv.QUOTE_NONE)}
    draw = np.random.default_rng(0)
    rows = [("filename", "caption")]
    for name in ("LJ001-0002", "LJ001-0004"):
        waveform = load_waveform(real_data / f"ljspeech/wavs/{name}.wav", 16_000)
        for side, noise in (("clean", 0.0), ("noisy", 0.05)):
            (folder / side).mkdir(exist_ok=True)
            soundfile.write(folder / side / f"{name}.wav", waveform + noise * draw.normal(size=len(waveform)), 16_000)
        rows.append((name, texts[name]))
    with (folder / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def test_dnsmos_falls_with_noise(speech):
    pytest.importorskip("speechmos.dnsmos")
    clean, noisy = (score_folders(Inputs(speech / side), "dnsmos", OPTIONS)[0] for side in ("clean", "noisy"))
    for axis in ("ovrl", "bak", "p808"):
        assert clean["scores"][axis]["value"] > noisy["scores"][axis]["value"] + 0.5, axis
    assert 1.0 < noisy["scores"]["sig"]["value"] < clean["scores"]["sig"]["value"] < 5.0
    assert set(clean["weights"]["dnsmos"]) == {"dnsmos_models/sig_bak_ovr.onnx", "dnsmos_models/model_v8.onnx"}


@pytest.fixture(scope="module")
def embed():
    pytest.importorskip("resemblyzer")
    embedder = load_resemblyzer(BACKENDS["resemblyzer"].fetch(Path(), WEIGHTS["resemblyzer"]), "cpu")

    @torch.inference_mode()
    def run(waveform: np.ndarray) -> np.ndarray:  # (T,) => (D,)
        return embedder.encode(torch.from_numpy(waveform)[None])[0][0, 0].numpy()

    return run


def test_one_speaker_is_more_alike_than_two(real_data, embed):
    """Digits of four speakers of FSDD, ten a side in one recording, both sides apart."""
    sides = []
    for numbers in (range(5), range(5, 10)):
        digits = [
            np.concatenate(
                [load_waveform(real_data / f"fsdd/{d}_{name}_{n}.wav", 16_000) for d in numbers for n in (1, 2)]
            )
            for name in ("george", "jackson", "nicolas", "theo")
        ]
        sides.append(np.stack([embed(waveform) for waveform in digits]))
    similarity = sides[0] @ sides[1].T  # (4, 4)
    assert (np.diag(similarity) > np.where(np.eye(4), -1, similarity).max(axis=1)).all()


def test_embeddings_are_the_packages(real_data, embed):
    package = pytest.importorskip("resemblyzer")
    waveform = load_waveform(real_data / "ljspeech/wavs/LJ001-0001.wav", 16_000)
    encoder = package.VoiceEncoder("cpu", verbose=False)
    expected = encoder.embed_utterance(package.preprocess_wav(waveform))
    np.testing.assert_allclose(embed(waveform), expected, atol=1e-5)
    assert np.isfinite(embed(np.zeros(8_000, dtype=np.float32))).all()  # a silent clip is no error


def test_speaker_similarity_pairs_clips(speech):
    pytest.importorskip("resemblyzer")
    result, _ = score_folders(Inputs(speech / "noisy", speech / "clean"), "speaker", OPTIONS)
    assert 0.3 < result["scores"]["similarity"]["value"] < 0.95
    same, _ = score_folders(Inputs(speech / "clean", speech / "clean"), "speaker", OPTIONS)
    assert same["scores"]["similarity"]["value"] == pytest.approx(1.0)
    assert cosines(np.eye(2), np.eye(2)).mean() == 1.0


def test_pocketsphinx_hears_words(speech):
    pytest.importorskip("pocketsphinx")
    inputs = Inputs(speech / "clean", captions=speech / "texts.csv")
    result, _ = score_folders(inputs, "speech-pocketsphinx", OPTIONS)
    assert result["scores"]["wer"]["value"] < 0.7
    assert all(result["scores"]["wer"]["recognised"].values())


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_package_that_is_not_there_is_named_with_its_extra(name, monkeypatch):
    monkeypatch.setattr("evaluation.metrics.embeddings.backend.find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"^{name} is not installed; pip install 'audioldm2-pl\[eval\]'$"):
        BACKENDS[name].fetch(Path(), WEIGHTS[name])


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_in_the_package(name):
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    assert BACKENDS[name].fetch(Path("nowhere"), WEIGHTS[name]).exists()
