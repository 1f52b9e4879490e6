"""Command line of the evaluation tools: `python -m evaluation COMMAND …`; heavy imports wait until a command runs."""

import argparse
import sys


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
    return parser


def main(arguments: list[str] | None = None) -> int:
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)  # overrides may also stand behind options
    if unknown := [word for word in rest if word.startswith("-") or "=" not in word]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    from audioldm2_pl.config import load_experiment
    from audioldm2_pl.errors import UserError

    from .report import ReportOptions, write_report

    try:
        experiment = load_experiment(options.experiment, options.overrides + rest)
        write_report(
            experiment,
            ReportOptions(
                clips_per_class=options.clips_per_class,
                order_clips=options.order_clips,
                batch_size=options.batch_size,
                device=options.device,
                fresh=options.fresh,
            ),
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
