"""How far a score would move with other clips: intervals of means, shares and sets, paired differences, sample sizes.

Clips are drawn with replacement, whole clips at a time: a clip's frames and captions are not independent samples.

Shapes: N clips, B resamples, S independent sets or trainings.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest
from scipy.stats import t as student_t

LEVEL = 0.95


@dataclass
class Interval:
    value: float  # the score on all clips
    low: float
    high: float
    resamples: int
    level: float = LEVEL

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def mean_bounds(
    values: np.ndarray, resamples: int = 5000, seed: int = 0, chunk: int = 500
) -> tuple[np.ndarray, np.ndarray]:
    """values (..., N) => bounds (...) of the 95 % interval of the mean; sets (...) share the draws.

    The bootstrap-t: percentiles of (mean* - mean) / error* over the resamples, times the error of the mean. Plain
    percentiles cover too seldom where a few clips dominate, as in a KL divergence. N = 1 gives nan.
    """
    values = np.asarray(values, dtype=np.float64)
    num_clips = values.shape[-1]
    mean = values.mean(axis=-1, keepdims=True)
    centred = values - mean
    if num_clips < 2:
        return np.full(mean.shape[:-1], np.nan), np.full(mean.shape[:-1], np.nan)
    draw = np.random.default_rng(seed)
    ratios = []
    with np.errstate(divide="ignore", invalid="ignore"):
        for begin in range(0, resamples, chunk):
            size = min(chunk, resamples - begin)
            times = draw.multinomial(num_clips, np.full(num_clips, 1 / num_clips), size=size).T.astype(np.float64)
            shift = centred @ times / num_clips  # (..., chunk)
            variance = np.square(centred) @ times / num_clips - np.square(shift)
            ratios.append(shift / np.sqrt(variance.clip(min=0.0)))
        ratio = np.concatenate(ratios, axis=-1)
    error = np.sqrt(np.square(centred).mean(axis=-1))
    ratio[~np.isfinite(ratio)] = np.nan  # resamples of one clip alone
    ratio[error == 0] = 0.0  # all clips alike
    low, high = np.nanquantile(ratio, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=-1) * error
    return mean[..., 0] - high, mean[..., 0] - low


def mean_interval(values: np.ndarray, resamples: int = 5000, seed: int = 0) -> Interval:
    """values (N,), one of each clip => their mean with its interval; without resamples the bounds are nan"""
    if not resamples or not len(values):
        return Interval(float(np.mean(values)) if len(values) else math.nan, math.nan, math.nan, resamples)
    low, high = mean_bounds(values, resamples, seed)
    return Interval(float(np.mean(values)), float(low), float(high), resamples)


def share_interval(values: np.ndarray) -> Interval:
    """values (N,), 1 for a clip that has what is counted and 0 for others => their share with Wilson's interval (1927).

    A share near 0 or 1 of few clips has too few of one kind for a bootstrap; Wilson's needs no resamples, and it has a
    width where all clips are alike, too. ValueError for other values.
    """
    values = np.asarray(values)
    if not np.isin(values, (0, 1)).all():
        raise ValueError("a share is of zeros and ones")
    if not len(values):
        return Interval(math.nan, math.nan, math.nan, 0)
    found = binomtest(int(values.sum()), len(values)).proportion_ci(LEVEL, method="wilson")
    return Interval(float(values.mean()), float(found.low), float(found.high), 0)


def linearised(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Σ sums / Σ counts, a ratio over clips (N,), (N,) of unequal weight, as values (N,) whose mean is that ratio and
    whose spread is, to first order, the ratio's: (sum - ratio · count) / mean count + ratio."""
    sums, counts = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    ratio = sums.sum() / counts.sum()
    return (sums - ratio * counts) / counts.mean() + ratio


