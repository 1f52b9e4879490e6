import math
import threading

import pytest
from listening_material import honest, rate_batch, ratings_of_batch

from audioldm2_pl.errors import UserError
from evaluation.listening.questions import CHECK
from evaluation.listening.store import Answers, Rater, Refused, check_rater

RIGHT = {"OVL": 4, "REL": 5}


def item_of(answers: Answers, check: bool = False) -> str:
    return next(item.name for item in answers.test.batches[0].items if (item.system == CHECK) == check)


def test_an_answer_is_kept_once_and_cannot_be_changed(answers):
    item = item_of(answers)
    assert answers.record("batch-001", "ann", item, RIGHT, 3.5)
    assert not answers.record("batch-001", "ann", item, RIGHT, 9)  # sent again: nothing new
    with pytest.raises(Refused, match="cannot be changed") as refusal:
        answers.record("batch-001", "ann", item, RIGHT | {"OVL": 5})
    assert refusal.value.status == 409
    assert answers.record("batch-001", "bob", item, {"OVL": 1, "REL": 1})
    kept = [(a.rater, a.item, a.question, a.rating, a.seconds) for a in answers.answers()]
    assert kept == [
        ("ann", item, "OVL", 4, 3.5),
        ("ann", item, "REL", 5, 3.5),
        ("bob", item, "OVL", 1, None),
        ("bob", item, "REL", 1, None),
    ]
    assert answers.rated("batch-001", "ann") == [item] and answers.rated("batch-002", "ann") == []


@pytest.mark.parametrize(
    "change",
    [
        {"batch": "batch-009"},
        {"batch": None},
        {"rater": ""},
        {"rater": "x" * 65},
        {"rater": "a b"},
        {"rater": "ann\n"},
        {"rater": 7},
        {"item": "99"},
        {"item": None},
        {"item": ["01"]},
        {"answers": None},
        {"answers": {}},
        {"answers": {"OVL": 4}},
        {"answers": RIGHT | {"MOS": 3}},
        {"answers": {"OVL": 0, "REL": 3}},
        {"answers": {"OVL": 6, "REL": 3}},
        {"answers": {"OVL": 4.0, "REL": 3}},
        {"answers": {"OVL": True, "REL": 3}},
        {"answers": {"OVL": "4", "REL": 3}},
        {"seconds": -1},
        {"seconds": math.nan},
        {"seconds": "3"},
    ],
)
def test_malformed_answers_are_refused_and_leave_nothing(answers, change):
    right = {"batch": "batch-001", "rater": "ann", "item": item_of(answers), "answers": RIGHT, "seconds": 1}
    with pytest.raises(Refused) as refusal:
        answers.record(**right | change)
    assert refusal.value.status == 400
    assert answers.answers() == []


def test_a_check_asks_for_its_own_answer(answers):
    with pytest.raises(Refused, match="asks for CHECK"):
        answers.record("batch-001", "ann", item_of(answers, check=True), RIGHT)


def test_a_whole_batch_is_kept_whole_or_not_at_all(answers):
    batch = answers.test.batches[0]
    ratings = ratings_of_batch(answers.test, batch)
    with pytest.raises(Refused, match="for all 10 items"):
        answers.record_all("batch-001", "ann", {item_of(answers): RIGHT})
    with pytest.raises(Refused, match="from 1 to 5"):
        answers.record_all(
            "batch-001", "ann", ratings | {batch.items[-1].name: dict.fromkeys(ratings[batch.items[-1].name], 6)}
        )
    assert answers.answers() == []
    answers.record("batch-001", "ann", item_of(answers), RIGHT)
    with pytest.raises(Refused, match="cannot be changed"):
        answers.record_all("batch-001", "ann", ratings | {item_of(answers): {"OVL": 1, "REL": 1}})
    assert len(answers.answers()) == 2
    assert answers.record_all("batch-001", "ann", ratings | {item_of(answers): RIGHT})
    assert not answers.record_all("batch-001", "ann", ratings | {item_of(answers): RIGHT})
    assert answers.rated("batch-001", "ann") == [item.name for item in batch.items]


def test_of_many_at_once_one_wins(answers):
    outcomes, start = [], threading.Barrier(8)

    def send(rating: int) -> None:
        start.wait()
        try:
            outcomes.append(answers.record("batch-001", "ann", item_of(answers), {"OVL": rating, "REL": 1}))
        except Refused:
            outcomes.append(None)

    threads = [threading.Thread(target=send, args=(1 + i % 5,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(True) == 1 and len(answers.answers()) == 2


def test_raters_are_sent_where_they_are_missing(answers):
    first, second = answers.test.batches
    assert answers.next_batch("ann") == "batch-001"
    rate_batch(answers, "ann", first)
    assert answers.next_batch("ann") == "batch-002" == answers.next_batch("bob")
    answers.record("batch-001", "bob", item_of(answers), RIGHT)
    assert answers.next_batch("bob") == "batch-001"  # begun and not finished
    rate_batch(answers, "ann", second)
    assert answers.next_batch("ann") is None


def test_answers_outlive_the_process_and_belong_to_their_test(answers, build, tmp_path):
    rate_batch(answers, "ann", answers.test.batches[1])
    answers.save_rater(Rater("ann", "prolific", "ACTIVE", None, 3))
    answers.save_rater(Rater("ann", "prolific", "APPROVED", None, 4))
    kept, path = answers.answers(), tmp_path / "test" / "answers.sqlite"
    expected = {item.name: item for item in answers.test.batches[1].items}
    assert all(answer.rating == honest(expected[answer.item], answer.question) for answer in kept)
    again = Answers(path, answers.test)
    assert again.answers() == kept and again.raters() == {"ann": Rater("ann", "prolific", "APPROVED", None, 4)}
    again.close()
    with pytest.raises(UserError, match="another test"):
        Answers(path, build("other", seed=5))
    (tmp_path / "text.sqlite").write_text("no database, but long enough to look at" * 10)
    with pytest.raises(UserError, match="cannot be used"):
        Answers(tmp_path / "text.sqlite", answers.test)


def test_names_of_platforms_are_names():
    for name in ("A3K2EXAMPLE", "5f1b2c3d4e5f6a7b8c9d0e1f", "ann@example.org", "a.b-c_d"):
        assert check_rater(name) == name
