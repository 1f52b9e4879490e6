"""What the listening tests' tests share: the clips' texts, and raters who answer as they are told."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from evaluation.listening.batches import Batch, Item, ListeningTest
from evaluation.listening.questions import CHECK
from evaluation.listening.store import Answers

REPOSITORY = Path(__file__).parents[3]
RATE, SECONDS = 16_000, 0.2
TEXTS = {"dog": 'A <b>dog</b> & a "cat"', "rain": "Rain, then €5", "bell": "A bell"}
OPINION = {"real": 5, "muddy": 2, "thin": 4, "low-pass": 1}


def honest(item: Item, question: str) -> int:
    """Passes every check and rates by `OPINION`; matches are one point worse, where there is one."""
    if item.expected is not None:
        return item.expected
    return max(1, OPINION[item.system] - (question == "REL"))


def ratings_of_batch(test: ListeningTest, batch: Batch, opinion: Callable[[Item, str], int] = honest) -> dict:
    """Item -> question -> rating."""
    return {item.name: {code: opinion(item, code) for code in test.questions_of(item)} for item in batch.items}


def rate_batch(answers: Answers, rater: str, batch: Batch, opinion: Callable[[Item, str], int] = honest) -> None:
    answers.record_all(batch.name, rater, ratings_of_batch(answers.test, batch, opinion))


def careless(item: Item, question: str) -> int:
    """Does not count the beeps."""
    return item.expected % 5 + 1 if question == CHECK and item.expected else 3


def start_server(folder: Path, port: int = 0) -> tuple[subprocess.Popen, int]:
    """`python -m evaluation listen serve` as a process of its own, which answers already. => it and its port."""
    command = [sys.executable, "-m", "evaluation", "listen", "serve", str(folder), "--port", str(port)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline().rstrip("/\n").rpartition(":")[2])
