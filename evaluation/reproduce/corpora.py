"""The corpora that experiments name, as `data/<corpus>.py` tells of them: hours, origin, licence, command."""

import ast
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

from audioldm2_pl.errors import UserError
from audioldm2_pl.shards.reader import ShardFolder

DATA = Path(__file__).parents[2] / "data"
BYTES_PER_SECOND = 32_000  # 16-bit samples at 16 kHz; the shards' FLAC takes less


@dataclass
class CorpusFacts:
    """Of a corpus's docstring."""

    title: str
    hours: float | None  # of all its sound
    command: list[str]  # words behind `python -m`
    origin: str  # where it is from, and its licence


@dataclass
class CorpusNeed:
    """A folder of shards that an experiment or a test set is read from."""

    folder: Path
    corpus: str  # its file in data/, or "" where nobody here makes it
    num_clips: int | None  # None where the shards are not there
    hours: float | None  # of the shards that are there, else of the whole corpus

    @property
    def is_there(self) -> bool:
        return self.num_clips is not None

    @property
    def gigabytes(self) -> float | None:
        return None if self.hours is None else self.hours * 3600 * BYTES_PER_SECOND / 1e9


def facts_of(corpus: str) -> CorpusFacts | None:
    """None where there is no such file in `data/`."""
    path = DATA / f"{corpus}.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) if path.is_file() else None
    if text is None:
        return None
    paragraphs = text.replace("\\\n", " ").split("\n\n")
    lines = [line.strip() for paragraph in paragraphs for line in paragraph.splitlines()]
    command = next((shlex.split(line)[2:] for line in lines if line.startswith("python -m data.")), [])
    found = re.search(r"([\d,]+(?:\.\d+)?) h\b", text)
    about = " ".join(paragraphs[2].split()) if len(paragraphs) > 2 else ""
    return CorpusFacts(
        lines[0],
        float(found[1].replace(",", "")) if found else None,
        command,
        shorten(about.partition(" SOURCE")[0], 300, placeholder=" …"),
    )


def need_of(folder: Path, shards: Path) -> CorpusNeed:
    """`shards`: the folder of all corpora. UserError where the shards are damaged."""
    inside = folder.is_relative_to(shards) and folder != shards
    corpus = folder.relative_to(shards).parts[0] if inside else ""
    facts = facts_of(corpus)
    corpus = corpus if facts else ""
    if not (folder / "index.json").is_file():
        return CorpusNeed(folder, corpus, None, facts.hours if facts else None)
    index = ShardFolder(folder).index
    seconds = sum(shard.get("seconds") or 0.0 for shard in index["shards"])
    return CorpusNeed(folder, corpus, index["num_clips"], seconds / 3600)


def build_command(corpus: str, shards: Path, given: str | None) -> list[str]:
    """Words behind `python -m` that make a corpus's shards: the table's, or those of its docstring."""
    facts = facts_of(corpus)
    if given is not None:
        words = shlex.split(given)
        if words[:3] != ["python", "-m", f"data.{corpus}"]:
            raise UserError(f"data.{corpus}: {given!r} is no command of it; write python -m data.{corpus} …")
        words = words[2:]
    else:
        words = facts.command if facts else []
    return [str(shards / word.removeprefix("shards/")) if word.startswith("shards/") else word for word in words]


def source_of(command: list[str]) -> Path | None:
    """The folder of recordings that a command reads; None of a corpus that is synthesised."""
    positional = [word for word in command[1:3] if not word.startswith("-")]
    return Path(positional[0]) if len(positional) == 2 else None
