"""Kernel audio distance: an unbiased squared MMD between two sets of embeddings (Chung et al. 2025, arXiv:2502.15602).

Unlike a Fréchet distance it assumes no Gaussian and has no bias from the number of clips, and so may be negative.

Shapes: N clips, R rows (a clip has one or more: frames, windows), D embedding size.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from audioldm2_pl.errors import UserError

from .metric import ClipFeatures, Material, Measured, Metric

SCALE = 100.0  # as published
BANDWIDTH_ROWS = 5_000  # of a side, drawn where there are more, whose distances the bandwidth is the median of
BLOCK = 256  # rows whose kernels with all others are in memory at a time


@dataclass
class KADSettings:
    # Whose median distance is the kernel's bandwidth: the reference's, as published, or, as kadtk 1.1.0 really takes it
    # (its issue 9), the generated clips'.
    bandwidth_from: Literal["reference", "generated"] = "reference"


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rows (R, D), (S, D) => (R, S)"""
    distances = np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None] - 2.0 * a @ b.T
    return distances.clip(min=0.0)


def median_distance(rows: np.ndarray, seed: int = 0) -> float:
    """The median Euclidean distance between two of the rows (R, D)."""
    if len(rows) > BANDWIDTH_ROWS:
        rows = rows[np.random.default_rng(seed).permutation(len(rows))[:BANDWIDTH_ROWS]]
    distances = squared_distances(rows, rows)[np.triu_indices(len(rows), 1)]
    return float(np.sqrt(np.median(distances)))


@dataclass
class KernelSums:
    """Gaussian kernels between the rows of two sets of N clips, summed by clip, each (N,)."""

    first: np.ndarray  # a clip's rows of the first set with all rows of the second
    second: np.ndarray  # all rows of the first with a clip's rows of the second
    own: np.ndarray  # a clip's rows of the first with those of the clip of the same index of the second


def kernel_sums(first: ClipFeatures, second: ClipFeatures, bandwidth: float) -> KernelSums:
    clips, others = (np.repeat(np.arange(side.num_clips), side.counts) for side in (first, second))
    num = first.num_clips
    sums = KernelSums(*np.zeros((3, num)))
    for begin in range(0, len(first.rows), BLOCK):
        rows = slice(begin, begin + BLOCK)
        kernels = np.exp(-squared_distances(first.rows[rows], second.rows) / (2.0 * bandwidth**2))  # (block, S)
        own = (kernels * (clips[rows, None] == others[None])).sum(1)
        sums.first += np.bincount(clips[rows], kernels.sum(1), minlength=num)
        sums.second += np.bincount(others, kernels.sum(0), minlength=num)
        sums.own += np.bincount(clips[rows], own, minlength=num)
    return sums


def jackknife_mmd(reference: ClipFeatures, generated: ClipFeatures, bandwidth: float) -> tuple[float, np.ndarray]:
    """Unbiased squared MMD of all rows, and for each pair of clips its jackknife pseudo-value (N,), whose mean it is.

    The pseudo-values carry the distance's spread over clips: an interval, and the difference of two systems, need no
    kernel a second time.
    """
    n, m = reference.counts.astype(float), generated.counts.astype(float)  # rows of each clip
    xx = kernel_sums(reference, reference, bandwidth)
    yy = kernel_sums(generated, generated, bandwidth)
    xy = kernel_sums(reference, generated, bandwidth)

    def mmd(xx_sum, yy_sum, xy_sum, num_x, num_y):  # sums over all pairs of rows, a row with itself included
        inner = (xx_sum - num_x) / (num_x * (num_x - 1)) + (yy_sum - num_y) / (num_y * (num_y - 1))
        return inner - 2.0 * xy_sum / (num_x * num_y)

    whole = mmd(xx.first.sum(), yy.first.sum(), xy.first.sum(), n.sum(), m.sum())
    without = mmd(
        xx.first.sum() - 2 * xx.first + xx.own,
        yy.first.sum() - 2 * yy.first + yy.own,
        xy.first.sum() - xy.first - xy.second + xy.own,
        n.sum() - n,
        m.sum() - m,
    )  # (N,) of the sets without a pair of clips
    values = len(n) * whole - (len(n) - 1) * without
    return float(whole), values - values.mean() + whole


def compute_kad(material: Material, settings: KADSettings) -> Measured:
    sides = {"reference": material.reference.embeddings, "generated": material.generated.embeddings}
    sides = {side: ClipFeatures(x.rows.astype(np.float64), x.counts) for side, x in sides.items()}
    if min(x.num_clips for x in sides.values()) < 3:
        raise UserError("a kernel distance needs at least 3 clips a side; score more clips")
    bandwidth = median_distance(sides[settings.bandwidth_from].rows, material.seed)
    if bandwidth == 0.0:
        raise UserError(
            f"most embeddings of the {settings.bandwidth_from} clips are equal; a kernel distance needs others"
        )
    _, values = jackknife_mmd(sides["reference"], sides["generated"], bandwidth)
    rows, size = sides["generated"].rows.shape
    return Measured({"values": SCALE * values}, details={"rows": rows, "embedding_size": size, "bandwidth": bandwidth})


KAD = Metric(
    name="kad",
    title="Kernel audio distance",
    unit="",
    higher_is_better=False,
    reads=frozenset({"embeddings"}),
    needs="reference",
    compute=compute_kad,
    settings=KADSettings,
)