def statistic_interval(
    statistic: Callable[[np.ndarray], float], num_clips: int, resamples: int = 200, seed: int = 0
) -> Interval:
    """`statistic` of clip numbers (N,), repeats allowed => its value on all clips with its interval.

    The basic bootstrap, 2·value - percentiles: a Fréchet distance or an inception score of a resample is biased
    against that of its clips as that is against the truth, and reflecting takes the bias off both bounds. So a value
    that is itself far off, from too few clips, may lie outside its interval.
    """
    draw = np.random.default_rng(seed)
    value = statistic(np.arange(num_clips))
    if not resamples:
        return Interval(value, math.nan, math.nan, resamples)
    resampled = [statistic(np.sort(draw.integers(num_clips, size=num_clips))) for _ in range(resamples)]
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(2 * value - high), float(2 * value - low), resamples)


def paired_difference(first: np.ndarray, second: np.ndarray, resamples: int = 5000, seed: int = 0) -> Interval:
    """Values (N,), (N,) of two systems on the same clips => mean of first - second; both share the draws, so what
    makes a clip hard for both cancels."""
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"the systems' clips do not pair: {first.shape}, {second.shape}")
    return mean_interval(first - second, resamples, seed)


def paired_share_difference(first: np.ndarray, second: np.ndarray) -> Interval:
    """Zeros and ones (N,), (N,) of two systems on the same clips => share of first - share of second.

    Newcombe 1998 (Statistics in Medicine 17:2635), method 10: of both systems' Wilson bounds, and φ, how much the
    pairs agree.
    """
    first, second = (np.asarray(values, dtype=np.float64) for values in (first, second))
    if first.shape != second.shape:
        raise ValueError(f"the systems' clips do not pair: {first.shape}, {second.shape}")
    one, other = share_interval(first), share_interval(second)
    num_clips, ones, others = len(first), first.sum(), second.sum()
    together = num_clips * (first @ second) - ones * others
    together = together if together < 0 else max(0.0, together - num_clips / 2)  # the continuity correction
    spread = math.sqrt(ones * (num_clips - ones) * others * (num_clips - others))
    phi = together / spread if spread else 0.0

    def distance(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a**2 - 2 * phi * a * b + b**2))

    value = one.value - other.value
    low = value - distance(one.value - one.low, other.high - other.value)
    return Interval(value, low, value + distance(one.high - one.value, other.value - other.low), 0)


def interval_over_seeds(values: np.ndarray, clip_variance: float, num_clips: int) -> Interval:
    """A score of each of S trainings on the same N clips, (S,) => its mean with the interval over seeds and clips.

    The variances of both add; Student's t with Welch and Satterthwaite's degrees of freedom, which are few where the
    seeds differ more than the clips do. ValueError for one seed, whose spread nobody knows.
    """
    num_seeds = len(values)
    if num_seeds < 2:
        raise ValueError("an interval over seeds takes two or more")
    seed_variance = float(np.var(values, ddof=1)) / num_seeds
    variance = seed_variance + clip_variance
    mean = float(np.mean(values))
    if not variance > 0:
        return Interval(mean, mean if variance == 0 else math.nan, mean if variance == 0 else math.nan, 0)
    freedom = variance**2 / (seed_variance**2 / (num_seeds - 1) + clip_variance**2 / max(num_clips - 1, 1))
    half = float(student_t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half, 0)


def relative_bias(num_rows: int, embedding_size: int) -> float:
    """Expected Fréchet distance between R embeddings and the very Gaussian that they came from, in units of that
    Gaussian's total variance: (1 + (D + 1) / 4) / R to first order in 1 / R, equal variances."""
    return (1 + (embedding_size + 1) / 4) / num_rows


def sample_size_warning(name: str, num_rows: int, embedding_size: int) -> str | None:
    """A line where R embeddings of size D are too few: a singular covariance, or a bias above 5 % of the variance."""
    bias = relative_bias(num_rows, embedding_size)
    if num_rows > embedding_size and bias <= 0.05:
        return None
    singular = " (their covariance is singular)" if num_rows <= embedding_size else ""
    return (
        f"{name}: {num_rows} embeddings of {embedding_size} dimensions are few{singular}: the distance is too high by "
        f"about {bias:.0%} of the embeddings' variance; compare it only at equal numbers, or read its value at n = ∞"
    )
