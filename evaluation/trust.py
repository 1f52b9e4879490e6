"""How far to trust a metric: its rank correlation with people's ratings of the same clips.

Scores of clips correlate over clips; scores of clips by their means, and scores of sets (Fréchet distance …), correlate
over systems. As in the meta-evaluations of CLAP's score (arXiv:2506.23553) and of KAD (arXiv:2502.15602).

Shapes: N clips or systems.
"""

import csv
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from scipy import stats

from audioldm2_pl.atomic import write_text, written_whole
from audioldm2_pl.errors import UserError

from .folders import SUFFIXES, clip_files, clip_name, read_names
from .metrics.metric import Metric
from .pairs import Inputs
from .protocols import load_protocol
from .ratings import Ratings, Subject, read_ratings
from .score import ScoreOptions, score_folders
from .uncertainty import LEVEL, Interval

MIN_CLIPS, MIN_SYSTEMS = 5, 3  # fewer have no correlation that says something
MIN_FOR_INTERVAL = 5  # systems
CHUNK = 100  # resamples at a time


@dataclass
class TrustOptions:
    protocols: list[str]
    audio: Path | None = None  # folder of the rated files; None: that of the CSV
    systems: dict[str, Path] = field(default_factory=dict)  # name -> folder of its clips; the others are left out
    reference: Path | None = None  # folder of real clips under the same names
    captions: Path | None = None  # CSV with the columns filename and caption, where the ratings have none
    ratings: list[str] = field(default_factory=list)  # columns of ratings; empty: those that are known by name
    resamples: int = 1000  # of the intervals
    score: ScoreOptions = field(default_factory=ScoreOptions)


@dataclass
class RatedClip:
    subject: Subject
    name: str  # within its system: what reference and captions pair by
    path: Path


@dataclass
class Scores:
    """A score of a protocol on all that was rated."""

    metric: Metric
    by_clip: np.ndarray  # (N,), nan where it has none
    by_system: dict[str, float]


@dataclass
class Correlation:
    score: str  # <protocol>.<score>
    rating: str
    over: str  # "clips" or "systems"
    num: int
    higher_is_better: bool
    spearman: float
    low: float  # 95 % interval of `spearman`, nan where there are too few
    high: float
    kendall: float
    pearson: float

    @property
    def finding(self) -> str:
        """Whether the metric ranks as people do."""
        sign = 1 if self.higher_is_better else -1
        if math.isnan(self.spearman):
            return "all alike"
        if not (self.low > 0 or self.high < 0):
            return "not distinguishable from none"
        return "agrees" if sign * self.spearman > 0 else "disagrees"


def measure_trust(path: Path, options: TrustOptions) -> list[Correlation]:
    """The ratings of a CSV against every score of the protocols.

    UserError where ratings, files, reference or captions are missing, or clips are too few.
    """
    check_trust_options(options)
    ratings = read_ratings(path, options.ratings)
    clips, chosen = locate(path, ratings, options)
    if len(clips) < MIN_CLIPS:
        raise UserError(f"{path}: {len(clips)} rated clips are too few for a correlation; rate at least {MIN_CLIPS}")
    scores = {name: found for p in options.protocols for name, found in score_clips(p, clips, options).items()}
    correlations = []
    for question, values in ratings.questions.items():
        people = np.asarray(values)[chosen]  # (N,)
        for name, found in scores.items():
            correlations += correlate(name, question, found, people, clips, options.resamples)
    if not correlations:
        raise UserError(f"{path}: no score has {MIN_CLIPS} clips or {MIN_SYSTEMS} systems with ratings; rate more")
    return correlations


def check_trust_options(options: TrustOptions) -> None:
    for name in options.protocols:
        if "labels" in load_protocol(name).needs:
            raise UserError(f"--protocol {name}: asks for labels, which ratings do not have")
    if options.resamples < 100:
        raise UserError("--resamples has to be at least 100")


# ---- Clips


def locate(path: Path, ratings: Ratings, options: TrustOptions) -> tuple[list[RatedClip], list[int]]:
    """The clips that were rated, and their numbers among the subjects; UserError where a file is missing."""
    clips, chosen, missing = [], [], []
    found = {name: clip_files(folder) for name, folder in options.systems.items()}
    everything = {} if found else clip_files(options.audio or path.parent)
    for number, subject in enumerate(ratings.subjects):
        if found and subject.system not in found:
            continue
        name = clip_name(Path(subject.file))
        file = found.get(subject.system, everything).get(name)
        file = file or everything.get(f"{subject.system}/{name}")
        if file is None:
            missing.append(subject.file)
            continue
        clips.append(RatedClip(subject, name.removeprefix(f"{subject.system}/"), file))
        chosen.append(number)
    if missing:
        where = ", ".join(map(str, options.systems.values())) or options.audio or path.parent
        raise UserError(f"{path}: {len(missing)} of the rated files are not in {where}, first {missing[0]!r}")
    return clips, chosen


