"""CSV in the layouts of Amazon Mechanical Turk's requester site and of Prolific: what to publish, what came back, whom
to pay."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from audioldm2_pl.errors import UserError
from audioldm2_pl.tables import read_table

from .batches import ListeningTest
from .store import Answers, Rater, Refused

# Requirements for workers, AudioLDM 2, section IV-C; the platforms check them before a worker sees the task.
MIN_APPROVAL_RATE = 0.6
MIN_APPROVALS = 50
MIN_RATERS = 10  # a clip

MTURK_RATINGS = "Answer.ratings"  # the hidden field of mturk_layout.html, as results name it
PROLIFIC_PLACEHOLDERS = ("PROLIFIC_PID", "STUDY_ID", "SESSION_ID")  # Prolific writes {{%NAME%}} for them
UNREVIEWED = ("Approve", "Reject")  # columns that Mechanical Turk names, and leaves to be filled in
Decisions = dict[tuple[str, str], str]  # (batch, rater) -> the reason against paying, which they will read; "": none
PROLIFIC_FINISHED = ("AWAITING REVIEW", "APPROVED", "REJECTED")


def export_mturk(test: ListeningTest, url: str, output: Path) -> list[Path]:
    """The input file, a row (HIT) a batch, and the project's design layout, in which ${page_url} is replaced by it."""
    output.mkdir(parents=True, exist_ok=True)
    table = output / "mturk_input.csv"
    rows = [{"batch": batch.name, "page_url": f"{checked_url(url)}/{batch.name}.html"} for batch in test.batches]
    write_csv(table, ["batch", "page_url"], rows)
    layout = output / "mturk_layout.html"
    layout.write_text(Path(__file__).with_name("mturk_layout.html").read_text(encoding="utf-8"), encoding="utf-8")
    return [table, layout]


def export_prolific(test: ListeningTest, url: str, output: Path) -> list[Path]:
    """A row a batch: the study URL with Prolific's placeholders, and the places to ask for. The address without a page
    sends each participant to the batch with the fewest raters: one study for all batches."""
    output.mkdir(parents=True, exist_ok=True)
    path = output / "prolific_studies.csv"
    query = "&".join(f"{name}={{{{%{name}%}}}}" for name in PROLIFIC_PLACEHOLDERS)
    pages = {"all": ("", MIN_RATERS * len(test.batches))}
    pages |= {batch.name: (f"{batch.name}.html", MIN_RATERS) for batch in test.batches}
    rows = [
        {"batch": name, "external_study_url": f"{checked_url(url)}/{page}?{query}", "total_available_places": places}
        for name, (page, places) in pages.items()
    ]
    write_csv(path, ["batch", "external_study_url", "total_available_places"], rows)
    return [path]


def checked_url(url: str) -> str:
    if not re.fullmatch(r"https?://[^\s?#]+", url):
        raise UserError(f"--url {url}: give the address under which raters reach the pages, https://…")
    return url.rstrip("/")


def import_mturk(answers: Answers, path: Path) -> int:
    """The results file of the requester site: ratings and workers. => number of new assignments; importing a file again
    changes nothing. All good rows are saved before a bad one is reported."""
    new, troubles = 0, []
    for line, row in read_csv(path, ["WorkerId", "AssignmentStatus", "Input.batch", MTURK_RATINGS]):
        try:
            new += answers.record_all(row["Input.batch"], row["WorkerId"], json.loads(row[MTURK_RATINGS]))
            rate = approval_rate(row.get("LifetimeApprovalRate", ""))
            answers.save_rater(Rater(row["WorkerId"], "mturk", row["AssignmentStatus"], rate, None))
        except json.JSONDecodeError:
            troubles.append(f"line {line}: {MTURK_RATINGS} is not what mturk_layout.html writes")
        except Refused as refusal:
            troubles.append(f"line {line}: {refusal}")
    if troubles:
        raise UserError(f"{path}: {len(troubles)} rows were not taken, {new} new ones were; {troubles[0]}")
    return new


def approval_rate(text: str) -> float | None:
    """Of a text such as 95% (19/20) => 0.95; None where nothing is reviewed yet. Mechanical Turk counts the requester's
    own tasks here, so the counts say nothing about a worker's record elsewhere."""
    match = re.fullmatch(r"\s*\d+(?:\.\d+)?% \((\d+)/(\d+)\)\s*", text)
    if not match or not int(match[2]):
        return None
    return int(match[1]) / int(match[2])


def import_prolific(answers: Answers, path: Path) -> int:
    """Prolific's export of a study's submissions: who finished, with how many approvals before. The ratings themselves
    are in the answers already. => number of submissions."""
    count = 0
    for line, row in read_csv(path, ["Participant id", "Status", "Total approvals"]):
        approvals = row["Total approvals"].strip()
        if approvals and not approvals.isdigit():
            raise UserError(f"{path}, line {line}: Total approvals is {approvals!r}, not a number")
        number = int(approvals) if approvals else None
        try:
            answers.save_rater(Rater(row["Participant id"], "prolific", prolific_status(row), None, number))
        except Refused as error:
            raise UserError(f"{path}, line {line}: {error}") from None
        count += 1
    return count


def review_mturk(path: Path, decisions: Decisions, output: Path) -> tuple[int, int]:
    """The results file with Approve or Reject filled in, to be uploaded again. => (approved, rejected). What is
    reviewed already stays as it is, and assignments without a decision stay open."""
    rows = [row for _, row in read_csv(path, ["WorkerId", "AssignmentStatus", "Input.batch"])]
    counts = [0, 0]
    for row in rows:
        row.setdefault("Approve", "")
        row.setdefault("Reject", "")
        reason = decisions.get((row["Input.batch"], row["WorkerId"]))
        if row["AssignmentStatus"] == "Submitted" and reason is not None:
            row["Approve"], row["Reject"] = ("", reason) if reason else ("X", "")
            counts[bool(reason)] += 1
    write_csv(output, list(rows[0]), rows)
    return counts[0], counts[1]


def review_prolific(path: Path, decisions: Decisions, output: Path) -> tuple[int, int]:
    """A decision for each submission that awaits review; Prolific's bulk actions take the ids of each kind. One good
    batch is enough to be approved; LOOK: no finished one is there. => (approved, rejected)"""
    rows, counts = [], [0, 0]
    for _, row in read_csv(path, ["Participant id", "Status"]):
        if prolific_status(row) != "AWAITING REVIEW":
            continue
        found = [reason for (_, rater), reason in decisions.items() if rater == row["Participant id"]]
        decision = "LOOK" if not found else "REJECT" if all(found) else "APPROVE"
        reason = found[0] if decision == "REJECT" else ""
        rows.append({"Participant id": row["Participant id"], "Decision": decision, "Reason": reason})
        if found:
            counts[decision == "REJECT"] += 1
    write_csv(output, ["Participant id", "Decision", "Reason"], rows)
    return counts[0], counts[1]


def prolific_status(row: dict[str, str]) -> str:
    """As its site writes it; its programming interface writes AWAITING_REVIEW."""
    return row["Status"].strip().upper().replace("_", " ")


def read_csv(path: Path, columns: list[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, row) of each row. Raises UserError where the file, a column, or every row is missing."""
    rows = list(read_table(path, columns, optional=UNREVIEWED))
    if not rows:
        raise UserError(f"{path}: holds no rows")
    yield from rows


def write_csv(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
