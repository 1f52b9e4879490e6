from collections import Counter
from itertools import pairwise

import pytest

from audioldm2_pl.errors import UserError
from evaluation.listening.batches import LOW_PASS, REAL, load_test, plan_batches, save_test
from evaluation.listening.questions import CHECK

CLIPS = [f"clip{i}" for i in range(11)]
ENERGY = {clip: i / 11 for i, clip in enumerate(CLIPS)}


def plan(seed=0, clips=CLIPS, systems=("a", "b", "c"), clips_per_batch=4):
    return plan_batches(clips, systems, clips_per_batch, ENERGY, seed)


def test_every_clip_is_heard_once_from_every_system_in_one_batch():
    batches = plan()
    assert [batch.name for batch in batches] == ["batch-001", "batch-002", "batch-003"]
    heard = Counter((item.clip, item.system) for batch in batches for item in batch.items if item.system != LOW_PASS)
    checks = heard.pop(("", CHECK))
    assert checks == 2 * len(batches)
    assert heard == Counter({(clip, system): 1 for clip in CLIPS for system in ("a", "b", "c", REAL)})
    for batch in batches:
        assert [item.name for item in batch.items] == [f"{i:02d}" for i in range(1, len(batch.items) + 1)]
        clips = {item.clip for item in batch.items if item.system == "a"}
        assert len(clips) in (3, 4)
        assert {item.clip for item in batch.items} == clips | {""}
        anchors = {item.clip for item in batch.items if item.system == LOW_PASS}
        assert anchors == set(sorted(clips, key=lambda clip: ENERGY[clip])[-2:])  # who lose most


def test_order_is_random_and_follows_the_seed():
    assert plan() == plan() == plan(clips=CLIPS[::-1])
    assert plan() != plan(seed=1)
    places = Counter()  # how often the real recording comes before the same clip's system a
    for seed in range(60):
        for batch in plan(seed):
            order = [(item.clip, item.system) for item in batch.items]
            assert not any(a[0] == b[0] for a, b in pairwise(order))
            places.update(
                order.index((clip, REAL)) < order.index((clip, "a")) for clip, system in order if system == "a"
            )
    assert 0.44 < places[True] / places.total() < 0.56  # of 660, four standard errors


def test_checks_fall_into_both_halves_with_different_answers():
    expected = Counter()
    for seed in range(40):
        for batch in plan(seed):
            checks = [(i, item.expected) for i, item in enumerate(batch.items) if item.system == CHECK]
            half = len(batch.items) / 2
            assert checks[0][0] <= half <= checks[1][0] + 1
            assert checks[0][1] != checks[1][1]
            expected.update(answer for _, answer in checks)
            assert all(item.expected is None for item in batch.items if item.system != CHECK)
    assert set(expected) == {1, 2, 3, 4, 5} and min(expected.values()) > 20


def test_one_clip_and_one_system_still_make_a_batch():
    (batch,) = plan(clips=["clip3"], systems=("a",))
    assert Counter(item.system for item in batch.items) == {"a": 1, REAL: 1, LOW_PASS: 1, CHECK: 2}


def test_a_test_is_read_as_it_was_written(build, tmp_path):
    test = build()
    assert load_test(tmp_path / "test") == test
    assert load_test(tmp_path / "test").digest == test.digest
    assert build(seed=1).digest != test.digest


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"batches": [{}]}', '{"batches": [], "colour": 1}'])
def test_a_broken_test_is_told(tmp_path, text):
    with pytest.raises(UserError, match="no listening test here"):
        load_test(tmp_path)
    (tmp_path / "test.json").write_text(text)
    with pytest.raises(UserError, match="is no listening test"):
        load_test(tmp_path)


def test_an_unknown_question_is_told(build, tmp_path):
    test = build()
    save_test(type(test)(**{**vars(test), "questions": ("OVL", "LOUD")}), tmp_path)
    with pytest.raises(UserError, match="unknown question 'LOUD'"):
        load_test(tmp_path)
