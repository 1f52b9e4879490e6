import csv
import json

import pytest
from listening_material import careless, rate_batch, ratings_of_batch

from audioldm2_pl.errors import UserError
from evaluation.__main__ import main
from evaluation.listening.analysis import payment_decisions
from evaluation.listening.exchange import (
    approval_rate,
    export_mturk,
    export_prolific,
    import_mturk,
    import_prolific,
    read_csv,
    review_mturk,
    review_prolific,
)
from evaluation.listening.store import Rater

# The columns of a results file of Mechanical Turk's requester site before Input.… and Answer.…
MTURK = (
    "HITId HITTypeId Title Description Keywords Reward CreationTime MaxAssignments RequesterAnnotation "
    "AssignmentDurationInSeconds AutoApprovalDelayInSeconds Expiration NumberOfSimilarHITs LifetimeInSeconds "
    "AssignmentId WorkerId AssignmentStatus AcceptTime SubmitTime AutoApprovalTime ApprovalTime RejectionTime "
    "RequesterFeedback WorkTimeInSeconds LifetimeApprovalRate Last30DaysApprovalRate Last7DaysApprovalRate"
)
# The columns of Prolific's export of a study, before the demographics
PROLIFIC = (
    "Submission id,Participant id,Status,Custom study tncs accepted at,Started at,Completed at,Reviewed at,"
    "Archived at,Time taken,Completion code,Total approvals,Age"
)


