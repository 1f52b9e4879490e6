"""One corpus, as its file describes it, and the command line that turns it into shards:
`python -m data.<corpus> SOURCE OUTPUT`."""

import argparse
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from audioldm2_pl.errors import UserError, run_tool

from .engines import ENGINES
from .leakage import excluded_ids, without_ids
from .shards import SHUFFLE_CLIPS, Clip, ShardOptions, summary, write_shards

EXCLUDE_HELP = (
    "lists of evaluation clips that must not be trained on: AudioCaps test.csv and val.csv, MusicCaps' CSV, WavCaps' "
    "blacklists, AudioSet's eval_segments.csv, Clotho's metadata, ESC-50's esc50.csv; without a FILE every clip stays"
)

MAX_SECONDS = 600.0
MAX_SECONDS_OPTION = {
    "type": float,
    "default": MAX_SECONDS,
    "metavar": "S",
    "help": "taken of a recording, from its start",
}


@dataclass(frozen=True)
class Corpus:
    """What a corpus file says of its corpus."""

    description: str | None  # of the command line
    splits: Sequence[str]
    read: Callable[..., Iterable[Clip]]  # (source, split, **options) => every clip of a split
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # flag -> keywords of argparse
    held_out: Callable[..., set[str]] = lambda source, **options: set()  # (source, **options) => its evaluation clips
    exclude: Literal["none", "optional", "required"] = "none"  # lists of other corpora's evaluation clips
    # (source, **options) => what `read` and `held_out` get instead of them, for corpora that are looked through once
    survey: Callable[..., Any] | None = None

    def clips(self, source: Any, split: str, exclude: Sequence[Path] | None = None, **options: Any) -> Iterable[Clip]:
        """The clips of a split; "train" comes without the held-out recordings and those of the lists `exclude`."""
        found = self.read(source, split, **options)
        if split != "train":
            return found
        excluded = excluded_ids(exclude if self.exclude == "required" else exclude or ())
        return without_ids(found, excluded | self.held_out(source, **options), exclude or ())

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Writes each split to OUTPUT/<split>, unless it has no clips; returns the exit code."""
        parser = argparse.ArgumentParser(
            description=self.description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("source", type=Path, metavar="SOURCE", help="the corpus as downloaded")
        parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder for the splits")
        parser.add_argument("--splits", nargs="+", choices=self.splits, default=list(self.splits))
        add_shard_options(parser)
        common = {action.dest for action in parser._actions}
        if self.exclude != "none":
            parser.add_argument("--exclude", nargs="*", type=Path, metavar="FILE", help=EXCLUDE_HELP)
        for flag, keywords in self.options.items():
            parser.add_argument(flag, **keywords)
        arguments = parser.parse_args(argv)
        options = {name: value for name, value in vars(arguments).items() if name not in common}
        return run_tool(lambda: self.write(arguments, options))

    def write(self, arguments: argparse.Namespace, options: dict[str, Any]) -> None:
        if not arguments.source.is_dir():
            raise UserError(f"{arguments.source}: no such folder")
        num_written, source = 0, arguments.source
        if self.survey is not None:
            kept = {name: options.pop(name) for name in ("exclude",) if name in options}
            source, options = self.survey(source, **options), kept
        for split in arguments.splits:
            output = arguments.output / split
            printed = io.StringIO()  # and printed once more when the clips are written
            with redirect_stdout(printed), redirect_stderr(printed):
                total = sum(1 for _ in self.clips(source, split, **options))
            if total:
                write_split(self.clips(source, split, **options), output, arguments, total)
                num_written += 1
                continue
            print(printed.getvalue(), end="")
            if output.exists():
                raise UserError(f"{output} is of an earlier run, now without clips; remove it")
        if not num_written:
            raise UserError(f"{arguments.source}: no clips of {', '.join(arguments.splits)} found")


def add_made_options(parser: argparse.ArgumentParser, seconds: float, clips_per_shard: int) -> None:
    """Options of a corpus that is made, not read: clips of each split, their wordings, length and seed."""
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder for the splits")
    parser.add_argument("--clips", type=int, default=4800, metavar="N", help="training clips")
    parser.add_argument("--test-clips", type=int, default=480, metavar="N")
    parser.add_argument("--judge-clips", type=int, default=1200, metavar="N")
    parser.add_argument("--captions", type=int, default=1, metavar="N", help="wordings of a training clip")
    parser.add_argument("--seconds", type=float, default=seconds, metavar="S", help="of a clip")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    add_shard_options(parser)
    # training draws from several shards at a time: small ones mix a small corpus better
    parser.set_defaults(clips_per_shard=clips_per_shard)


def add_shard_options(parser: argparse.ArgumentParser) -> None:
    """An option for each field of `ShardOptions`, under the field's name."""
    parser.add_argument("--sample-rate", type=int, default=ShardOptions.sample_rate, metavar="HZ")
    parser.add_argument(
        "--shard-gib", type=float, default=ShardOptions.shard_gib, metavar="GIB", help="size of a shard (default 1)"
    )
    parser.add_argument("--clips-per-shard", type=int, metavar="N", help="at most so many clips in a shard")
    parser.add_argument(
        "--workers", dest="num_workers", type=int, metavar="N", help="processes (default: one per core)"
    )
    parser.add_argument(
        "--shuffle", type=int, default=SHUFFLE_CLIPS, metavar="N",
        help="spread a train split's clips over its shards, holding back N of them; 0 keeps their order",
    )  # fmt: skip
    parser.add_argument("--engine", choices=sorted(ENGINES), default="local", help="ray: on a cluster (RAY_ADDRESS)")


def write_split(clips: Iterable[Clip], output: Path, arguments: argparse.Namespace, total: int) -> None:
    """Writes and reports one split of `total` clips, with the options of `add_shard_options`."""
    options = {option.name: getattr(arguments, option.name) for option in fields(ShardOptions)}
    if output.name != "train":
        options["shuffle"] = 0
    print(summary(output, write_shards(clips, output, total, **options)))
