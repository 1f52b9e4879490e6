"""Tempo and key by librosa, on sounds of which both are known."""

import numpy as np
import pytest
import soundfile

from audioldm2_pl.errors import UserError
from evaluation.metrics.key import krumhansl_kessler, true_key
from evaluation.metrics.tempo import tempo_is_right, true_tempo
from evaluation.pairs import Inputs
from evaluation.score import ScoreOptions, score_folders

RATE = 16_000


def scale(tempo_bpm: float, tonic: int, seconds: float = 6.0) -> np.ndarray:
    """A major scale up and down, its tonic chord held below, a decaying note a beat."""
    times = np.arange(round(seconds * RATE)) / RATE
    beat = 60 / tempo_bpm
    steps = np.array([0, 4, 7, 0, 2, 4, 5, 7, 9, 11, 12, 7])[(times / beat).astype(int) % 12]
    hz = 440 * 2 ** ((tonic + steps - 9) / 12)
    melody = np.sin(2 * np.pi * np.cumsum(hz) / RATE) * np.exp(-8 * (times % beat))
    chord = sum(np.sin(2 * np.pi * 440 * 2 ** ((tonic + k - 21) / 12) * times) for k in (0, 4, 7))
    return 0.4 * melody + 0.03 * chord


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    folder = tmp_path_factory.mktemp("music")
    (folder / "audio").mkdir()
    rows = ["filename,label"]
    for name, tempo, tonic, labels in (
        ("a", 120, 2, ("flute", "120 BPM", "D major")),
        ("b", 96, 8, ("96 BPM", "A-flat major")),
        ("wrong", 120, 2, ("75 BPM", "D minor")),
        ("unknown", 120, 0, ("flute",)),
    ):
        soundfile.write(folder / f"audio/{name}.wav", scale(tempo, tonic), RATE)
        rows += [f"{name}.wav,{label}" for label in labels]
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    (folder / "none.csv").write_text("filename,label\n" + "".join(f"{n}.wav,flute\n" for n in "ab"))
    return folder


def test_tempo_and_key_of_labelled_clips(music):
    pytest.importorskip("librosa")
    result, _ = score_folders(Inputs(music / "audio", labels=music / "labels.csv"), "music", ScoreOptions(resamples=0))
    for name in ("tempo", "tempo_octaves", "key"):
        score = result["scores"][name]
        assert score["per_clip"] == {"a": 1.0, "b": 1.0, "wrong": 0.0, "unknown": None}, name
        assert score["value"] == pytest.approx(2 / 3)
    assert result["scores"]["tempo"]["tempo_bpm"]["a"] == pytest.approx(120, rel=0.1)


def test_labels_without_a_truth_are_refused(music, tmp_path):
    pytest.importorskip("librosa")
    (tmp_path / "audio").mkdir()
    for name in "ab":
        (tmp_path / f"audio/{name}.wav").symlink_to(music / f"audio/{name}.wav")
    with pytest.raises(UserError, match='no clip has a label such as "92 BPM"'):
        score_folders(Inputs(tmp_path / "audio", labels=music / "none.csv"), "music", ScoreOptions(resamples=0))


def test_what_counts_as_right():
    assert tempo_is_right(109, 100, False) and not tempo_is_right(111, 100, False)
    assert not tempo_is_right(200, 100, False) and tempo_is_right(200, 100, True) and tempo_is_right(33, 100, True)
    assert not tempo_is_right(150, 100, True)
    assert true_tempo(["flute", "92 BPM"]) == 92 and true_tempo(["92", "fast"]) is None
    assert true_key(["piano", "E-flat minor"]) == (3, "minor") and true_key(["H major"]) is None


def test_a_chord_of_the_tonic_and_its_scale_is_the_key():
    chroma = np.array([5, 0, 2, 0, 4, 2, 0, 4, 0, 2, 0, 1.0])
    assert [krumhansl_kessler(np.roll(chroma, k)) for k in range(12)] == [(k, "major") for k in range(12)]
    assert krumhansl_kessler(np.array([5, 0, 1, 4, 0, 1, 0, 4, 1, 0, 1, 0.0])) == (0, "minor")
