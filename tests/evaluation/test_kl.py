import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from scipy.stats import entropy

from evaluation.metrics.inception import InceptionScore, inception_score
from evaluation.metrics.kl import DIRECTIONS, KLDivergence, kl_divergence, kl_of_logits


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(0.0, 3.0, size=(2, 50, 21))


def test_equals_scipy(logits):
    p, q = softmax(logits, axis=-1)
    expected = rel_entr(p, q).sum(axis=1)
    np.testing.assert_allclose(kl_divergence(p, q), expected, rtol=1e-9)
    np.testing.assert_allclose(kl_of_logits(*logits), expected, rtol=1e-9)
    np.testing.assert_allclose(kl_of_logits(*logits, direction=DIRECTIONS[1]), rel_entr(q, p).sum(axis=1), rtol=1e-9)
    assert np.abs(kl_of_logits(logits[0], logits[0])).max() < 1e-12


def test_epsilon_is_added_to_the_second_posterior_only(logits):
    p, q = softmax(logits, axis=-1)
    expected = torch.nn.functional.kl_div(
        (torch.from_numpy(q) + 1e-6).log(), torch.from_numpy(p), reduction="none"
    ).sum(dim=1)
    np.testing.assert_allclose(kl_of_logits(*logits, epsilon=1e-6), expected, rtol=1e-9)


def test_sigmoid_posteriors_sum_over_classes(logits):
    p, q = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(kl_of_logits(*logits, activation="sigmoid"), (p * np.log(p / q)).sum(axis=1), rtol=1e-9)


def test_zeros_and_large_logits_are_safe():
    assert kl_divergence([[1.0, 0.0]], [[0.5, 0.5]])[0] == pytest.approx(np.log(2))
    assert kl_divergence([[0.5, 0.5]], [[1.0, 0.0]])[0] == np.inf
    assert kl_of_logits(np.array([[0.0, 1000.0]]), np.array([[1000.0, 0.0]]))[0] == pytest.approx(1000.0)
    with pytest.raises(ValueError, match="differ in shape"):
        kl_divergence(np.ones((2, 3)), np.ones((3, 3)))


def test_real_passt_posteriors(real_data):
    probabilities = np.load(real_data / "passt_probs" / "song_describer_0_100.npz")["prob"]
    order = np.roll(np.arange(len(probabilities)), 1)
    with np.errstate(divide="ignore"):
        logits = np.log(probabilities.astype(np.float64))
    divergence = kl_of_logits(logits, logits[order])
    expected = rel_entr(softmax(logits, axis=1), softmax(logits[order], axis=1)).sum(axis=1)
    np.testing.assert_allclose(divergence, expected, rtol=1e-6)
    assert np.abs(kl_of_logits(logits, logits)).max() < 1e-9
    assert 0 < kl_of_logits(logits, logits[order], epsilon=1e-6).mean() < divergence.mean()
    assert 1 < inception_score(logits) < 527


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_streaming_kl_merges(logits, direction):
    metrics = [KLDivergence(epsilon=1e-6, direction=direction) for _ in range(2)]
    for begin in range(0, 50, 8):
        p, q = torch.from_numpy(logits[:, begin : begin + 8])
        metrics[begin // 8 % 2].update(p, q)
    metrics[0].merge_state(metrics[1])
    expected = kl_of_logits(*logits, epsilon=1e-6, direction=direction).mean()
    assert metrics[0].compute().item() == pytest.approx(expected, rel=1e-12)


def test_inception_score_of_known_sets(logits):
    certain = 50 * np.eye(7)
    assert inception_score(certain) == pytest.approx(7.0)  # sharp and evenly spread over 7 classes
    assert inception_score(certain[:1].repeat(5, axis=0)) == pytest.approx(1.0)  # sharp, all the same
    assert inception_score(np.zeros((5, 7))) == pytest.approx(1.0)  # nothing told
    p = softmax(logits[0], axis=1)
    assert inception_score(logits[0]) == pytest.approx(np.exp(entropy(p, p.mean(axis=0)[None], axis=1).mean()))


def test_streaming_inception_score_merges(logits):
    metrics = [InceptionScore(21) for _ in range(2)]
    for begin in range(0, 50, 8):
        metrics[begin // 8 % 2].update(torch.from_numpy(logits[0, begin : begin + 8]))
    metrics[0].merge_state(metrics[1])
    assert metrics[0].compute().item() == pytest.approx(inception_score(logits[0]), rel=1e-12)
