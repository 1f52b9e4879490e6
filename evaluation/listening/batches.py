"""What each rater hears: clips × systems assigned to batches, with hidden anchors and attention checks."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

from audioldm2_pl.errors import UserError

from .questions import CHECK, QUESTIONS

REAL = "real"  # the recording itself, hidden among the systems: the upper anchor
LOW_PASS = "low-pass"  # the recording without its high frequencies: the lower anchor
RESERVED = (REAL, LOW_PASS, CHECK)
NUM_LOW_PASS = 2  # a batch, as far as it has clips
NUM_CHECKS = 2  # a batch; guessing passes both once in 25 times
SWAPS_TRIED = 1000


@dataclass(frozen=True)
class Item:
    name: str  # its number in the batch; tells a rater nothing about the system
    clip: str  # "" for an attention check
    system: str
    expected: int | None = None  # the right answer of an attention check


@dataclass(frozen=True)
class Batch:
    name: str
    items: tuple[Item, ...]  # in the order in which they are heard


@dataclass(frozen=True)
class ListeningTest:
    questions: tuple[str, ...]  # keys of QUESTIONS
    systems: tuple[str, ...]  # without the anchors
    seed: int
    batches: tuple[Batch, ...]
    pages: dict[str, str]  # batch -> SHA-256 of its page
    completion_url: str = ""  # where a rater is sent in the end

    def batch(self, name: str) -> Batch | None:
        return next((batch for batch in self.batches if batch.name == name), None)

    def questions_of(self, item: Item) -> tuple[str, ...]:
        return (CHECK,) if item.system == CHECK else self.questions

    @property
    def digest(self) -> str:
        """Ties answers to this very test: its plan and its pages."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def plan_batches(
    clips: Sequence[str], systems: Sequence[str], clips_per_batch: int, high_energy: Mapping[str, float], seed: int
) -> tuple[Batch, ...]:
    """Every clip in one batch, there from every system and from the real recording, so that each rater hears all
    systems equally often and on the same clips. high_energy: clip -> share of its energy that the low-pass takes;
    the clips that lose most become the lower anchors. The same arguments give the same batches."""
    names = sorted(clips)
    Random(f"{seed}/clips").shuffle(names)
    num_batches = math.ceil(len(names) / clips_per_batch)
    batches = []
    for number in range(num_batches):
        chosen = names[number::num_batches]
        low_passed = sorted(chosen, key=lambda clip: (-high_energy[clip], clip))[:NUM_LOW_PASS]
        pairs = [(clip, system) for clip in chosen for system in (*systems, REAL)]
        pairs += [(clip, LOW_PASS) for clip in low_passed]
        batches.append(order_batch(f"batch-{number + 1:03d}", pairs, Random(f"{seed}/{number}")))
    return tuple(batches)


def order_batch(name: str, pairs: list[tuple[str, str]], random: Random) -> Batch:
    """A random order in which a clip does not follow itself, as far as swaps can have it; the attention checks fall at
    random into equal parts of it."""
    order = random.sample(pairs, len(pairs))
    for _ in range(SWAPS_TRIED):
        places = [i for i in range(1, len(order)) if order[i][0] == order[i - 1][0]]
        if not places:
            break
        i, j = random.choice(places), random.randrange(len(order))
        swapped = list(order)
        swapped[i], swapped[j] = order[j], order[i]
        if repeats(swapped) <= len(places):
            order = swapped
    stimuli: list[tuple[str, str, int | None]] = [(clip, system, None) for clip, system in order]
    beeps = random.sample(range(1, 6), NUM_CHECKS)
    for part in reversed(range(NUM_CHECKS)):  # from behind: the places before it stay what they are
        first, last = (len(order) * edge // NUM_CHECKS for edge in (part, part + 1))
        stimuli.insert(random.randint(first, last), ("", CHECK, beeps[part]))
    width = len(str(len(stimuli)))
    return Batch(name, tuple(Item(f"{i:0{width}d}", *stimulus) for i, stimulus in enumerate(stimuli, 1)))


def repeats(order: list[tuple[str, str]]) -> int:
    return sum(a[0] == b[0] for a, b in pairwise(order))


def save_test(test: ListeningTest, folder: Path) -> None:
    (folder / "test.json").write_text(json.dumps(asdict(test), indent=1) + "\n", encoding="utf-8")


def load_test(folder: Path) -> ListeningTest:
    path = folder / "test.json"
    if not path.is_file():
        raise UserError(f"{path}: no listening test here; make one with python -m evaluation listen build")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        batches = tuple(
            Batch(batch["name"], tuple(Item(**item) for item in batch["items"])) for batch in content.pop("batches")
        )
        for name in ("questions", "systems"):
            content[name] = tuple(content[name])
        test = ListeningTest(batches=batches, **content)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is no listening test ({error}); build it again") from None
    unknown = set(test.questions) - set(QUESTIONS)
    if unknown:
        raise UserError(f"{path}: unknown question {sorted(unknown)[0]!r}; there are {', '.join(QUESTIONS)}")
    return test
