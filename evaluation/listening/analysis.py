"""Ratings => mean ± 95 % interval of each system, after raters who did not listen are left out."""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np
from scipy.stats import t as student

from .batches import LOW_PASS, REAL, ListeningTest
from .exchange import MIN_APPROVAL_RATE, MIN_APPROVALS, MIN_RATERS, PROLIFIC_FINISHED, Decisions
from .questions import CHECK, QUESTIONS
from .store import Answer, Rater, item_key

CONFIDENCE = 0.95
FAILED_CHECKS = "failed attention checks"
ANCHORS = "heard no difference between the recordings and their low-pass"
NOT_APPROVED = "too few or too rarely approved before"
NOT_FINISHED = "did not finish the task on the platform"


@dataclass(frozen=True)
class ScreeningRules:
    max_failed_checks: int = 0  # in a batch; more, and none of the rater's ratings counts
    min_anchor_gap: float = 0.0  # a rater's mean for the recordings minus that for their low-pass has to be above this
    min_approval_rate: float = MIN_APPROVAL_RATE  # where the platform tells it
    min_approvals: int = MIN_APPROVALS  # the same


@dataclass(frozen=True)
class Rating:
    rater: str
    clip: str
    system: str
    question: str
    value: int


@dataclass(frozen=True)
class RatingMean:
    mean: float
    low: float | None
    high: float | None
    num_ratings: int
    num_raters: int
    num_clips: int


def analyse(
    test: ListeningTest, answers: Sequence[Answer], raters: dict[str, Rater], rules: ScreeningRules | None = None
) -> dict:
    """=> the results, as plain dicts without a rater's name. A batch that a rater has not finished does not
    count, nor does a rater whom `rules` leave out."""
    finished = finished_answers(test, answers)
    reasons = screen(test, finished, raters, rules or ScreeningRules())
    ratings = [rating for rating in ratings_of(test, finished) if not reasons[rating.rater]]
    stimuli = {(item.clip, item.system) for item in item_key(test).values() if item.system != CHECK}
    counts = Counter((r.clip, r.system) for r in ratings if r.question == test.questions[0])
    return {
        "questions": {question: question_summary(test, ratings, question) for question in test.questions},
        "raters": {
            "counted": sum(not found for found in reasons.values()),
            "left_out": sum(bool(found) for found in reasons.values()),
            "reasons": dict(sorted(Counter(reason for found in reasons.values() for reason in found).items())),
            "without_a_finished_batch": len({answer.rater for answer in answers} - set(reasons)),
        },
        "screening": asdict(rules or ScreeningRules()),
        "fewest_raters_of_a_clip": min((counts[stimulus] for stimulus in stimuli), default=0),
        "clips_with_too_few_raters": sum(counts[stimulus] < MIN_RATERS for stimulus in stimuli),
        "raters_wanted": MIN_RATERS,
        "clips": len({clip for clip, _ in stimuli}),
        "test": test.digest,
    }


def finished_answers(test: ListeningTest, answers: Sequence[Answer]) -> list[Answer]:
    done: dict[tuple[str, str], set[str]] = defaultdict(set)
    for answer in answers:
        done[answer.batch, answer.rater].add(answer.item)
    sizes = {batch.name: len(batch.items) for batch in test.batches}
    return [answer for answer in answers if len(done[answer.batch, answer.rater]) == sizes[answer.batch]]


def ratings_of(test: ListeningTest, answers: Sequence[Answer]) -> list[Rating]:
    """Without the attention checks."""
    key = item_key(test)
    pairs = [(answer, key[answer.batch, answer.item]) for answer in answers if answer.question != CHECK]
    return [Rating(a.rater, item.clip, item.system, a.question, a.rating) for a, item in pairs]


def rating_rows(
    test: ListeningTest, answers: Sequence[Answer], raters: dict[str, Rater], rules: ScreeningRules | None = None
) -> list[dict[str, str | int]]:
    """A row a rating that counts, raters by numbers in place of their names, recordings and anchors too."""
    finished = finished_answers(test, answers)
    reasons = screen(test, finished, raters, rules or ScreeningRules())
    numbers = {name: number for number, name in enumerate(sorted(reasons), 1)}
    return [
        {"file": r.clip, "system": r.system, "question": r.question, "rating": r.value, "rater": numbers[r.rater]}
        for r in ratings_of(test, finished)
        if not reasons[r.rater]
    ]


def screen(
    test: ListeningTest, answers: Sequence[Answer], raters: dict[str, Rater], rules: ScreeningRules
) -> dict[str, list[str]]:
    """Rater -> why their ratings do not count; an empty list: they do."""
    failed: Counter[str] = Counter()
    for (_, name), count in failed_checks(test, answers).items():
        failed[name] = max(failed[name], count)
    gaps = anchor_gaps(ratings_of(test, answers))
    reasons: dict[str, list[str]] = {}
    for name in sorted({answer.rater for answer in answers}):
        rater = raters.get(name)
        found = {
            FAILED_CHECKS: failed[name] > rules.max_failed_checks,
            ANCHORS: name in gaps and gaps[name] <= rules.min_anchor_gap,
            NOT_APPROVED: rater is not None and not is_approved(rater, rules),
            NOT_FINISHED: rater is not None and rater.platform == "prolific" and rater.status not in PROLIFIC_FINISHED,
        }
        reasons[name] = [reason for reason, applies in found.items() if applies]
    return reasons