def score_clips(protocol_name: str, clips: list[RatedClip], options: TrustOptions) -> dict[str, Scores]:
    """<protocol>.<score> -> the scores, each system's clips against the reference by themselves."""
    protocol, stem = load_protocol(protocol_name), Path(protocol_name).stem
    scores = {
        f"{stem}.{name}": Scores(protocol.metric(name), np.full(len(clips), np.nan), {}) for name in protocol.scores
    }
    for system in sorted({clip.subject.system for clip in clips}):
        numbers = [i for i, clip in enumerate(clips) if clip.subject.system == system]
        names = [f"{i:06}" for i in numbers]
        try:
            result = score_system([clips[i] for i in numbers], names, protocol_name, options)
        except UserError as error:
            raise UserError(f"{f'system {system}: ' if system else ''}{error}") from None
        for name, found in result["scores"].items():
            series = scores[f"{stem}.{name}"]
            if found["value"] is not None:
                series.by_system[system] = found["value"]
            if found["per_clip"] is not None:
                values = [found["per_clip"][name] for name in names]
                series.by_clip[numbers] = [math.nan if value is None else value for value in values]
    return scores


def score_system(clips: list[RatedClip], names: list[str], protocol: str, options: TrustOptions) -> dict[str, Any]:
    """The result of `score` on links to the clips, under names of their own: one clip may have several captions."""
    needs = load_protocol(protocol).needs
    with TemporaryDirectory() as temporary:
        inputs = Inputs(Path(temporary) / "generated")
        link(inputs.generated, names, [clip.path for clip in clips])
        if "reference" in needs and options.reference:
            inputs.reference, real = Path(temporary) / "reference", clip_files(options.reference)
            if lost := [clip.name for clip in clips if clip.name not in real]:
                raise UserError(f"{options.reference}: misses {len(lost)} of the rated clips, first {lost[0]!r}")
            link(inputs.reference, names, [real[clip.name] for clip in clips])
        if "captions" in needs and (captions := captions_of(clips, options)):
            inputs.captions = Path(temporary) / "captions.csv"
            with inputs.captions.open("w", newline="", encoding="utf-8") as file:
                rows = [(name, text) for name, texts in zip(names, captions) for text in texts]
                csv.writer(file).writerows([("filename", "caption"), *rows])
        result, _ = score_folders(inputs, protocol, options.score)
    return result


def link(folder: Path, names: list[str], paths: list[Path]) -> None:
    folder.mkdir()
    for name, path in zip(names, paths):
        suffix = path.suffix if path.suffix.lower() in SUFFIXES else ".wav"
        (folder / f"{name}{suffix}").symlink_to(path.resolve())


def captions_of(clips: list[RatedClip], options: TrustOptions) -> list[list[str]]:
    """Those of the ratings, or of the table of captions; empty where there are neither."""
    if all(clip.subject.caption for clip in clips):
        return [[clip.subject.caption] for clip in clips]
    if options.captions is None:
        return []
    texts = read_names(options.captions, "caption")
    if lost := [clip.name for clip in clips if clip.name not in texts]:
        raise UserError(f"{options.captions}: misses {len(lost)} of the rated clips, first {lost[0]!r}")
    return [texts[clip.name] for clip in clips]


# ---- Correlations


