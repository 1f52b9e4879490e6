"""What a metric is: it says of itself what it reads, its unit, which way is better and what its interval is over.

Shapes: N clips, R rows (a clip has one or more: frames, windows), D embedding size, K classes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from ..uncertainty import (
    Interval,
    mean_interval,
    paired_difference,
    paired_share_difference,
    share_interval,
    statistic_interval,
)

Samples = dict[str, np.ndarray]  # what an interval, and a comparison with another system, resamples
Side = Literal["reference", "captions", "labels"]


@dataclass
class ClipFeatures:
    """One or more vectors of each of N clips, in the clips' order."""

    rows: np.ndarray  # (R, D)
    counts: np.ndarray  # (N,) rows of each clip

    @property
    def num_clips(self) -> int:
        return len(self.counts)

    def take(self, clips: np.ndarray) -> np.ndarray:
        """Rows of the chosen clips (R', D); a clip chosen twice gives its rows twice."""
        first = np.cumsum(self.counts) - self.counts
        chosen = self.counts[clips]
        begin = np.repeat(first[clips] - (np.cumsum(chosen) - chosen), chosen)
        return self.rows[begin + np.arange(chosen.sum())]

    def clip_means(self) -> np.ndarray:
        """The mean of each clip's rows: (N, D), float64"""
        first = np.cumsum(self.counts) - self.counts
        return np.add.reduceat(self.rows.astype(np.float64), first, axis=0) / self.counts[:, None]


@dataclass
class Outputs:
    """What a network makes of clips."""

    embeddings: ClipFeatures
    logits: ClipFeatures | None = None  # a row a window, (R, K); of a classifier


@dataclass
class Material:
    """What a score is made of; empty where its protocol does without."""

    names: list[str] = field(default_factory=list)
    generated: Any = None  # Outputs, but of a speech recogniser
    reference: Any = None  # Outputs
    captions: list[list[str]] = field(default_factory=list)  # of each clip
    caption_embeddings: np.ndarray | None = None  # (captions, D), those of a clip one after the other
    prompt_embeddings: np.ndarray | None = None  # (prompts, D), of the metric's prompts
    logit_scale: float | None = None  # of captions' and prompts' cosines
    labels: list[list[str]] = field(default_factory=list)  # of each clip, in the order in which they sound
    classes: list[str] = field(default_factory=list)  # of the logits
    transcripts: list[str] = field(default_factory=list)  # recognised, of each clip
    ratings: dict[str, np.ndarray] = field(default_factory=dict)  # axis -> ratings of the clips (N,), chroma (N, 12)
    seed: int = 0  # of whatever a metric draws


@dataclass
class Measured:
    samples: Samples  # "values" (N,) where the statistic is their mean
    per_clip: np.ndarray | None = None  # (N,), nan for a clip without a score
    details: dict[str, Any] = field(default_factory=dict)  # as JSON


def compute_rating(material: Material, settings: Any) -> Measured:
    """Of a metric that is the mean of a network's ratings on `settings.axis`."""
    per_clip = material.ratings[settings.axis]  # (N,)
    return Measured({"values": per_clip}, per_clip)


@dataclass
class NoSettings:
    """Of a metric without choices."""


@dataclass(frozen=True)
class Metric:
    """`evaluation/metrics/<file>.py` holds one or more of these under any name; `METRICS` finds them."""

    name: str  # the `kind` of a protocol's score
    title: str
    unit: str  # "" of a plain number
    higher_is_better: bool
    reads: frozenset[str]  # of a network: what its backend gives
    needs: Side | None  # beside the generated clips
    compute: Callable[[Material, Any], Measured]  # with the settings
    range: tuple[float, float] = (-math.inf, math.inf)  # of its values: an interval's bounds stay within
    settings: type = NoSettings  # dataclass of its choices in a protocol
    # Of clips (N,), numbers with repeats: the value of the whole set. None: the mean of the samples "values".
    statistic: Callable[[Samples, np.ndarray], float] | None = None
    is_share: bool = False  # "values" are zeros and ones
    prompts: tuple[str, ...] = ()  # that its network encodes, the same for all clips

    @property
    def arrow(self) -> str:
        return "↑" if self.higher_is_better else "↓"

    @property
    def better(self) -> str:
        return "higher is better" if self.higher_is_better else "lower is better"

    @property
    def interval_over(self) -> str:
        """What the interval is of, for readers."""
        if self.is_share:
            return "Wilson's of the share of clips"
        return "bootstrap-t of the mean over clips" if self.statistic is None else "basic bootstrap of the set of clips"

    def interval(self, samples: Samples, num_clips: int, resamples: int, seed: int = 0) -> Interval:
        """The score on all clips with its 95 % interval; means take 25 times as many resamples as sets."""
        if self.is_share:
            return share_interval(samples["values"])
        if self.statistic is None:
            found = mean_interval(samples["values"], 25 * resamples, seed)
        else:
            found = statistic_interval(partial(self.statistic, samples), num_clips, resamples, seed)
        return replace(found, low=max(found.low, self.range[0]), high=min(found.high, self.range[1]))

    def difference(self, first: Samples, second: Samples, num_clips: int, resamples: int, seed: int = 0) -> Interval:
        """first - second with its interval, paired: every resample draws the same clips of both."""
        statistic = self.statistic
        if self.is_share:
            return paired_share_difference(first["values"], second["values"])
        if statistic is None:
            return paired_difference(first["values"], second["values"], 25 * resamples, seed)
        return statistic_interval(
            lambda clips: statistic(first, clips) - statistic(second, clips), num_clips, resamples, seed
        )
