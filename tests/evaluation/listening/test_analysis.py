import math

import numpy as np
import pytest
from listening_material import careless, honest, rate_batch
from scipy.stats import t as student

from evaluation.listening.analysis import (
    ANCHORS,
    FAILED_CHECKS,
    NOT_APPROVED,
    NOT_FINISHED,
    ScreeningRules,
    analyse,
    mean_with_interval,
    payment_decisions,
    rating_rows,
    results_table,
    screen,
)
from evaluation.listening.batches import ListeningTest, plan_batches
from evaluation.listening.store import Answer, Answers, Rater

MEANS = {"real": 4.2, "good": 3.6, "poor": 2.1, "low-pass": 1.8}  # of the simulated raters


def big_test(num_clips: int = 24) -> ListeningTest:
    clips = [f"clip{i}" for i in range(num_clips)]
    batches = plan_batches(clips, ["good", "poor"], 6, dict.fromkeys(clips, 0.5), seed=0)
    return ListeningTest(("OVL",), ("good", "poor"), 0, batches, {batch.name: "" for batch in batches})


def simulate(test: ListeningTest, num_raters: int, seed: int, means: dict[str, float] = MEANS) -> list[Answer]:
    """Raters of every batch: a rating is 1 + a binomial of 4, whose mean moves with the rater and the clip by amounts
    that are zero on average, so that `means` are the true ones."""
    random = np.random.default_rng(seed)
    clips = {item.clip: random.uniform(-0.35, 0.35) for batch in test.batches for item in batch.items}
    answers = []
    for number in range(num_raters):
        severity = random.uniform(-0.35, 0.35)
        for batch in test.batches:
            for item in batch.items:
                for question in test.questions_of(item):
                    if item.expected is None:
                        mean = means[item.system] + severity + clips[item.clip]
                        rating = 1 + int(random.binomial(4, (mean - 1) / 4))
                    else:
                        rating = item.expected
                    answers.append(Answer(batch.name, f"r{number}", item.name, question, rating, 1.0, 0.0))
    return answers


def test_interval_of_independent_values_is_students():
    values = [3.0, 4.0, 5.0, 2.0, 4.0]
    found = mean_with_interval(values, [(f"r{i}", f"c{i}") for i in range(5)])
    half = student.ppf(0.975, 4) * np.std(values, ddof=1) / math.sqrt(5)
    assert (found.mean, found.low, found.high) == pytest.approx((3.6, 3.6 - half, 3.6 + half))
    assert (found.num_ratings, found.num_raters, found.num_clips) == (5, 5, 5)


def test_interval_of_raters_who_agree_with_themselves_is_that_of_the_raters():
    """Ten clips a rater add nothing where a rater gives all clips the same."""
    severities = [1.0, 3.0, 4.0, 4.0]
    pairs = [(f"r{r}", f"c{c}") for r in range(4) for c in range(10)]
    found = mean_with_interval([severities[r] for r in range(4) for _ in range(10)], pairs)
    half = student.ppf(0.975, 3) * np.std(severities, ddof=1) / 2
    assert found.high - found.mean == pytest.approx(half)


def test_one_rater_or_one_clip_has_no_interval():
    for pairs in ([("r", "a"), ("r", "b")], [("a", "c"), ("b", "c")]):
        found = mean_with_interval([2, 4], pairs)
        assert found.mean == 3 and found.low is None and found.high is None


def test_simulated_raters_recover_the_means_within_the_intervals():
    test = big_test()
    covered, halves, runs = [], [], 40
    for seed in range(runs):
        results = analyse(test, simulate(test, 12, seed), {})
        assert results["raters"]["counted"] == 12 and results["clips_with_too_few_raters"] == 0
        summary = results["questions"]["OVL"]
        for system in ("real", "good", "poor"):
            found = summary["systems"][system]
            covered.append(found["low"] <= MEANS[system] <= found["high"])
            halves.append(found["high"] - found["mean"])
        gap = summary["differences"]["real - good"]
        covered.append(gap["low"] <= MEANS["real"] - MEANS["good"] <= gap["high"])
        assert abs(gap["mean"] - 0.6) < 0.3 and gap["low"] > 0
    assert 0.9 < np.mean(covered) <= 0.99  # 95 %; the systems' ratings of one run go up and down together
    assert max(halves) < 0.4


def test_intervals_that_ignore_raters_and_clips_would_be_too_narrow():
    test = big_test()
    covered = []
    for seed in range(40):
        values = [a.rating for a in simulate(test, 12, seed) if a.question == "OVL" and heard(test, a) == "good"]
        half = 1.96 * np.std(values, ddof=1) / math.sqrt(len(values))
        covered.append(abs(np.mean(values) - MEANS["good"]) <= half)
    assert np.mean(covered) < 0.87


def heard(test: ListeningTest, answer: Answer) -> str:
    return next(i.system for i in test.batch(answer.batch).items if i.name == answer.item)


