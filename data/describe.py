"""What shards hold: a table, and a picture of it. Folders of shards, or folders of splits.

python -m data.describe shards/esc10 --picture esc10.png
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from audioldm2_pl.errors import UserError, run_tool
from audioldm2_pl.shards.reader import BadClip, ShardFolder, captions_of

from .histograms import draw
from .verify import splits_below


@dataclass
class Contents:
    """What the clips of one split, or of several, are."""

    seconds: list[float] = field(default_factory=list)  # of each clip
    words: list[int] = field(default_factory=list)  # of each caption
    transcripts: int = 0
    sources: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # seconds of its clips
    licences: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    left_out: int = 0

    def add(self, clip: dict[str, Any]) -> None:
        """Takes the fields of one clip's JSON."""
        seconds = float(clip["duration"])
        self.seconds.append(seconds)
        self.words += [len(caption.split()) for caption in captions_of(clip) if caption]
        self.transcripts += bool(clip.get("transcript"))
        self.sources[name_of(clip.get("source"))].append(seconds)
        self.licences[name_of(clip.get("licence"))].append(seconds)

    def merge(self, other: "Contents") -> None:
        self.seconds += other.seconds
        self.words += other.words
        self.transcripts += other.transcripts
        self.left_out += other.left_out
        for mine, others in ((self.sources, other.sources), (self.licences, other.licences)):
            for name, seconds in others.items():
                mine[name] += seconds


def read_contents(folder: Path) -> Contents:
    """A split's contents, of which bad clips are left out; UserError where a shard cannot be read."""
    contents = Contents()
    split = ShardFolder(folder)
    try:
        contents.left_out = len(split.index.get("skipped", ()))
        for shard, count in enumerate(split.counts):
            for number in range(count):
                try:
                    contents.add(fields_of(split, shard, number))
                except BadClip:
                    contents.left_out += 1
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{folder}: cannot be read ({error}); check it with python -m data.verify {folder}") from None
    return contents


def fields_of(split: ShardFolder, shard: int, number: int) -> dict[str, Any]:
    """A clip's fields, with its duration. BadClip where it has none."""
    clip = split.load(shard, number, silent=True)
    if "duration" not in clip:
        sound = split.load(shard, number)
        clip["duration"] = len(sound["waveform"]) / sound["sample_rate"]
    return clip


def name_of(value: Any) -> str:
    """A field's value as a terminal can show it."""
    return str(value or "unknown").encode("utf-8", "replace").decode()


def table(rows: dict[str, Contents]) -> str:
    """The splits under each other, then clips and hours by source and by licence, the largest first."""
    lines = [("split", "clips", "hours", "seconds a clip", "captions", "words a caption", "transcripts", "left out")]
    for name, contents in rows.items():
        numbers = (len(contents.seconds), len(contents.words), contents.transcripts, contents.left_out)
        clips, captions, transcripts, left_out = (f"{number:,}" for number in numbers)
        hours, lengths, words = hours_of(contents.seconds), spread(contents.seconds), spread(contents.words)
        lines.append((name, clips, hours, lengths, captions, words, transcripts, left_out))
    blocks = [columns(lines), "(lengths: least / median / most)"]
    for title in ("sources", "licences"):
        found = [(name, group) for name, contents in rows.items() for group in getattr(contents, title).items()]
        found.sort(key=lambda entry: -sum(entry[1][1]))
        cells = [(f"{name}  {group}", f"{len(times):,}", hours_of(times)) for name, (group, times) in found]
        blocks.append(columns([(title, "clips", "hours"), *cells]))
    return "\n\n".join(blocks)


def hours_of(seconds: Sequence[float]) -> str:
    return f"{sum(seconds) / 3600:,.3f}"


def spread(values: Sequence[float]) -> str:
    """`least / median / most`"""
    return " / ".join(f"{value:.4g}" for value in np.quantile(values, (0, 0.5, 1))) if values else "none"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Cells under each other, the first column to the left and the others to the right."""
    widths = [max(map(len, cells)) for cells in zip(*rows)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width) for place, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    )


def picture(contents: Contents, path: Path) -> None:
    """Histograms of clip and caption lengths, and hours by source and licence, as a PNG file."""
    hours = [
        {name: sum(seconds) / 3600 for name, seconds in groups.items()}
        for groups in (contents.sources, contents.licences)
    ]
    draw(
        path,
        histograms={"Seconds a clip": contents.seconds, "Words a caption": contents.words},
        bars={"Hours by source": hours[0], "Hours by licence": hours[1]},
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="SHARDS")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="a PNG of all of them together")
    arguments = parser.parse_args(argv)

    def describe() -> None:
        splits = [split for folder in arguments.folders for split in splits_below(folder) or [folder]]
        rows = {str(split): read_contents(split) for split in splits}
        print(table(rows))
        if arguments.picture is not None:
            together = Contents()
            for contents in rows.values():
                together.merge(contents)
            picture(together, arguments.picture)
            print(f"\npicture: {arguments.picture}")

    return run_tool(describe)


if __name__ == "__main__":
    sys.exit(main())
