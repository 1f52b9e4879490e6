import numpy as np
import pytest

from evaluation.metrics import METRICS
from evaluation.metrics.fad import distance_of_rows, frechet_distance
from evaluation.metrics.metric import ClipFeatures
from evaluation.uncertainty import (
    linearised,
    mean_bounds,
    mean_interval,
    paired_difference,
    paired_share_difference,
    relative_bias,
    sample_size_warning,
    share_interval,
    statistic_interval,
)


@pytest.mark.parametrize("shape", [0.7, 30.0], ids=["skewed as KL", "nearly normal as CLAP"])
def test_intervals_cover_the_truth_in_95_of_100_sets(shape):
    draw = np.random.default_rng(1)
    values = draw.gamma(shape, 2.0, size=(400, 60))  # mean 2 · shape
    low, high = mean_bounds(values)
    covered = ((low <= 2 * shape) & (2 * shape <= high)).mean()
    assert 0.93 <= covered <= 0.97


def test_mean_interval_narrows_with_the_root_of_n():
    draw = np.random.default_rng(0)
    widths = []
    for num_clips in (100, 1600):
        interval = mean_interval(draw.normal(3.0, 1.0, size=num_clips))
        assert interval.low < interval.value < interval.high
        widths.append(interval.high - interval.low)
    assert widths[0] / widths[1] == pytest.approx(4.0, rel=0.2)
    assert widths[0] == pytest.approx(2 * 1.96 / 10, rel=0.2)


def test_interval_is_the_same_twice():
    values = np.random.default_rng(0).gamma(2.0, size=30)
    assert mean_interval(values, seed=4) == mean_interval(values, seed=4)
    assert mean_interval(values, seed=4) != mean_interval(values, seed=5)


def test_degenerate_sets():
    assert mean_interval(np.full(9, 0.3)).low == mean_interval(np.full(9, 0.3)).high == pytest.approx(0.3)
    assert np.isnan(mean_interval(np.array([0.3])).low)


def test_shares_of_few_clips_have_wilsons_interval():
    """As Newcombe 1998 (Statistics in Medicine 17:857), table I, has them; a bootstrap-t of 23 in 24 is [0, 1]."""
    for right, num_clips, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        interval = share_interval(np.arange(num_clips) < right)
        assert (interval.low, interval.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
    for name in ("class_accuracy", "order_accuracy"):
        interval = METRICS[name].interval({"values": (np.arange(24) > 0).astype(float)}, 24, 200)
        assert interval.value == pytest.approx(23 / 24) and 0.79 < interval.low < interval.high < 1.0
        assert "Wilson" in METRICS[name].interval_over
    with pytest.raises(ValueError, match="zeros and ones"):
        share_interval(np.array([0.0, 0.5]))
    assert np.isnan(share_interval(np.array([])).low)


def test_paired_differences_of_shares():
    """Newcombe 1998 (Statistics in Medicine 17:2635), table II, has the first."""
    first = np.repeat([1, 1, 0], [36, 12, 2])
    second = np.repeat([1, 0, 1], [36, 12, 2])
    interval = paired_share_difference(first, second)
    assert interval.value == pytest.approx(0.2)
    assert (interval.low, interval.high) == (pytest.approx(0.0569, abs=1e-4), pytest.approx(0.3404, abs=1e-4))
    same = paired_share_difference(first, first)
    assert same.low < 0 < same.high and not same.excludes_zero
    better = METRICS["class_accuracy"].difference({"values": np.ones(30)}, {"values": np.zeros(30)}, 30, 200)
    assert better.excludes_zero and better.low < 1.0 == better.high
    with pytest.raises(ValueError, match="pair"):
        paired_share_difference(first, first[:-1])


def test_paired_differences_of_shares_cover_the_truth():
    draw = np.random.default_rng(5)
    covered = []
    for _ in range(300):
        difficulty = draw.random(40)
        first, second = difficulty < 0.9, difficulty + draw.normal(0, 0.05, 40) < 0.7
        interval = paired_share_difference(first, second)
        covered.append(interval.low <= 0.2 <= interval.high)
    assert 0.92 <= np.mean(covered) <= 0.99


def test_intervals_of_a_ratio_cover_it():
    """Errors over words, as in a word error rate: long clips weigh more."""
    draw = np.random.default_rng(3)
    words = draw.integers(3, 30, size=(400, 80))
    errors = draw.binomial(words, np.where(words > 15, 0.3, 0.1))
    share = np.arange(3, 30) / np.arange(3, 30).sum()
    truth = (share * np.where(np.arange(3, 30) > 15, 0.3, 0.1)).sum()
    values = np.stack([linearised(*pair) for pair in zip(errors, words)])
    np.testing.assert_allclose(values.mean(axis=1), errors.sum(axis=1) / words.sum(axis=1), rtol=1e-12)
    low, high = mean_bounds(values)
    assert 0.93 <= ((low <= truth) & (truth <= high)).mean() <= 0.97


def test_pairs_tell_systems_apart_that_overlap():
    draw = np.random.default_rng(0)
    difficulty = draw.normal(0.0, 3.0, size=200)
    first = difficulty + draw.normal(0.5, 0.3, size=200)
    second = difficulty + draw.normal(0.0, 0.3, size=200)
    alone = [mean_interval(values) for values in (first, second)]
    assert alone[0].low < alone[1].high  # apart, the systems cannot be told apart
    difference = paired_difference(first, second)
    assert difference.excludes_zero and difference.low < 0.5 < difference.high
    assert not paired_difference(difficulty, difficulty + draw.normal(0, 0.3, size=200)).excludes_zero
    with pytest.raises(ValueError, match="pair"):
        paired_difference(first, second[:-1])


def test_frechet_interval_takes_the_bias_off():
    """The distance of 100 clips lies above the truth; the interval is centred below it and holds the truth."""
    draw = np.random.default_rng(0)
    size, shift = 8, 0.6
    reference = draw.normal(size=(100, size))
    generated = ClipFeatures(draw.normal(shift / np.sqrt(size), 1.0, size=(100, size)), np.ones(100, dtype=int))

    def distance(clips: np.ndarray) -> float:
        return distance_of_rows(reference[clips], generated.take(clips))

    interval = statistic_interval(distance, 100, resamples=200)
    assert interval.value > shift**2
    assert interval.low < shift**2 < interval.high
    assert (interval.low + interval.high) / 2 < interval.value
    assert interval == statistic_interval(distance, 100, resamples=200)


@pytest.mark.parametrize("size", [4, 32])
def test_bias_of_few_embeddings_is_as_told(size):
    draw = np.random.default_rng(0)
    truth, cov = np.zeros(size), np.eye(size)
    distances = []
    for _ in range(100):
        rows = draw.normal(size=(10 * size, size))
        distances.append(frechet_distance(truth, cov, rows.mean(axis=0), np.cov(rows, rowvar=False)))
    assert np.mean(distances) / size == pytest.approx(relative_bias(10 * size, size), rel=0.15)


def test_too_few_clips_are_warned_of():
    assert sample_size_warning("fad", 9_640, 128) is None
    few = sample_size_warning("fad", 200, 128)
    assert few and "200 embeddings of 128" in few and "singular" not in few
    singular = sample_size_warning("fd", 964, 2048)
    assert singular and "singular" in singular
