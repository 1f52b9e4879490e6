"""Fréchet distance between two sets of embeddings: FAD on VGGish, PANNs, CLAP …, and on a tagger's features.

Kilgour et al. 2019, arXiv:1812.08466; FAD∞ and per-clip FAD: Gui et al. 2024, arXiv:2311.01616. All in float64.

Shapes: N clips, R rows (a clip has one or more: frames, windows), D embedding size.
"""

from typing import Any

import numpy as np
import torch
import torchmetrics
from torch import Tensor

from audioldm2_pl.errors import UserError

from .metric import ClipFeatures, Material, Measured, Metric, NoSettings, Samples

SIDES = ("reference", "generated")


def factor_of(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(R, D) => mean (D,) and a factor F (R, D) of the covariance F'F"""
    if len(rows) < 2:
        raise UserError(f"a Fréchet distance needs at least 2 embeddings a side, not {len(rows)}; score more clips")
    rows = np.asarray(rows, dtype=np.float64)
    mean = rows.mean(axis=0)
    return mean, (rows - mean) / np.sqrt(len(rows) - 1)


def root_of(cov: np.ndarray) -> np.ndarray:
    """(D, D) => a factor F (D, D) of the covariance F'F; what rounding made negative counts as zero."""
    values, vectors = np.linalg.eigh((cov + cov.T) / 2)
    return np.sqrt(values.clip(min=0.0))[:, None] * vectors.T


def distance_of_factors(mean_a: np.ndarray, factor_a: np.ndarray, mean_b: np.ndarray, factor_b: np.ndarray) -> float:
    """|mean_a - mean_b|² + tr A + tr B - 2 tr (AB)^½ of covariances A = F'F, B = G'G.

    tr (AB)^½ is the sum of the singular values of FG': no matrix root, so singular covariances lose no digits.
    """
    overlap = np.linalg.svd(factor_a @ factor_b.T, compute_uv=False).sum()
    spread = np.square(factor_a).sum() + np.square(factor_b).sum()
    return max(0.0, float(np.square(mean_a - mean_b).sum() + spread - 2.0 * overlap))


def frechet_distance(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """Squared Fréchet (2-Wasserstein) distance of two Gaussians: means (D,), covariances (D, D) of any rank."""
    mean_a, mean_b = (np.atleast_1d(np.asarray(mean, dtype=np.float64)) for mean in (mean_a, mean_b))
    cov_a, cov_b = (np.atleast_2d(np.asarray(cov, dtype=np.float64)) for cov in (cov_a, cov_b))
    if mean_a.shape != mean_b.shape or cov_a.shape != cov_b.shape or cov_a.shape != 2 * mean_a.shape:
        shapes = ", ".join(str(x.shape) for x in (mean_a, cov_a, mean_b, cov_b))
        raise ValueError(f"sizes of means and covariances differ: {shapes}")
    return distance_of_factors(mean_a, root_of(cov_a), mean_b, root_of(cov_b))


def distance_of_rows(reference: np.ndarray, generated: np.ndarray) -> float:
    """Embeddings (R, D), (R', D) => Fréchet distance of the Gaussians fitted to them.

    With fewer rows than dimensions the rows themselves are the factor: cost grows with the rows, not with D³.
    """
    return distance_of_factors(*side_of(reference), *side_of(generated))


def side_of(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(R, D) => mean (D,) and the smaller factor of the covariance: (R, D) or (D, D)"""
    mean, cov_factor = factor_of(rows)
    return (mean, cov_factor) if len(rows) <= rows.shape[1] else (mean, root_of(cov_factor.T @ cov_factor))


def distance_against_n(
    reference: ClipFeatures, generated: ClipFeatures, num_points: int = 15, smallest: float = 0.2, seed: int = 0
) -> list[tuple[int, float]]:
    """(n, distance) for `num_points` sizes n from `smallest` of the generated clips to all of them.

    Each n draws its clips anew, without replacement; the sizes are evenly spaced in 1 / n.
    """
    total = generated.num_clips
    least = max(2, round(smallest * total))
    if total < 2 * least and total < 10:
        raise UserError(f"{total} clips are too few for the distance against their number; score at least 10")
    sizes = np.unique((1 / np.linspace(1 / least, 1 / total, num_points)).round().astype(int))
    draw = np.random.default_rng(seed)
    mean, root = side_of(reference.rows)
    curve = []
    for size in sizes:
        clips = np.sort(draw.permutation(total)[:size])
        curve.append((int(size), distance_of_factors(mean, root, *side_of(generated.take(clips)))))
    return curve


def extrapolate(curve: list[tuple[int, float]]) -> tuple[float, float]:
    """FAD∞: the value at 1 / n = 0 of the line through (1 / n, distance), and the line's R²."""
    inverse = np.array([1 / n for n, _ in curve])
    distances = np.array([distance for _, distance in curve])
    slope, limit = np.polyfit(inverse, distances, 1)
    residual = distances - (limit + slope * inverse)
    total = np.square(distances - distances.mean()).sum()
    return float(limit), float(1 - np.square(residual).sum() / total) if total > 0 else 1.0


def per_clip_distance(reference: ClipFeatures, generated: ClipFeatures) -> np.ndarray:
    """Fréchet distance of every single generated clip to all of the reference: (N,); nan for a clip of one row."""
    mean, root = side_of(reference.rows)
    distances = np.full(generated.num_clips, np.nan)
    for clip, count in enumerate(generated.counts):
        if count > 1:
            distances[clip] = distance_of_factors(mean, root, *factor_of(generated.take(np.array([clip]))))
    return distances


class FrechetDistance(torchmetrics.Metric):
    """Streaming form: sums in float64, so memory does not grow with the clips, and states added up over
    processes give what one process would have."""

    higher_is_better = False
    full_state_update = False

    def __init__(self, embedding_size: int, **options: Any):
        super().__init__(**options)
        for side in SIDES:
            for name, shape in (("count", ()), ("sum", (embedding_size,)), ("outer", (embedding_size,) * 2)):
                zeros = torch.zeros(shape, dtype=torch.float64)
                self.add_state(f"{side}_{name}", zeros, dist_reduce_fx="sum")

    def update(self, embeddings: Tensor, real: bool) -> None:
        """embeddings (R, D) of the reference (`real`) or of the generated clips"""
        side = "reference" if real else "generated"
        rows = embeddings.detach().to(self.device, torch.float64)
        for name, value in (("count", len(rows)), ("sum", rows.sum(dim=0)), ("outer", rows.T @ rows)):
            setattr(self, f"{side}_{name}", getattr(self, f"{side}_{name}") + value)

    def compute(self) -> Tensor:
        """The distance, a scalar."""
        gaussians = []
        for side in SIDES:
            count, total, outer = (getattr(self, f"{side}_{name}").cpu().numpy() for name in ("count", "sum", "outer"))
            if count < 2:
                raise UserError(f"the {side} side has {int(count)} embeddings; a Fréchet distance needs at least 2")
            mean = total / count
            gaussians += [mean, (outer - count * np.outer(mean, mean)) / (count - 1)]
        return torch.tensor(frechet_distance(*gaussians), dtype=torch.float64)


def distance_on(samples: Samples, clips: np.ndarray) -> float:
    """The distance of the chosen clips (N,) of both sides."""
    reference, generated = (ClipFeatures(samples[f"{s}_rows"], samples[f"{s}_counts"]) for s in SIDES)
    return distance_of_rows(reference.take(clips), generated.take(clips))


def compute_frechet(material: Material, settings: NoSettings) -> Measured:
    """Against the reference's embeddings; from ten clips on, the distance against their number as well."""
    reference, generated = material.reference.embeddings, material.generated.embeddings
    measured = Measured({}, details={"rows": len(generated.rows), "embedding_size": generated.rows.shape[1]})
    if generated.num_clips >= 10:
        curve = distance_against_n(reference, generated, seed=material.seed)
        limit, r_squared = extrapolate(curve)
        measured.details |= {"against_n": curve, "at_infinity": limit, "r_squared": r_squared}
    if generated.counts.max() > 1:
        measured.per_clip = per_clip_distance(reference, generated)
    for side, features in zip(SIDES, (reference, generated)):
        measured.samples |= {f"{side}_rows": features.rows, f"{side}_counts": features.counts}
    return measured


FRECHET = Metric(
    name="frechet",
    title="Fréchet distance",
    unit="",
    higher_is_better=False,
    reads=frozenset({"embeddings"}),
    needs="reference",
    compute=compute_frechet,
    statistic=distance_on,
)
