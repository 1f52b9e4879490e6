"""Command line of the evaluation tools: `python -m evaluation COMMAND …`; heavy imports wait until a command runs."""

import argparse
import json
import sys
from pathlib import Path

from audioldm2_pl.cli import parse_with_overrides
from audioldm2_pl.errors import UserError


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m evaluation", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser(
        "report",
        help="generate audio for the held-out prompts, score it, write report.html and report.json",
        description="Generates audio for the prompts of the test split with the trained model, "
        "lets a judge that never met the generator classify it, and writes "
        "runs/NAME/report/report.html and report.json. Audio that is already there is kept.",
    )
    report.add_argument("experiment", help="the experiment's YAML, e.g. experiments/demo.yaml")
    report.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the YAML")
    report.add_argument("--clips-per-class", type=int, default=10, help="one-event clips a class (default 10)")
    report.add_argument("--order-clips", type=int, default=60, help="two-event clips (default 60)")
    report.add_argument("--batch-size", type=int, default=10, help="clips at a time (default 10)")
    report.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 … (default: cuda where there is one)")
    report.add_argument("--fresh", action="store_true", help="train the judge and generate all audio anew")
    report.set_defaults(run=run_report)
    outside = commands.add_parser(
        "outside", help="score folders of classes with another program, beside noise and shuffles"
    )
    outside.add_argument("generated", type=Path, help="folder with one sub-folder a class")
    outside.add_argument("reference", type=Path, help="the same classes, real")
    outside.add_argument(
        "--scorer", type=Path, required=True, help="program: SCORER GENERATED REFERENCE prints one JSON"
    )
    outside.add_argument("--output", type=Path, required=True, help="JSON file for the scores")
    outside.set_defaults(run=run_outside)
    return parser


def run_report(options: argparse.Namespace) -> None:
    from audioldm2_pl.config import load_experiment

    from .report import ReportOptions, write_report

    fields = ("clips_per_class", "order_clips", "batch_size", "device", "fresh")
    experiment = load_experiment(options.experiment, options.overrides)
    write_report(experiment, ReportOptions(**{name: getattr(options, name) for name in fields}))


def run_outside(options: argparse.Namespace) -> None:
    from .outside import score_outside

    scores = score_outside(options.scorer, options.generated, options.reference)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(scores, indent=2) + "\n")
    print(json.dumps(scores, indent=2))


def main(arguments: list[str] | None = None) -> int:
    options = parse_with_overrides(build_parser(), arguments)
    try:
        options.run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
