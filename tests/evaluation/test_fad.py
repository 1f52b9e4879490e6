import numpy as np
import pytest
import torch

from audioldm2_pl.errors import UserError
from evaluation.metrics.fad import (
    FrechetDistance,
    distance_against_n,
    distance_of_rows,
    extrapolate,
    frechet_distance,
    per_clip_distance,
)
from evaluation.metrics.metric import ClipFeatures


def random_covariance(draw: np.random.Generator, size: int, rank: int | None = None) -> np.ndarray:
    factor = draw.normal(size=(rank or size, size))
    return factor.T @ factor / size


def one_row_each(rows: np.ndarray) -> ClipFeatures:
    return ClipFeatures(rows, np.ones(len(rows), dtype=int))


def test_closed_form_of_diagonal_gaussians():
    draw = np.random.default_rng(0)
    mean_a, mean_b = draw.normal(size=(2, 20))
    std_a, std_b = draw.uniform(0.1, 5.0, size=(2, 20))
    expected = np.square(mean_a - mean_b).sum() + np.square(std_a - std_b).sum()
    distance = frechet_distance(mean_a, np.diag(std_a**2), mean_b, np.diag(std_b**2))
    assert distance == pytest.approx(expected, rel=1e-6)
    # A rotation of both leaves the distance.
    turn = np.linalg.qr(draw.normal(size=(20, 20)))[0]
    covs = [turn @ np.diag(std**2) @ turn.T for std in (std_a, std_b)]
    assert frechet_distance(turn @ mean_a, covs[0], turn @ mean_b, covs[1]) == pytest.approx(expected, rel=1e-6)


def test_closed_form_of_rank_deficient_gaussians():
    """Lines through the origin along unit vectors u, v: tr (AB)^½ = |u·v|."""
    draw = np.random.default_rng(0)
    u, v = (x / np.linalg.norm(x) for x in draw.normal(size=(2, 30)))
    expected = 2 - 2 * abs(u @ v)
    assert frechet_distance(np.zeros(30), np.outer(u, u), np.zeros(30), np.outer(v, v)) == pytest.approx(expected, 1e-6)
    assert frechet_distance(np.zeros(3), np.zeros((3, 3)), np.ones(3), np.zeros((3, 3))) == pytest.approx(3.0)
    assert frechet_distance(np.zeros(1), np.array([[4.0]]), np.array([1.0]), np.array([[1.0]])) == pytest.approx(2.0)


@pytest.mark.parametrize("rank", [None, 5])
def test_zero_on_itself_and_symmetric(rank):
    draw = np.random.default_rng(0)
    mean, cov = draw.normal(size=40), random_covariance(draw, 40, rank)
    other = random_covariance(draw, 40)
    assert frechet_distance(mean, cov, mean, cov) < 1e-10
    there, back = frechet_distance(mean, cov, mean + 1, other), frechet_distance(mean + 1, other, mean, cov)
    assert there == pytest.approx(back, rel=1e-10)
    assert there > 40


def test_sizes_that_differ_are_refused():
    with pytest.raises(ValueError, match="sizes of means"):
        frechet_distance(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3))
    with pytest.raises(UserError, match="at least 2"):
        distance_of_rows(np.zeros((1, 3)), np.zeros((5, 3)))


@pytest.mark.parametrize("num_rows", [300, 24], ids=["full rank", "rank deficient"])
def test_agrees_with_frechet_audio_distance(num_rows, eval_library):
    library = eval_library("frechet_audio_distance.fad").FrechetAudioDistance
    draw = np.random.default_rng(0)
    mixing = draw.normal(size=(64, 64))
    rows = [draw.normal(shift, 1.0, size=(num_rows, 64)) @ mixing for shift in (0.0, 0.3)]
    statistics = [library.calculate_embd_statistics(None, side) for side in rows]
    expected = library.calculate_frechet_distance(None, *statistics[0], *statistics[1])
    assert frechet_distance(*statistics[0], *statistics[1]) == pytest.approx(expected, rel=1e-6)
    assert distance_of_rows(*rows) == pytest.approx(expected, rel=1e-6)


