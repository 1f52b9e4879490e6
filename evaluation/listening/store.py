"""Raters' answers in SQLite. What `record` has returned from is on the disk: a killed process loses nothing."""

import math
import re
import sqlite3
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audioldm2_pl.errors import UserError

from .batches import Batch, Item, ListeningTest

TABLES = """
CREATE TABLE IF NOT EXISTS test (digest TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS ratings (
    batch TEXT NOT NULL, rater TEXT NOT NULL, item TEXT NOT NULL, question TEXT NOT NULL,
    rating INTEGER NOT NULL CHECK (rating BETWEEN 1 AND 5),
    seconds REAL,            -- from the item's appearance to its answer
    answered REAL NOT NULL,  -- Unix time
    PRIMARY KEY (batch, rater, item, question)
);
CREATE TABLE IF NOT EXISTS raters (
    rater TEXT PRIMARY KEY, platform TEXT NOT NULL, status TEXT NOT NULL,
    approval_rate REAL,      -- 0 to 1
    approvals INTEGER
);
"""
RATER = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
MAX_SECONDS = 1e6


class Refused(Exception):
    """An answer that is not taken: `status` is HTTP's, 400 for a malformed one, 409 for a second one."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Answer:
    batch: str
    rater: str
    item: str
    question: str
    rating: int
    seconds: float | None
    answered: float


@dataclass(frozen=True)
class Rater:
    """What a platform knows about a rater."""

    name: str
    platform: str
    status: str
    approval_rate: float | None  # 0 to 1
    approvals: int | None


class Answers:
    """The answers to one test. Threads may share it."""

    def __init__(self, path: Path, test: ListeningTest):
        self.test = test
        self.lock = threading.Lock()
        self.connection = sqlite3.connect(path, check_same_thread=False, timeout=30)
        try:
            self.connection.execute("PRAGMA journal_mode = WAL")
            self.connection.execute("PRAGMA synchronous = FULL")  # a commit waits for the disk
            self.connection.executescript(TABLES)
            with self.connection:
                self.check_test(path)
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path}: cannot be used as a file of answers ({error})") from None

    def check_test(self, path: Path) -> None:
        row = self.connection.execute("SELECT digest FROM test").fetchone()
        if row is None:
            self.connection.execute("INSERT INTO test VALUES (?)", (self.test.digest,))
        elif row[0] != self.test.digest:
            raise UserError(f"{path}: holds the answers to another test; put test.json and its pages back")

    def close(self) -> None:
        self.connection.close()

    def record(self, batch: Any, rater: Any, item: Any, answers: Any, seconds: Any = None) -> bool:
        """Checks and saves one item's answers, {question: 1 to 5}. => False where the very same answers were there
        already, so that sending again is harmless. Raises Refused, and then saves nothing."""
        found, rater = self.check_batch(batch), check_rater(rater)
        numbers = self.check_answers(found, item, answers)
        if seconds is not None and not is_duration(seconds):
            raise Refused(400, "seconds has to be a number that is not negative")
        return self.save(found.name, rater, {item: numbers}, seconds)

    def record_all(self, batch: Any, rater: Any, ratings: Any) -> bool:
        """A whole batch, {item: {question: 1 to 5}}, for platforms that keep answers themselves; else as `record`."""
        found, rater = self.check_batch(batch), check_rater(rater)
        if not isinstance(ratings, Mapping) or set(ratings) != {item.name for item in found.items}:
            raise Refused(400, f"ratings have to be there for all {len(found.items)} items of {batch} and for no other")
        numbers = {item: self.check_answers(found, item, answers) for item, answers in ratings.items()}
        return self.save(found.name, rater, numbers, None)

    def save(self, batch: str, rater: str, ratings: dict[str, dict[str, int]], seconds: float | None) -> bool:
        """All of them in one transaction, or none."""
        with self.lock, self.connection:
            known: dict[str, dict[str, int]] = {}
            for item, question, number in self.connection.execute(
                "SELECT item, question, rating FROM ratings WHERE batch = ? AND rater = ?", (batch, rater)
            ):
                known.setdefault(item, {})[question] = number
            for item, numbers in ratings.items():
                if known.get(item, numbers) != numbers:
                    raise Refused(409, f"{rater} has rated item {item} of {batch} already; a rating cannot be changed")
            now = time.time()
            rows = [
                (batch, rater, item, question, number, seconds, now)
                for item, numbers in ratings.items()
                if item not in known
                for question, number in numbers.items()
            ]
            self.connection.executemany("INSERT INTO ratings VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        return bool(rows)

    def check_batch(self, batch: Any) -> Batch:
        found = self.test.batch(batch) if isinstance(batch, str) else None
        if found is None:
            raise Refused(400, "no such batch")
        return found

    def check_answers(self, batch: Batch, item: Any, answers: Any) -> dict[str, int]:
        found = next((known for known in batch.items if known.name == item), None)
        if found is None:
            raise Refused(400, f"no such item in {batch.name}")
        questions = self.test.questions_of(found)
        if not isinstance(answers, Mapping) or set(answers) != set(questions):
            raise Refused(400, f"item {item} asks for {' and '.join(questions)}, nothing more or less")
        if any(type(number) is not int or not 1 <= number <= 5 for number in answers.values()):
            raise Refused(400, "a rating is a whole number from 1 to 5")
        return dict(answers)

    def rated(self, batch: Any, rater: Any) -> list[str]:
        """Names of the items that the rater has rated."""
        found, rater = self.check_batch(batch), check_rater(rater)
        with self.lock:
            rows = self.connection.execute(
                "SELECT DISTINCT item FROM ratings WHERE batch = ? AND rater = ? ORDER BY item", (found.name, rater)
            )
            return [item for (item,) in rows]

    def next_batch(self, rater: str) -> str | None:
        """The batch to send a rater to: one begun and not finished, else that with the fewest raters; None if the
        rater has finished all of them."""
        with self.lock:
            rows = self.connection.execute("SELECT DISTINCT batch, rater, item FROM ratings").fetchall()
        mine = {name: sum(row[:2] == (name, rater) for row in rows) for name in self.test.pages}
        others = {name: len({row[1] for row in rows if row[0] == name}) for name in self.test.pages}
        left = [batch.name for batch in self.test.batches if mine[batch.name] < len(batch.items)]
        return min(left, key=lambda name: (not mine[name], others[name]), default=None)

    def answers(self) -> list[Answer]:
        with self.lock:
            rows = self.connection.execute("SELECT * FROM ratings ORDER BY batch, rater, item, question")
            return [Answer(*row) for row in rows]

    def save_rater(self, rater: Rater) -> None:
        """A later record replaces an earlier one."""
        row = (check_rater(rater.name), rater.platform, rater.status, rater.approval_rate, rater.approvals)
        with self.lock, self.connection:
            self.connection.execute("INSERT OR REPLACE INTO raters VALUES (?, ?, ?, ?, ?)", row)

    def raters(self) -> dict[str, Rater]:
        with self.lock:
            rows = self.connection.execute("SELECT * FROM raters ORDER BY rater")
            return {row[0]: Rater(*row) for row in rows}


def check_rater(rater: Any) -> str:
    if not isinstance(rater, str) or not RATER.fullmatch(rater):
        raise Refused(400, "a rater's name has 1 to 64 letters, digits, dots, hyphens, underscores or @")
    return rater


def is_duration(seconds: Any) -> bool:
    return type(seconds) in (int, float) and math.isfinite(seconds) and 0 <= seconds <= MAX_SECONDS


def item_key(test: ListeningTest) -> dict[tuple[str, str], Item]:
    """(batch, item's name) -> the item: what a rater heard."""
    return {(batch.name, item.name): item for batch in test.batches for item in batch.items}