def failed_checks(test: ListeningTest, answers: Sequence[Answer]) -> Counter[tuple[str, str]]:
    """(batch, rater) -> attention checks with a wrong answer."""
    key = item_key(test)
    checks = [answer for answer in answers if answer.question == CHECK]
    return Counter((a.batch, a.rater) for a in checks if a.rating != key[a.batch, a.item].expected)


def anchor_gaps(ratings: Sequence[Rating]) -> dict[str, float]:
    """Rater -> mean of the recordings minus mean of the same clips' low-pass, over questions about quality; who rates
    everything alike has a gap of zero. Raters who heard no low-pass are not in it."""
    about = [r for r in ratings if QUESTIONS[r.question].about_quality]
    real = {(r.rater, r.clip, r.question): r.value for r in about if r.system == REAL}
    gaps: dict[str, list[int]] = defaultdict(list)
    for r in about:
        if r.system == LOW_PASS:
            gaps[r.rater].append(real[r.rater, r.clip, r.question] - r.value)
    return {rater: float(np.mean(found)) for rater, found in gaps.items()}


def is_approved(rater: Rater, rules: ScreeningRules) -> bool:
    often = rater.approvals is None or rater.approvals >= rules.min_approvals
    return often and (rater.approval_rate is None or rater.approval_rate >= rules.min_approval_rate)


def question_summary(test: ListeningTest, ratings: Sequence[Rating], question: str) -> dict:
    """Systems' means, and the differences of all pairs over what the same rater heard of the same clip."""
    values: dict[str, dict[tuple[str, str], int]] = defaultdict(dict)  # system -> (rater, clip) -> rating
    for r in ratings:
        if r.question == question:
            values[r.system][r.rater, r.clip] = r.value
    names = [name for name in (REAL, *test.systems, LOW_PASS) if values[name]]
    differences = {}
    for a, b in combinations(names, 2):
        shared = [pair for pair in values[a] if pair in values[b]]
        differences[f"{a} - {b}"] = asdict(
            mean_with_interval([values[a][pair] - values[b][pair] for pair in shared], shared)
        )
    systems = {name: asdict(mean_with_interval(list(values[name].values()), list(values[name]))) for name in names}
    return {"systems": systems, "differences": differences}


def mean_with_interval(values: Sequence[float], pairs: Sequence[tuple[str, str]]) -> RatingMean:
    """Mean over all ratings, as the paper's scores, and its 95 % interval; pairs: (rater, clip) of each value.

    Ratings of one rater, and of one clip, are alike, so they do not count as independent ones: the variance is that of
    two-way clusters (Cameron, Gelbach & Miller 2011), with Student's t for the smaller number of clusters. Nothing is
    known about the spread of a single rater or clip: there is no interval then.
    """
    x = np.asarray(values, dtype=float)
    raters, clips = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    counts = len(x), len(set(raters)), len(set(clips))
    smallest = min(counts[1:])
    mean = float(x.mean())
    if smallest < 2:
        return RatingMean(mean, None, None, *counts)
    residuals = x - mean
    by_rater, by_clip = cluster_variance(residuals, raters), cluster_variance(residuals, clips)
    alone = cluster_variance(residuals, range(len(x)))
    variance = max(by_rater + by_clip - alone, by_rater, by_clip)  # the sum can come out too small by chance
    half = float(student.ppf((1 + CONFIDENCE) / 2, smallest - 1)) * math.sqrt(variance)
    return RatingMean(mean, mean - half, mean + half, *counts)


def cluster_variance(residuals: np.ndarray, clusters: Sequence[Hashable]) -> float:
    """Variance of the mean of values (N,) whose errors are independent between clusters only."""
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(index, weights=residuals)
    return float(np.square(sums).sum()) / len(residuals) ** 2 * len(sums) / (len(sums) - 1)


def payment_decisions(test: ListeningTest, answers: Sequence[Answer], rules: ScreeningRules | None = None) -> Decisions:
    """Of every finished batch of every rater. Only failed attention checks speak against paying: who hears the anchors
    alike is left out of the means, and paid."""
    allowed = (rules or ScreeningRules()).max_failed_checks
    finished = finished_answers(test, answers)
    failed = failed_checks(test, finished)
    decided: Decisions = {}
    for batch, rater in sorted({(answer.batch, answer.rater) for answer in finished}):
        count = failed[batch, rater]
        decided[batch, rater] = f"The number of beeps was wrong in {count} listening checks." if count > allowed else ""
    return decided


def results_table(results: dict) -> str:
    """The results for a terminal."""
    lines = []
    for question, summary in results["questions"].items():
        lines.append(f"{question}: {QUESTIONS[question].title}, mean of 1 to 5 with 95 % interval")
        for system, found in summary["systems"].items():
            half = "±   ?" if found["high"] is None else f"± {found['high'] - found['mean']:.2f}"
            lines.append(
                f"  {system:24} {found['mean']:.2f} {half}  "
                f"{found['num_ratings']} ratings, {found['num_raters']} raters, {found['num_clips']} clips"
            )
    raters = results["raters"]
    lines.append(f"raters: {raters['counted']} counted, {raters['left_out']} left out")
    lines += [f"  {count} × {reason}" for reason, count in raters["reasons"].items()]
    if results["clips_with_too_few_raters"]:
        lines.append(
            f"warning: {results['clips_with_too_few_raters']} clips have fewer than {results['raters_wanted']} raters "
            f"(the fewest: {results['fewest_raters_of_a_clip']}); collect more before you publish"
        )
    return "\n".join(lines)
