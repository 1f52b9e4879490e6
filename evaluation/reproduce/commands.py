"""The command line of `python -m evaluation reproduce`."""

import argparse
from pathlib import Path

from audioldm2_pl.errors import UserError


def add_reproduce_parser(commands: argparse._SubParsersAction) -> None:
    reproduce = commands.add_parser(
        "reproduce",
        help="a table of the papers: what it needs, its commands in order, published beside measured numbers",
        description="Makes a table: shards, trainings, clips and scores that are missing, in order, each by a command "
        "of its own; what is there is kept. Writes RUNS/reproduce/TABLE/table.csv and table.md. key=value are changes "
        "to every experiment, such as trainer.devices=8.",
    )
    reproduce.add_argument("table", help="table_1 to table_5, table_5_synthetic, or a YAML of yours")
    reproduce.add_argument("--dry-run", action="store_true", help="only print the plan: needs, costs, commands")
    reproduce.add_argument("--seeds", type=int, default=1, help="trainings of each row (%(default)s)")
    reproduce.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="these alone (default: all)")
    reproduce.add_argument(
        "--system", action="append", default=[], dest="systems", metavar="ROW=[SYSTEM:]SOURCE",
        help="measure a row on a folder of clips, or on what SYSTEM of `generate` makes with SOURCE; may come again",
    )  # fmt: skip
    reproduce.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs (%(default)s)")
    reproduce.add_argument("--shards", type=Path, default=Path("shards"), help="folder of all corpora (%(default)s)")
    reproduce.add_argument("--weights", type=Path, default=Path("weights"), help="of the protocol (%(default)s)")
    reproduce.add_argument("--download", action="store_true", help="fetch weights of the protocol that are missing")
    reproduce.add_argument("--device", default="auto", help="of generation (default: cuda where there is one)")
    reproduce.set_defaults(run=run_reproduce, overrides=[])


def run_reproduce(options: argparse.Namespace) -> None:
    from .plan import plan_of
    from .run import reproduce
    from .table import Choices, open_table

    names = ("runs", "shards", "weights", "seeds", "rows", "overrides", "device", "download")
    choices = Choices(
        **{name: getattr(options, name) for name in names}, systems=dict(map(parse_system, options.systems))
    )
    found = open_table(options.table, choices)
    if options.dry_run:
        print(plan_of(found))
    else:
        reproduce(found)


def parse_system(text: str) -> tuple[str, str]:
    """`ROW=[SYSTEM:]SOURCE` => (row, the rest). UserError for anything else, and for an unknown system."""
    from audioldm2_pl.fields import nearest

    from ..systems import SYSTEMS

    row, equals, source = text.partition("=")
    system, colon, folder = source.partition(":")
    if not row or not equals or not source or (colon and not folder):
        raise UserError(f"--system {text}: write ROW=FOLDER, or ROW=SYSTEM:SOURCE")
    if colon and system not in SYSTEMS:
        raise UserError(f"--system {text}: {system}: {nearest(system, sorted(SYSTEMS))}")
    return row, source
