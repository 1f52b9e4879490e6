"""The files of a folder of recordings, which of them a table means, and notes on what cannot be used."""

import os
import posixpath
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from .sources import AUDIO_SUFFIXES

SKIPPED = ("__MACOSX",)  # and hidden files: what archives and file managers add


@dataclass
class Notes:
    """What could not be used, counted, each with its first example."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, example: str) -> None:
        self.found.setdefault(what, []).append(example)

    def merge(self, other: "Notes") -> None:
        for what, examples in other.found.items():
            self.found.setdefault(what, []).extend(examples)

    def first(self) -> str:
        """The first example of each, for the end of a line."""
        examples = [examples[0] for examples in self.found.values()]
        return f" ({'; '.join(examples)})" if examples else ""

    def __str__(self) -> str:
        lines = [f"  {len(examples):,} {what}; the first: {examples[0]}\n" for what, examples in self.found.items()]
        return "".join(lines)


def walk(source: Path, follow_links: bool) -> tuple[list[str], list[str]]:
    """Names of all files below `source` with "/" between folders, and of the links that lead out of it or nowhere.

    With `follow_links` those that lead out are files like any other. OSError where a folder cannot be read.
    """
    root = os.path.realpath(source)
    entered, names, outside = {root}, [], []

    def leads_out(path: str) -> bool:
        real = os.path.realpath(path)
        return not os.path.exists(real) or not (follow_links or real == root or real.startswith(f"{root}/"))

    def fail(error: OSError) -> None:
        raise error

    for parent, folders, files in os.walk(root, followlinks=True, onerror=fail):
        kept = []
        for name in sorted(folders + files):
            path = os.path.join(parent, name)
            if name.startswith(".") or name in SKIPPED:
                continue
            is_link = os.path.islink(path)
            if is_link and leads_out(path):
                outside.append(os.path.relpath(path, root))
            elif os.path.isfile(path):
                names.append(os.path.relpath(path, root))
            elif os.path.isdir(path):
                # a link to a folder that holds the link would never end
                if os.path.realpath(path) not in entered or not (is_link or follow_links):
                    kept.append(name)
                entered.add(os.path.realpath(path))
        folders[:] = kept
    return sorted(names), sorted(outside)


def split_suffix(name: str) -> tuple[str, str]:
    """A file's name without a sound's suffix, and that suffix in small letters or ""."""
    stem, suffix = os.path.splitext(name)
    return (stem, suffix.lower()) if suffix.lower() in AUDIO_SUFFIXES else (name, "")


class FileIndex:
    """Finds files by what tables call them: a path from the table's folder or from `source`, an absolute path, a path
    on another machine, with another suffix or none."""

    def __init__(self, source: Path, names: Iterable[str]):
        self.root = os.path.realpath(source)
        self.exact: dict[str, str] = {}
        self.by_name: dict[str, list[str]] = {}  # last part, or two, with the suffix and without => files
        for name in names:
            known = unicodedata.normalize("NFC", name)  # macOS writes accents as letters of their own
            self.exact[known] = name
            _, parent, base = f"//{known}".rsplit("/", 2)
            stem = os.path.splitext(base)[0]
            for key in dict.fromkeys((base, stem, f"{parent}/{base}", f"{parent}/{stem}")):
                self.by_name.setdefault(key, []).append(name)

    def find(self, name: str, folder: str = "") -> tuple[str | None, str]:
        """The file that a table in `folder` (below the source) calls `name`; or None, and why there is none."""
        text = unicodedata.normalize("NFC", name.strip())
        paths = [posixpath.join(self.root, base, form) for form in (text, text.replace("\\", "/"))
                 for base in (folder, "")]  # fmt: skip
        paths = [posixpath.normpath(path) for path in paths]
        for path in paths:
            if (found := self.exact.get(path.removeprefix(f"{self.root}/"))) is not None:
                return found, ""
        parts = [part for part in text.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        if not parts:
            return None, "without the name of a file"
        stem, _ = split_suffix(parts[-1])
        keys = ("/".join([*parts[-2:-1], parts[-1]]), "/".join([*parts[-2:-1], stem]), parts[-1], stem)
        found = next((self.by_name[key] for key in keys if key in self.by_name), [])
        nearest = _nearest(found, [*parts[:-1], stem])
        if len(nearest) == 1:
            return nearest[0], ""
        if nearest:
            return None, "whose name several folders or files have"
        is_out = not any(path.startswith(f"{self.root}/") for path in paths)
        return None, "whose file lies outside the folder" if is_out else "whose file is not there"


def _nearest(names: list[str], parts: list[str]) -> list[str]:
    """Those of the names that share most of their last parts with `parts`; suffixes do not count."""

    def shared(name: str) -> int:
        own = [*name.split("/")[:-1], os.path.splitext(posixpath.basename(name))[0]]
        pairs = zip(reversed([unicodedata.normalize("NFC", part) for part in own]), reversed(parts))
        count = 0
        for a, b in pairs:
            if a != b:
                break
            count += 1
        return count

    counts = [shared(name) for name in names]
    return [name for name, count in zip(names, counts) if count == max(counts)]