def correlate(
    name: str, question: str, scores: Scores, people: np.ndarray, clips: list[RatedClip], resamples: int
) -> list[Correlation]:
    """people (N,): the clips' ratings, nan where there are none => over clips, over systems, where they are enough."""
    found = []
    have = np.isfinite(people) & np.isfinite(scores.by_clip)
    if have.sum() >= MIN_CLIPS:
        prompts = np.array([clip.name for clip in clips])[have]
        found.append((scores.by_clip[have], people[have], prompts, "clips"))
    systems = np.array([clip.subject.system for clip in clips])
    rated = [s for s in scores.by_system if s and np.isfinite(people[systems == s]).any()]
    if len(rated) >= MIN_SYSTEMS:
        means = np.array([np.nanmean(people[systems == s]) for s in rated])
        found.append((np.array([scores.by_system[s] for s in rated]), means, np.array(rated), "systems"))
    correlations = []
    for measured, asked, clusters, over in found:
        interval = rank_correlation(measured, asked, clusters, resamples)
        others = kendall(measured, asked), pearson(measured, asked)
        head = name, question, over, len(asked), scores.metric.higher_is_better
        correlations.append(Correlation(*head, interval.value, interval.low, interval.high, *others))
    return correlations


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    """(N,), (N,) => their linear correlation; nan where one side is all alike."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(np.corrcoef(first, second)[0, 1])


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """The correlation of the ranks; ties have their mean rank."""
    return pearson(stats.rankdata(first), stats.rankdata(second))


def weighted_spearman(first: np.ndarray, second: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Of (N,), (N,) with each pair there as often as `times` (B, N) says => (B,), nan where one side is all alike."""
    total = times.sum(axis=1, keepdims=True)
    sides = []
    for values in (first, second):
        order = np.argsort(values, kind="stable")
        _, starts, index = np.unique(values[order], return_index=True, return_inverse=True)
        tied = np.add.reduceat(times[:, order], starts, axis=1)  # (B, distinct values)
        ranks = np.empty(times.shape)
        ranks[:, order] = (tied.cumsum(axis=1) - (tied - 1) / 2)[:, index]
        sides.append(ranks - (times * ranks).sum(axis=1, keepdims=True) / total)
    a, b = sides
    spread = np.sqrt((times * a * a).sum(axis=1) * (times * b * b).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 1e-9, (times * a * b).sum(axis=1) / spread, np.nan)


def kendall(first: np.ndarray, second: np.ndarray) -> float:
    """τ-b, which takes ties into account."""
    found: Any = stats.kendalltau(first, second)
    return float(found.statistic)


def rank_correlation(
    measured: np.ndarray, people: np.ndarray, clusters: np.ndarray, resamples: int = 1000, seed: int = 0
) -> Interval:
    """Spearman's correlation of (N,) with (N,) and its bootstrap interval, over clusters (N,): clips of one prompt are
    drawn together, for they are alike.

    Percentiles are taken of Fisher's z, shifted so that their median is the value's: ranks drawn twice are ties, which
    pull a resample's correlation to zero.
    """
    value = spearman(measured, people)
    num_clusters, index = len(np.unique(clusters)), np.unique(clusters, return_inverse=True)[1]
    if math.isnan(value) or num_clusters < MIN_FOR_INTERVAL:
        return Interval(value, math.nan, math.nan, 0)
    draw, found = np.random.default_rng(seed), []
    for begin in range(0, resamples, CHUNK):
        size = min(CHUNK, resamples - begin)
        times = draw.multinomial(num_clusters, np.full(num_clusters, 1 / num_clusters), size=size)  # (size, clusters)
        found += weighted_spearman(measured, people, times[:, index]).tolist()
    z = np.arctanh(np.clip([x for x in found if not math.isnan(x)], -0.9999, 0.9999))
    centre = np.arctanh(np.clip(value, -0.9999, 0.9999))
    low, middle, high = np.quantile(z, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2])
    low, high = (float(np.tanh(bound - middle + centre)) for bound in (low, high))
    return Interval(value, low, high, len(z))


# ---- Output


def trust_table(correlations: list[Correlation]) -> str:
    """The correlations for a terminal."""
    wide = max(len(c.score) for c in correlations) + 2
    head = f"{'score':{wide}} {'rating':12} {'over':12} {'Spearman':>8}  {'95 % interval':16}"
    lines = [f"{head} {'Kendall':>7} {'Pearson':>7}"]
    for c in correlations:
        bounds = "-" if math.isnan(c.low) else f"{c.low:.2f} to {c.high:.2f}"
        lines.append(
            f"{c.score + (' ↑' if c.higher_is_better else ' ↓'):{wide}} {c.rating:12} {f'{c.num} {c.over}':12} "
            f"{c.spearman:8.2f}  {bounds:16} {c.kendall:7.2f} {c.pearson:7.2f}  {c.finding}"
        )
    return "\n".join(lines)


def write_trust(correlations: list[Correlation], source: Path, output: Path) -> None:
    """A .csv of the table, or a .json of it with its source."""
    rows = [{**asdict(c), "finding": c.finding} for c in correlations]
    rows = [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows]
    if output.suffix == ".csv":
        with written_whole(output) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        write_text(output, json.dumps({"ratings": str(source), "correlations": rows}, indent=2) + "\n")