def test_careless_raters_are_found_and_the_means_hold_without_them():
    test = big_test()
    answers = simulate(test, 12, seed=3)
    random = np.random.default_rng(0)
    careful = analyse(test, answers, {})
    for number in range(6):  # press any key
        others = simulate(test, 1, seed=number)
        answers += [Answer(a.batch, f"x{number}", *vars_after_rater(a, int(random.integers(1, 6)))) for a in others]
    for number in range(3):  # count the beeps, and rate all alike
        answers += [
            Answer(a.batch, f"y{number}", *vars_after_rater(a, a.rating if a.question == "CHECK" else 4))
            for a in simulate(test, 1, seed=number)
        ]
    results = analyse(test, answers, {})
    reasons = screen(test, answers, {}, ScreeningRules())
    assert {rater for rater, found in reasons.items() if found} == {f"x{i}" for i in range(6)} | {
        f"y{i}" for i in range(3)
    }
    assert all(FAILED_CHECKS in reasons[f"x{i}"] for i in range(6))
    assert all(reasons[f"y{i}"] == [ANCHORS] for i in range(3))
    assert results["questions"] == careful["questions"]
    assert results["raters"]["left_out"] == 9 and results["raters"]["reasons"][FAILED_CHECKS] == 6
    lenient = analyse(test, answers, {}, ScreeningRules(max_failed_checks=99, min_anchor_gap=-9))
    assert lenient["raters"]["counted"] == 21
    assert lenient["questions"]["OVL"]["systems"]["poor"]["mean"] > 0.2 + MEANS["poor"]
    unpaid = {rater for (_, rater), reason in payment_decisions(test, answers).items() if reason}
    assert unpaid == {f"x{i}" for i in range(6)}  # who rates all alike is paid


def vars_after_rater(answer: Answer, rating: int) -> tuple:
    return answer.item, answer.question, rating, answer.seconds, answer.answered


def test_platforms_rules_count(answers):
    first, _ = answers.test.batches
    raters = {
        "often": Rater("often", "prolific", "APPROVED", None, 50),
        "new": Rater("new", "prolific", "AWAITING REVIEW", None, 49),
        "returned": Rater("returned", "prolific", "RETURNED", None, 900),
        "liked": Rater("liked", "mturk", "Submitted", 0.6, None),
        "disliked": Rater("disliked", "mturk", "Submitted", 0.59, None),
    }
    for name in (*raters, "friend"):
        rate_batch(answers, name, first)
    reasons = screen(answers.test, answers.answers(), raters, ScreeningRules())
    assert reasons == {
        "often": [],
        "new": [NOT_APPROVED],
        "returned": [NOT_FINISHED],
        "liked": [],
        "disliked": [NOT_APPROVED],
        "friend": [],
    }


def test_without_a_question_about_quality_the_anchors_say_nothing(build, tmp_path):
    test = build("rel", questions=("REL",))
    answers = Answers(tmp_path / "rel" / "answers.sqlite", test)
    rate_batch(answers, "ann", test.batches[0], lambda item, code: item.expected or 3)
    assert screen(test, answers.answers(), {}, ScreeningRules()) == {"ann": []}
    answers.close()


def test_unfinished_batches_do_not_count_and_few_raters_are_told(answers):
    first, second = answers.test.batches
    for number in range(10):
        rate_batch(answers, f"r{number}", first)
    rate_batch(answers, "r0", second, lambda item, code: careless(item, code))
    for item in second.items[:-1]:
        codes = answers.test.questions_of(item)
        answers.record(second.name, "late", item.name, {code: honest(item, code) for code in codes})
    results = analyse(answers.test, answers.answers(), {})
    assert results["raters"]["without_a_finished_batch"] == 1 and results["raters"]["left_out"] == 1
    assert results["fewest_raters_of_a_clip"] == 0
    assert results["clips_with_too_few_raters"] == len(
        {(i.clip, i.system) for b in (first, second) for i in b.items if i.clip}
    )
    systems = results["questions"]["REL"]["systems"]
    assert {name: found["mean"] for name, found in systems.items()} == {"real": 4, "muddy": 1, "thin": 3, "low-pass": 1}
    assert results["questions"]["OVL"]["differences"]["real - thin"]["mean"] == 1
    text = results_table(results)
    assert "muddy" in text and f"1 × {FAILED_CHECKS}" in text and "fewer than 10 raters" in text


def test_ratings_that_count_are_written_without_names():
    test = big_test(6)
    answers = simulate(test, 3, seed=0)
    rows = rating_rows(test, answers, {})
    assert {row["rater"] for row in rows} == {1, 2, 3} and {row["system"] for row in rows} == set(MEANS)
    first = rows[0]
    assert list(first) == ["file", "system", "question", "rating", "rater"] and first["question"] == "OVL"
    results = analyse(test, answers, {})
    good = [row["rating"] for row in rows if row["system"] == "good"]
    assert np.mean(good) == pytest.approx(results["questions"]["OVL"]["systems"]["good"]["mean"])