def test_features_of_clips_are_taken_whole():
    features = ClipFeatures(np.arange(12.0).reshape(6, 2), np.array([1, 3, 2]))
    assert features.num_clips == 3
    assert features.take(np.array([2, 0, 2]))[:, 0].tolist() == [8, 10, 0, 8, 10]
    assert np.array_equal(features.take(np.arange(3)), features.rows)


def test_streaming_and_merged_states_equal_one_pass():
    draw = np.random.default_rng(0)
    rows = [draw.normal(3.0, 1.0, size=(200, 16)).astype(np.float32), draw.normal(size=(90, 16)).astype(np.float32)]
    expected = distance_of_rows(*rows)
    processes = [FrechetDistance(16), FrechetDistance(16)]
    for process, metric in enumerate(processes):
        for real, side in zip((True, False), rows):
            for batch in np.array_split(side[process::2], 7):
                metric.update(torch.from_numpy(batch), real=real)
    processes[0].merge_state(processes[1])
    assert processes[0].compute().item() == pytest.approx(expected, rel=1e-9)
    assert processes[0].reference_outer.dtype == torch.float64
    processes[0].reset()
    with pytest.raises(UserError, match="reference side has 0"):
        processes[0].compute()


def test_streaming_gathers_over_processes():
    """What DDP does at compute(): every state is gathered and summed."""
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(2, 60, 8)).astype(np.float32)
    metrics = [FrechetDistance(8) for _ in range(2)]
    for process, metric in enumerate(metrics):
        for real, side in zip((True, False), rows):
            metric.update(torch.from_numpy(side[process::2]), real=real)
    states = [{name: getattr(metric, name).clone() for name in metric._defaults} for metric in metrics]
    names = iter(states[0])
    metrics[0].dist_sync_fn = lambda state, group=None: [s[name] for name in [next(names)] for s in states]
    metrics[0].distributed_available_fn = lambda: True
    assert metrics[0].compute().item() == pytest.approx(distance_of_rows(*rows), rel=1e-9)


def test_distance_falls_with_n_to_the_truth():
    draw = np.random.default_rng(0)
    reference = one_row_each(draw.normal(size=(20_000, 32)))
    generated = one_row_each(draw.normal(size=(400, 32)))
    curve = distance_against_n(reference, generated)
    assert curve == distance_against_n(reference, generated)
    assert curve[0][0] == 80 and curve[-1][0] == 400
    assert curve[0][1] > curve[-1][1] == pytest.approx(distance_of_rows(reference.rows, generated.rows))
    limit, r_squared = extrapolate(curve)
    assert curve[-1][1] > 0.5 and abs(limit) < 0.2 and r_squared > 0.95  # one distribution: the truth is 0
    with pytest.raises(UserError, match="too few"):
        distance_against_n(reference, one_row_each(draw.normal(size=(3, 32))))


def test_line_through_exact_points_is_found():
    limit, r_squared = extrapolate([(n, 2.5 + 7 / n) for n in (10, 20, 40, 80)])
    assert limit == pytest.approx(2.5) and r_squared == pytest.approx(1.0)


def test_per_clip_distance_points_at_the_odd_clip():
    draw = np.random.default_rng(0)
    reference = one_row_each(draw.normal(size=(500, 4)))
    rows = draw.normal(size=(40, 4))
    rows[20:30] += 4
    distances = per_clip_distance(reference, ClipFeatures(rows, np.array([10, 10, 10, 9, 1])))
    assert np.nanargmax(distances) == 2 and np.isnan(distances[4])
    expected = frechet_distance(
        reference.rows.mean(axis=0),
        np.cov(reference.rows, rowvar=False),
        rows[:10].mean(axis=0),
        np.cov(rows[:10], rowvar=False),
    )
    assert distances[0] == pytest.approx(expected, rel=1e-9)
