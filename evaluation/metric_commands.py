"""`python -m evaluation trust`: what the metrics themselves are worth."""

import argparse
from pathlib import Path

from audioldm2_pl.errors import UserError

SUFFIXES = (".json", ".csv")


def add_trust_parser(commands: argparse._SubParsersAction) -> None:
    trust = commands.add_parser(
        "trust",
        help="every metric's correlation with human ratings of the same clips",
        description="Spearman's, Kendall's and Pearson's correlation of the scores of protocols with ratings, over "
        "clips and over systems. The CSV is that of `listen ratings`, of the AudioMOS Challenge, of RELATE, or any "
        "with the columns file and rating.",
    )
    trust.add_argument("ratings_file", type=Path, metavar="RATINGS.csv", help="a row a clip, or a row an answer")
    trust.add_argument(
        "--protocol", action="append", required=True, metavar="NAME", help="whose scores; give it once a protocol"
    )
    trust.add_argument("--audio", type=Path, help="folder of the rated files (default the CSV's)")
    trust.add_argument(
        "--system", action="append", default=[], metavar="NAME=FOLDER", help="a system's clips; others are left out"
    )
    trust.add_argument("--reference", type=Path, help="folder of real audio under the clips' names")
    trust.add_argument("--captions", type=Path, help="CSV with the columns filename and caption")
    trust.add_argument("--ratings", default="", metavar="COLUMN,COLUMN", help="default those that are known by name")
    trust.add_argument("--output", type=table_path, help="JSON or CSV (default RATINGS.trust.json)")
    add_network_options(trust)
    trust.add_argument("--resamples", type=int, default=1000, help="of the intervals (default 1000)")
    trust.set_defaults(run=run_trust)


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Where the networks of a protocol come from, and how they run."""
    parser.add_argument("--weights", type=Path, default=Path("weights"), help="folder of checkpoints (default weights)")
    parser.add_argument("--download", action="store_true", help="fetch checkpoints that are missing")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 … (default cpu)")
    parser.add_argument("--batch-size", type=int, default=8, help="windows at a time (default 8)")


def table_path(text: str) -> Path:
    if not text.endswith(SUFFIXES):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in {' or '.join(SUFFIXES)}")
    return Path(text)


def folders_of(pairs: list[str]) -> dict[str, Path]:
    """NAME=FOLDER, each name once."""
    folders: dict[str, Path] = {}
    for pair in pairs:
        name, mark, folder = pair.partition("=")
        if not mark or not folder or name in folders:
            raise UserError(f"--system {pair}: has to be NAME=FOLDER, each name once")
        folders[name] = Path(folder)
    return folders


def run_trust(options: argparse.Namespace) -> None:
    from .score import ScoreOptions
    from .trust import TrustOptions, measure_trust, trust_table, write_trust

    scoring = ScoreOptions(options.weights, options.device, options.batch_size, 0, download=options.download)
    settings = TrustOptions(
        options.protocol, options.audio, folders_of(options.system), options.reference, options.captions,
        [name for name in options.ratings.split(",") if name], options.resamples, scoring,
    )  # fmt: skip
    found = measure_trust(options.ratings_file, settings)
    output = options.output or options.ratings_file.with_suffix(".trust.json")
    write_trust(found, options.ratings_file, output)
    print(f"{trust_table(found)}\n{output}")
