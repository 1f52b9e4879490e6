"""Command line of the evaluation tools: `python -m evaluation COMMAND …`; heavy imports wait until a command runs."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from audioldm2_pl.cli import parse_with_overrides
from audioldm2_pl.errors import UserError, run_tool

from .listening.commands import add_listen_parser


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m evaluation", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    add_report_parser(commands)
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


def add_report_parser(commands: argparse._SubParsersAction) -> None:
    report = commands.add_parser(
        "report",
        help="generate audio for the held-out prompts, score it, write it all into one page",
        description="Without --protocol: generates audio for the prompts of one experiment's test split, lets a judge "
        "that never met the generator classify it, and writes runs/NAME/report/report.html and report.json. With "
        "--protocol: generates the test set with each experiment's model, scores it and lays the scores beside the "
        "paper's tables. Audio that is already there is kept.",
    )
    report.add_argument("experiments", nargs="+", metavar="EXPERIMENT.yaml", help="and key=value, changes to them")
    report.add_argument("--batch-size", type=int, default=10, help="clips at a time (default 10)")
    report.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 … (default: cuda where there is one)")
    report.add_argument("--fresh", action="store_true", help="train the judge and generate all audio anew")
    report.set_defaults(run=run_report, overrides=[])
    judged = report.add_argument_group("the judge's report")
    judged.add_argument("--clips-per-class", type=int, help="one-event clips a class (default 10)")
    judged.add_argument("--order-clips", type=int, help="two-event clips (default 60)")
    scored = report.add_argument_group("the benchmark")
    scored.add_argument("--protocol", help="a name in evaluation/protocols.yaml, or a YAML file of one")
    scored.add_argument("--output", type=html_path, help="default runs/NAME/benchmark/report.html, of the first NAME")
    scored.add_argument("--test-set", type=Path, metavar="SHARDS", help="default data.test of each experiment")
    scored.add_argument("--clips", type=int, help="drawn at random from the test set (default all)")
    scored.add_argument("--figures", metavar="NAME,NAME", help="guidance, reconstruction, tsne, continuation")
    scored.add_argument("--figure-clips", type=int, help="that a figure is measured on (default 32)")
    scored.add_argument("--labelled", type=Path, metavar="SHARDS", help="clips of the t-SNE (default the test set)")
    scored.add_argument("--weights", type=Path, help="folder of the protocol's checkpoints (default weights)")
    scored.add_argument("--download", action="store_true", default=None, help="fetch checkpoints that are missing")
    scored.add_argument("--resamples", type=int, help="of Fréchet distances (default 200); means take 25 times as many")


def html_path(text: str) -> Path:
    if not text.endswith(".html"):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .html")
    return Path(text)


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


OF_JUDGE = ("clips_per_class", "order_clips")
OF_BENCHMARK = (
    "output",
    "test_set",
    "clips",
    "figures",
    "figure_clips",
    "labelled",
    "weights",
    "download",
    "resamples",
)


def run_report(options: argparse.Namespace) -> None:
    from audioldm2_pl.config import load_experiment

    paths = [word for word in options.experiments if "=" not in word]
    overrides = [word for word in options.experiments if "=" in word] + options.overrides
    if not paths:
        raise UserError("name an experiment's YAML, for example experiments/demo.yaml")
    foreign, needs = (OF_JUDGE, "goes without") if options.protocol else (OF_BENCHMARK, "needs")
    if given := [name for name in foreign if getattr(options, name) is not None]:
        raise UserError(f"--{given[0].replace('_', '-')} {needs} --protocol")
    if len(paths) > 1 and not options.protocol:
        raise UserError(f"{len(paths)} experiments: they are compared under a protocol; give --protocol NAME")
    experiments = [load_experiment(path, overrides) for path in paths]
    (run_benchmark if options.protocol else run_judge)(experiments, options)


def given_of(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the options that were given; the others keep their dataclass's default."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def run_judge(experiments: list[Any], options: argparse.Namespace) -> None:
    from .report import ReportOptions, write_report

    given = given_of(options, *OF_JUDGE, "batch_size", "device", "fresh")
    write_report(experiments[0], ReportOptions(**given))


def run_benchmark(experiments: list[Any], options: argparse.Namespace) -> None:
    from audioldm2_pl.cli import pick_device

    from .benchmark import write_benchmark
    from .benchmark_audio import BenchmarkOptions
    from .score import ScoreOptions

    scoring = ScoreOptions(**given_of(options, "weights", "download", "resamples"), device=pick_device(options.device))
    benchmark = BenchmarkOptions(
        **given_of(options, "protocol", "test_set", "clips", "figure_clips", "labelled", "batch_size", "fresh"),
        figures=options.figures.split(",") if options.figures else [],
        device=options.device,
        score=scoring,
    )
    output = options.output or experiments[0].run_folder / "benchmark" / "report.html"
    write_benchmark(experiments, benchmark, output)


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
    return run_tool(lambda: options.run(options))


if __name__ == "__main__":
    sys.exit(main())