def write(path, columns, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    return path


def mturk_row(answers, worker, batch, **change):
    row = {"WorkerId": worker, "AssignmentStatus": "Submitted", "LifetimeApprovalRate": "95% (19/20)"}
    row |= {"Input.batch": batch.name, "Answer.ratings": json.dumps(ratings_of_batch(answers.test, batch))}
    return row | change


@pytest.fixture
def mturk(answers, tmp_path):
    """Writes a results file: `mturk(rows)`."""
    columns = [*MTURK.split(), "Input.batch", "Input.page_url", "Answer.ratings", "Approve", "Reject"]
    return lambda *rows: write(tmp_path / "Batch_1_batch_results.csv", columns, rows)


def test_mturk_gets_a_row_a_batch_and_a_layout_for_it(answers, tmp_path):
    table, layout = export_mturk(answers.test, "https://example.org/t/", tmp_path / "out")
    rows = [row for _, row in read_csv(table, ["batch", "page_url"])]
    assert rows == [
        {"batch": name, "page_url": f"https://example.org/t/{name}.html"} for name in ("batch-001", "batch-002")
    ]
    text = layout.read_text()
    assert "${page_url}" in text and text.count("${") == 1 and 'name="ratings"' in text
    with pytest.raises(UserError, match="--url"):
        export_mturk(answers.test, "example.org", tmp_path)


def test_prolific_gets_an_address_with_its_placeholders(answers, tmp_path):
    (path,) = export_prolific(answers.test, "https://example.org", tmp_path)
    rows = [row for _, row in read_csv(path, ["external_study_url"])]
    query = "?PROLIFIC_PID={{%PROLIFIC_PID%}}&STUDY_ID={{%STUDY_ID%}}&SESSION_ID={{%SESSION_ID%}}"
    assert rows[0]["external_study_url"] == "https://example.org/" + query
    assert rows[0]["total_available_places"] == "20" and rows[1]["total_available_places"] == "10"
    assert rows[2]["external_study_url"] == "https://example.org/batch-002.html" + query


def test_mturk_results_become_answers(answers, mturk):
    first, second = answers.test.batches
    path = mturk(
        mturk_row(answers, "W1", first),
        mturk_row(answers, "W1", second),
        mturk_row(answers, "W2", first, LifetimeApprovalRate="0% (0/0)", AssignmentStatus="Approved"),
    )
    assert import_mturk(answers, path) == 3
    wanted = {(b.name, w) for b, w in ((first, "W1"), (second, "W1"), (first, "W2"))}
    assert {(a.batch, a.rater) for a in answers.answers()} == wanted
    ratings = ratings_of_batch(answers.test, second)
    kept = {(a.item, a.question): a.rating for a in answers.answers() if a.batch == second.name}
    assert kept == {(item, code): rating for item, found in ratings.items() for code, rating in found.items()}
    assert answers.raters()["W1"] == Rater("W1", "mturk", "Submitted", 0.95, None)
    assert answers.raters()["W2"].approval_rate is None
    before = answers.answers()
    assert import_mturk(answers, path) == 0 and answers.answers() == before


def test_bad_mturk_rows_are_told_and_the_good_ones_taken(answers, mturk, tmp_path):
    first, second = answers.test.batches
    other = ratings_of_batch(answers.test, first, careless)
    path = mturk(
        mturk_row(answers, "W1", first),
        mturk_row(answers, "W2", first, **{"Answer.ratings": ""}),
        mturk_row(answers, "W1", first, **{"Answer.ratings": json.dumps(other)}),
        mturk_row(answers, "W3", first, **{"Answer.ratings": "[1]"}),
        mturk_row(answers, "W4", second, **{"Input.batch": "batch-007"}),
        mturk_row(answers, "W5", second),
    )
    with pytest.raises(UserError, match=r"4 rows were not taken, 2 new ones were; line 3: Answer.ratings is not"):
        import_mturk(answers, path)
    assert {a.rater for a in answers.answers()} == {"W1", "W5"}
    with pytest.raises(UserError, match="no column WorkerId"):
        import_mturk(answers, write(tmp_path / "x.csv", ["a"], [{"a": 1}]))
    with pytest.raises(UserError, match="holds no rows"):
        import_mturk(answers, mturk())
    with pytest.raises(UserError, match="no such file"):
        import_mturk(answers, tmp_path / "none.csv")


def test_rows_that_leave_the_verdict_out_are_whole_and_other_rows_are_not(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("WorkerId,Answer.ratings,Approve,Reject\nW1,{}\n")
    assert list(read_csv(path, ["WorkerId"])) == [
        (2, {"WorkerId": "W1", "Answer.ratings": "{}", "Approve": "", "Reject": ""})
    ]
    for row, message in (("W2", "cut off"), ('W2,"{}', "no row of CSV"), ("W2,{},,,x", "more cells")):
        path.write_text(f"WorkerId,Answer.ratings,Approve,Reject\nW1,{{}}\n{row}\nW3,{{}}\n")
        with pytest.raises(UserError, match=f"line 3: .*{message}"):
            list(read_csv(path, ["WorkerId"]))


@pytest.mark.parametrize("text, rate", [("100% (7/7)", 1.0), ("50% (1/2)", 0.5), ("0% (0/0)", None), ("", None)])
def test_approval_rates_are_read(text, rate):
    assert approval_rate(text) == rate


def test_mturk_review_pays_all_but_the_careless(answers, mturk, tmp_path):
    first, _ = answers.test.batches
    path = mturk(
        mturk_row(answers, "W1", first),
        mturk_row(
            answers, "W2", first, **{"Answer.ratings": json.dumps(ratings_of_batch(answers.test, first, careless))}
        ),
        mturk_row(answers, "W3", first, AssignmentStatus="Rejected", Reject="before"),
        mturk_row(answers, "W4", first, AssignmentStatus="Submitted"),
    )
    import_mturk(answers, path)
    decided = payment_decisions(answers.test, answers.answers())
    assert set(decided) == {("batch-001", worker) for worker in ("W1", "W2", "W3", "W4")}
    del decided["batch-001", "W4"]  # as a worker whose answers never came
    assert review_mturk(path, decided, tmp_path / "reviewed.csv") == (1, 1)
    rows = {row["WorkerId"]: row for _, row in read_csv(tmp_path / "reviewed.csv", [*MTURK.split(), "Answer.ratings"])}
    marks = {worker: (row["Approve"], row["Reject"]) for worker, row in rows.items()}
    assert marks == {
        "W1": ("X", ""),
        "W2": ("", "The number of beeps was wrong in 2 listening checks."),
        "W3": ("", "before"),
        "W4": ("", ""),
    }


def test_prolific_submissions_are_read_and_reviewed(answers, tmp_path, capsys):
    first, second = answers.test.batches
    rate_batch(answers, "p1", first)
    rate_batch(answers, "p2", first, careless)
    answers.record(second.name, "p3", *next(iter(ratings_of_batch(answers.test, second).items())))
    rows = [
        {"Submission id": f"s{i}", "Participant id": f"p{i}", "Status": status, "Total approvals": approvals}
        for i, status, approvals in [
            (1, "AWAITING REVIEW", "120"),
            (2, "AWAITING_REVIEW", "7"),
            (3, "AWAITING REVIEW", ""),
            (4, "RETURNED", "55"),
        ]
    ]
    path = write(tmp_path / "prolific_export.csv", PROLIFIC.split(","), rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert import_prolific(answers, path) == 4
    assert answers.raters()["p2"] == Rater("p2", "prolific", "AWAITING REVIEW", None, 7)
    assert answers.raters()["p3"].approvals is None
    rate_batch(answers, "p1", second, careless)  # one good batch is enough
    output = tmp_path / "review.csv"
    assert review_prolific(path, payment_decisions(answers.test, answers.answers()), output) == (1, 1)
    decisions = [(row["Participant id"], row["Decision"]) for _, row in read_csv(output, ["Reason"])]
    assert decisions == [("p1", "APPROVE"), ("p2", "REJECT"), ("p3", "LOOK")]
    rows[1]["Total approvals"] = "many"
    with pytest.raises(UserError, match="line 3: Total approvals is 'many'"):
        import_prolific(answers, write(path, PROLIFIC.split(","), rows))


def test_command_line(answers, mturk, tmp_path, capsys):
    test = str(tmp_path / "test")
    results = str(mturk(*(mturk_row(answers, f"W{i}", batch) for i in range(3) for batch in answers.test.batches)))
    answers.close()
    assert main(["listen", "export", test, "--platform", "mturk", "--url", "https://example.org"]) == 0
    out = capsys.readouterr().out
    assert "mturk_input.csv" in out and "approval rate of at least 60 % and at least 50 approvals" in out
    assert main(["listen", "import", test, results, "--platform", "mturk"]) == 0
    assert capsys.readouterr().out == "6 new assignments\n"
    reviewed = ["listen", "review", test, results, "--platform", "mturk", "--output", str(tmp_path / "reviewed.csv")]
    assert main(reviewed) == 0 and "6 approved, 0 rejected" in capsys.readouterr().out
    assert main(["listen", "analyse", test, "--output", str(tmp_path / "results.json")]) == 0
    assert "OVL: Overall impression" in (out := capsys.readouterr().out) and "fewer than 10 raters" in out
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["questions"]["OVL"]["systems"]["thin"]["mean"] == 4.0
    assert not any(worker in json.dumps(results) for worker in ("W0", "W1", "W2"))
