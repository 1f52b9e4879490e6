import numpy as np
import pytest
import torch

from evaluation.metrics.clap import CLAPScore, clap_score, cosines


def test_equal_vectors_score_one():
    vectors = np.random.default_rng(0).normal(size=(9, 512)).astype(np.float32)
    assert clap_score(vectors, vectors) == pytest.approx(1.0, abs=1e-12)
    assert clap_score(vectors, 3 * vectors) == pytest.approx(1.0, abs=1e-12)
    assert clap_score(vectors, -vectors) == pytest.approx(-1.0, abs=1e-12)


def test_pairs_count_not_all_against_all():
    audio, text = np.eye(4), np.eye(4)[[0, 1, 3, 2]]
    assert cosines(audio, text).tolist() == [1, 1, 0, 0]
    assert clap_score(audio, text) == 0.5


def test_what_does_not_pair_is_refused():
    with pytest.raises(ValueError, match="do not pair"):
        clap_score(np.ones((3, 4)), np.ones((2, 4)))
    with pytest.raises(ValueError, match="no direction"):
        clap_score(np.zeros((3, 4)), np.ones((3, 4)))


def test_streaming_score_merges():
    draw = np.random.default_rng(0)
    audio, text = draw.normal(size=(2, 31, 16))
    metrics = [CLAPScore(), CLAPScore()]
    for clip in range(31):
        metrics[clip % 2].update(torch.from_numpy(audio[clip : clip + 1]), torch.from_numpy(text[clip : clip + 1]))
    metrics[0].merge_state(metrics[1])
    assert metrics[0].compute().item() == pytest.approx(clap_score(audio, text), rel=1e-12)
