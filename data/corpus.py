"""The command line that turns a corpus into shards: `python -m data.<corpus> SOURCE OUTPUT`."""

import argparse
import io
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from audioldm2_pl.errors import UserError, run_tool

from .engines import ENGINES
from .shards import SHARD_GIB, Clip, summary, write_shards


def add_shard_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sample-rate", type=int, default=16_000, metavar="HZ")
    parser.add_argument("--shard-gib", type=float, default=SHARD_GIB, metavar="GIB", help="size of a shard (default 1)")
    parser.add_argument("--clips-per-shard", type=int, metavar="N", help="at most so many clips in a shard")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    parser.add_argument("--engine", choices=sorted(ENGINES), default="local", help="ray: on a cluster (RAY_ADDRESS)")


def write_split(clips: Iterable[Clip], output: Path, arguments: argparse.Namespace, total: int) -> None:
    """Writes and reports one split of `total` clips, with the options of `add_shard_options`."""
    index = write_shards(
        clips,
        output,
        arguments.sample_rate,
        shard_gib=arguments.shard_gib,
        clips_per_shard=arguments.clips_per_shard,
        num_workers=arguments.workers,
        engine=arguments.engine,
        total=total,
    )
    print(summary(output, index))


def run_corpus(
    clips: Callable[..., Iterable[Clip]],
    splits: Sequence[str],
    description: str | None,
    argv: Sequence[str] | None = None,
    add_options: Callable[[argparse.ArgumentParser], None] | None = None,
) -> int:
    """The command line of a corpus file: SOURCE OUTPUT → OUTPUT/<split>; returns the exit code.

    `clips(source: Path, split: str, **options)` yields the clips of one split; `add_options` adds
    the corpus's own options to the parser. A split without clips is not written.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="the corpus as downloaded")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder for the splits")
    parser.add_argument("--splits", nargs="+", choices=splits, default=list(splits))
    add_shard_options(parser)
    common = {action.dest for action in parser._actions}
    if add_options is not None:
        add_options(parser)
    arguments = parser.parse_args(argv)
    options = {name: value for name, value in vars(arguments).items() if name not in common}

    def write_splits() -> None:
        if not arguments.source.is_dir():
            raise UserError(f"{arguments.source}: no such folder")
        num_written = 0
        for split in arguments.splits:
            output = arguments.output / split
            said = io.StringIO()  # which it says again when its clips are written
            with redirect_stdout(said), redirect_stderr(said):
                total = sum(1 for _ in clips(arguments.source, split, **options))
            if total:
                write_split(clips(arguments.source, split, **options), output, arguments, total)
                num_written += 1
                continue
            print(said.getvalue(), end="")
            if output.exists():
                raise UserError(f"{output} is of an earlier run, now without clips; remove it")
        if not num_written:
            raise UserError(f"{arguments.source}: no clips of {', '.join(arguments.splits)} found")

    return run_tool(write_splits)
