"""Which tars a command line names: files, folders of them, and patterns."""

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from audioldm2_pl.errors import UserError
from audioldm2_pl.shards.remote import is_remote

MAX_TARS = 1_000_000  # that a pattern may name


def expand(pattern: str) -> list[str]:
    """The names that a pattern with {000..099} and {a,b} stands for. UserError where it is none."""
    names, pending = [], [pattern]
    while pending:
        head = pending.pop()
        match = re.search(r"\{([^{}]*)\}", head)
        if match is None:
            names.append(head)
            continue
        body, span = match[1], re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
        if span:
            first, last = int(span[1]), int(span[2])
            if not 0 <= last - first < MAX_TARS:
                raise UserError(f"{pattern}: {{{body}}} stands for no shards, or for too many")
            choices = [str(number).zfill(len(span[1])) for number in range(first, last + 1)]
        else:
            choices = body.split(",")
        if (len(choices) < 2 and not span) or len(names) + len(pending) + len(choices) > MAX_TARS:
            raise UserError(f"{pattern}: {{{body}}} is no pattern; write {{000..099}} or {{a,b}}")
        pending += [f"{head[: match.start()]}{choice}{head[match.end() :]}" for choice in reversed(choices)]
    return names


def find_tars(patterns: Sequence[str]) -> dict[str, list[str]]:
    """Folder or URL => the names of its tars, in order. UserError where a pattern names none."""
    found: dict[str, list[str]] = {}
    for pattern in patterns:
        if pattern.startswith("pipe:"):
            raise UserError(f"{pattern}: commands are not indexed; name the files or their URLs")
        for path in [pattern] if Path(pattern).exists() else expand(pattern):
            paths = [path]
            if not is_remote(path):
                paths = [path] if Path(path).exists() else sorted(glob.glob(path))
                if Path(path).is_dir():
                    paths = sorted(map(str, Path(path).glob("*.tar")))
                if not paths:
                    raise UserError(f"{path}: no tar here; name shards, folders of them, or a pattern")
                paths = [str(Path(path).absolute()) for path in paths]
            for name in paths:
                folder, _, base = name.rpartition("/")
                found.setdefault(folder, []).append(base)
    return {folder: list(dict.fromkeys(names)) for folder, names in found.items()}
