"""Command line of the evaluation tools: `python -m evaluation COMMAND …`; heavy imports wait until a command runs."""

import argparse
import json
import sys
from pathlib import Path

from audioldm2_pl.cli import parse_with_overrides
from audioldm2_pl.errors import UserError

from .listening.commands import add_listen_parser


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
    add_score_parser(commands)
    add_listen_parser(commands)
    return parser


def json_path(text: str) -> Path:
    if not text.endswith(".json"):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .json")
    return Path(text)


def add_score_parser(commands: argparse._SubParsersAction) -> None:
    score = commands.add_parser(
        "score",
        help="score a folder of audio under a protocol: FAD, KL, CLAP … with intervals",
        description="Scores any system's folder of audio. Generated and reference clips and captions pair by name.",
    )
    score.add_argument("generated", type=Path, help="folder of generated audio")
    score.add_argument("--reference", type=Path, help="folder of real audio under the same names")
    score.add_argument("--captions", type=Path, help="CSV with the columns filename and caption")
    score.add_argument("--protocol", required=True, help="a name in evaluation/protocols.yaml, or a YAML file of one")
    score.add_argument("--output", type=json_path, help="result JSON (default GENERATED.PROTOCOL.json)")
    score.add_argument("--weights", type=Path, default=Path("weights"), help="folder of checkpoints (default weights)")
    score.add_argument("--download", action="store_true", help="fetch checkpoints that are missing")
    score.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 … (default cpu)")
    score.add_argument("--batch-size", type=int, default=8, help="windows at a time (default 8)")
    score.add_argument("--resamples", type=int, default=200, help="of Fréchet distances; means take 25 times as many")
    score.set_defaults(run=run_score)
    compare = commands.add_parser("compare", help="two results of one protocol: the differences with intervals")
    compare.add_argument("first", type=Path, help="JSON of `score`")
    compare.add_argument("second", type=Path, help="the same of another system")
    compare.set_defaults(run=run_compare)


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


def run_score(options: argparse.Namespace) -> None:
    from .score import ScoreOptions, score_folders, table, write_result

    settings = ScoreOptions(
        weights=options.weights,
        device=options.device,
        batch_size=options.batch_size,
        resamples=options.resamples,
        download=options.download,
    )
    output = options.output or Path(f"{options.generated}.{Path(options.protocol).stem}.json")
    result, samples = score_folders(options.generated, options.reference, options.captions, options.protocol, settings)
    write_result(result, samples, output)
    print(f"{table(result)}\n{output}")


def run_compare(options: argparse.Namespace) -> None:
    from .compare import compare, comparison_table, read_result

    print(comparison_table(compare(read_result(options.first), read_result(options.second))))


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
