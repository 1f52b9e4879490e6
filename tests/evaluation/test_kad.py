"""Kernel audio distance: against the definition, kadtk's algorithm, a closed form, and brute-force jackknives."""

import numpy as np
import pytest
import torch

from audioldm2_pl.errors import UserError
from evaluation.metrics.kad import KAD, KADSettings, compute_kad, jackknife_mmd, median_distance
from evaluation.metrics.metric import ClipFeatures, Material, Outputs


def clips(num_clips: int, size: int = 8, shift: float = 0.0, seed: int = 0, rows: int | None = 1) -> ClipFeatures:
    """`rows` of each clip, or 1 to 4 where None."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 5, num_clips) if rows is None else np.full(num_clips, rows)
    return ClipFeatures(rng.standard_normal((counts.sum(), size)) + shift, counts)


def definition(x: np.ndarray, y: np.ndarray, bandwidth: float) -> float:
    """The unbiased squared MMD, one pair of rows after the other."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-np.square(a - b).sum() / (2 * bandwidth**2)))

    def within(z: np.ndarray) -> float:
        return float(np.mean([kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]))

    return within(x) + within(y) - 2 * float(np.mean([kernel(a, b) for a in x for b in y]))


def as_kadtk(x: np.ndarray, y: np.ndarray) -> float:
    """kadtk 1.1.0's steps, in its order: Gram matrix of both sets, bandwidth of the *second*, times 100."""
    x_, y_ = torch.from_numpy(x), torch.from_numpy(y)
    bandwidth = torch.pdist(y_).median()
    both = torch.cat([x_, y_])
    gram = torch.exp(-torch.cdist(both, both).square() / (2 * bandwidth**2 + 1e-8))
    n, m = len(x), len(y)
    xx, yy, xy = gram[:n, :n], gram[n:, n:], gram[:n, n:]
    within = (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1))
    return float(100 * (within - 2 * xy.mean()))


def material(reference: ClipFeatures, generated: ClipFeatures) -> Material:
    return Material(reference=Outputs(reference), generated=Outputs(generated))


@pytest.mark.parametrize("rows", [1, 3, None])
def test_it_is_the_definition(rows):
    reference, generated = clips(9, rows=rows), clips(9, shift=0.4, seed=1, rows=rows)
    value, values = jackknife_mmd(reference, generated, 2.5)
    assert value == pytest.approx(definition(reference.rows, generated.rows, 2.5), abs=1e-12)
    assert values.mean() == pytest.approx(value, abs=1e-12)


def test_pseudo_values_are_those_of_deleting_each_pair_of_clips():
    reference, generated = clips(7, rows=2), clips(7, shift=0.5, seed=1, rows=2)
    value, values = jackknife_mmd(reference, generated, 3.0)
    rests = [np.delete(np.arange(7), clip) for clip in range(7)]
    without = np.array([definition(reference.take(rest), generated.take(rest), 3.0) for rest in rests])
    assert values == pytest.approx(value - 6 * (without - without.mean()), abs=1e-10)


@pytest.mark.parametrize("bandwidth_from", ["reference", "generated"])
def test_both_bandwidths(bandwidth_from):
    """An odd number of pairs, whose median torch and NumPy agree on."""
    reference, generated = clips(30, shift=0.2), clips(30, shift=0.0, seed=1)
    generated.rows *= 1.7  # so that the two bandwidths differ
    found = compute_kad(material(reference, generated), KADSettings(bandwidth_from))
    expected = {
        "generated": as_kadtk(reference.rows, generated.rows),
        "reference": as_kadtk(generated.rows, reference.rows),  # MMD is symmetric
    }
    assert found.samples["values"].mean() == pytest.approx(expected[bandwidth_from], abs=1e-4)
    assert abs(expected["reference"] - expected["generated"]) > 0.1


def test_a_closed_form():
    """Of Gaussians N(0, 1) and N(c, 1) in D dimensions: 2 (s² / (s² + 2))^(D/2) (1 - exp(-|c|² / (2 (s² + 2))))."""
    size, shift, bandwidth = 3, 0.5, 1.5
    reference, generated = clips(3_000, size), clips(3_000, size, shift, seed=1)
    spread = bandwidth**2 + 2
    expected = 2 * (bandwidth**2 / spread) ** (size / 2) * (1 - np.exp(-size * shift**2 / (2 * spread)))
    assert jackknife_mmd(reference, generated, bandwidth)[0] == pytest.approx(expected, abs=0.006)


def test_sets_of_one_distribution_are_zero_apart_on_average():
    found = [jackknife_mmd(clips(25, seed=2 * i), clips(25, seed=2 * i + 1), 4.0)[0] for i in range(60)]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(60) and min(found) < 0 < max(found)


def test_intervals_cover_the_distance():
    """95 % intervals of 60 clips hold the distance of the distributions, which a closed form gives, in 90 % or more."""
    size, shift, bandwidth = 3, 0.8, 1.5
    spread = bandwidth**2 + 2
    expected = 2 * (bandwidth**2 / spread) ** (size / 2) * (1 - np.exp(-size * shift**2 / (2 * spread)))
    covered = 0
    for i in range(100):
        _, values = jackknife_mmd(clips(60, size, seed=2 * i), clips(60, size, shift, seed=2 * i + 1), bandwidth)
        interval = KAD.interval({"values": values}, 60, 20)
        covered += interval.low <= expected <= interval.high
    assert 90 <= covered <= 99


def test_the_median_distance():
    rows = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])  # 5, 1, sqrt(18)
    assert median_distance(rows) == pytest.approx(np.sqrt(18))
    many = np.random.default_rng(0).standard_normal((6_000, 4))
    assert median_distance(many) == pytest.approx(
        np.median(torch.pdist(torch.from_numpy(many[:3_000])).numpy()), rel=0.02
    )


def test_too_few_or_equal_clips_get_a_line():
    with pytest.raises(UserError, match="at least 3 clips"):
        compute_kad(material(clips(2), clips(2)), KADSettings())
    equal = ClipFeatures(np.ones((5, 4)), np.ones(5, dtype=int))
    with pytest.raises(UserError, match="reference clips are equal"):
        compute_kad(material(equal, clips(5, 4)), KADSettings())
