"""What shards hold: a table, and a picture of it. Folders of shards, or folders of splits.

python -m data.describe shards/esc10 --picture esc10.png
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from audioldm2_pl.atomic import written_whole
from audioldm2_pl.errors import UserError, run_tool
from audioldm2_pl.shards.format import BadClip, captions_of, picture_suffixes
from audioldm2_pl.shards.reader import ShardFolder

from .verify import folders_parser, splits_below

COLOUR = "#812581"
NUM_BINS = 40
MAX_BARS = 8  # the rest become one
MAX_LABEL = 34  # characters


@dataclass
class Contents:
    """What the clips of one split, or of several, are."""

    seconds: list[float] = field(default_factory=list)  # of each clip
    words: list[int] = field(default_factory=list)  # of each caption
    sources: list[str] = field(default_factory=list)  # of each clip
    licences: list[str] = field(default_factory=list)  # of each clip
    transcripts: int = 0
    pictures: int = 0
    left_out: int = 0

    def add(self, clip: dict[str, Any]) -> None:
        """Adds a clip by the fields of its JSON."""
        self.seconds.append(float(clip["duration"]))
        self.words += [len(caption.split()) for caption in captions_of(clip) if caption]
        self.sources.append(name_of(clip.get("source")))
        self.licences.append(name_of(clip.get("licence")))
        self.transcripts += bool(clip.get("transcript"))
        self.pictures += len(clip["pictures"])

    def __add__(self, other: "Contents") -> "Contents":
        return Contents(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(self)))

    def grouped(self, names: Sequence[str]) -> dict[str, list[float]]:
        """Name -> seconds of its clips, for `sources` or `licences`."""
        groups: dict[str, list[float]] = {}
        for name, seconds in zip(names, self.seconds, strict=True):
            groups.setdefault(name, []).append(seconds)
        return groups


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
    """A clip's fields, with its duration and its pictures' suffixes. BadClip where it has no duration."""
    clip = split.load(shard, number, with_sound=False)
    if "duration" not in clip:
        sound = split.load(shard, number)
        clip["duration"] = len(sound["waveform"]) / sound["sample_rate"]
    return {**clip, "pictures": picture_suffixes(split.locate(shard, number)[1])}


def name_of(value: Any) -> str:
    """A field's value as a terminal can show it."""
    return str(value or "unknown").encode("utf-8", "replace").decode()


def table(rows: dict[str, Contents]) -> str:
    """The splits under each other, then clips and hours by source and by licence, the largest first."""
    lines = [("split", "clips", "hours", "seconds a clip", "captions", "words a caption", "transcripts",
              "pictures", "left out")]  # fmt: skip
    for name, contents in rows.items():
        numbers = (len(contents.seconds), len(contents.words), contents.transcripts, contents.pictures)
        clips, captions, transcripts, pictures = (f"{number:,}" for number in numbers)
        hours, lengths, words = hours_of(contents.seconds), spread(contents.seconds), spread(contents.words)
        left_out = f"{contents.left_out:,}"
        lines.append((name, clips, hours, lengths, captions, words, transcripts, pictures, left_out))
    blocks = [columns(lines), "(lengths: least / median / most)"]
    for title in ("sources", "licences"):
        found = [
            (name, group)
            for name, contents in rows.items()
            for group in contents.grouped(getattr(contents, title)).items()
        ]
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
    widths = [-max(map(len, cells)) if column == 0 else max(map(len, cells)) for column, cells in enumerate(zip(*rows))]
    return "\n".join("  ".join(f"%{width}s" % cell for cell, width in zip(row, widths)) for row in rows)


def draw(contents: Contents, path: Path) -> None:
    """Histograms of clip and caption lengths, and hours by source and licence, as a PNG file."""
    from matplotlib.figure import Figure  # takes a second

    figure = Figure(figsize=(15, 9), layout="constrained")
    histograms, bars = figure.subplots(2, 2)
    for axes, title, values in zip(
        histograms, ("Seconds a clip", "Words a caption"), (contents.seconds, contents.words)
    ):
        axes.hist(values, bin_edges(np.asarray(values, dtype=float)), color=COLOUR)
        axes.set_title(f"{title}, median {np.median(values):.4g}" if values else f"{title}: none")
    for axes, title, names in zip(bars, ("Hours by source", "Hours by licence"), (contents.sources, contents.licences)):
        rows = largest({name: sum(seconds) / 3600 for name, seconds in contents.grouped(names).items()})
        drawn = axes.barh(range(len(rows)), [hours for _, hours in rows], color=COLOUR)
        axes.bar_label(drawn, [f"{hours:,.2f}" for _, hours in rows], padding=4)
        axes.set_yticks(range(len(rows)), [name[:MAX_LABEL] for name, _ in rows], parse_math=False)
        axes.invert_yaxis()
        axes.set_title(title)
    with written_whole(path) as part:
        figure.savefig(part, format="png")


def bin_edges(values: np.ndarray) -> np.ndarray:
    """Edges (bins + 1,) of a histogram of values (N,); whole numbers, if they are few, are each the middle of a bin."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    is_whole = bool((values == np.round(values)).all()) or low == high
    if is_whole and high - low < NUM_BINS:
        return np.arange(low, high + 2) - 0.5
    return np.linspace(low, high, NUM_BINS + 1)


def largest(amounts: Mapping[str, float]) -> list[tuple[str, float]]:
    """The largest amounts by name, the rest as one."""
    rows = sorted(amounts.items(), key=lambda row: -row[1])
    if len(rows) > MAX_BARS:
        rest = rows[MAX_BARS - 1 :]
        rows = [*rows[: MAX_BARS - 1], (f"{len(rest)} others", sum(amount for _, amount in rest))]
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = folders_parser(__doc__)
    parser.add_argument("--picture", type=Path, metavar="FILE", help="a PNG of all of them together")
    arguments = parser.parse_args(argv)

    def describe() -> None:
        splits = [split for folder in arguments.folders for split in splits_below(folder)]
        rows = {str(split): read_contents(split) for split in splits}
        print(table(rows))
        if arguments.picture is not None:
            draw(sum(rows.values(), Contents()), arguments.picture)
            print(f"\npicture: {arguments.picture}")

    return run_tool(describe)


if __name__ == "__main__":
    sys.exit(main())
