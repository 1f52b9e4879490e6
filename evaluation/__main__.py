"""Command line of the evaluation tools: `audioldm2-eval COMMAND …`; heavy imports wait until a command runs."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from audioldm2_pl.errors import UserError, run_tool
from audioldm2_pl.flags import parse_with_overrides

from .listening.commands import add_listen_parser
from .metric_commands import add_network_options, add_trust_parser
from .reproduce.commands import add_reproduce_parser


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="audioldm2-eval", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    add_report_parser(commands)
    add_external_parser(commands)
    add_copy_synthesis_parser(commands)
    add_generate_parser(commands)
    add_score_parser(commands)
    add_trust_parser(commands)
    add_listen_parser(commands)
    add_curve_parser(commands)
    add_reproduce_parser(commands)
    return parser


def add_external_parser(commands: argparse._SubParsersAction) -> None:
    external = commands.add_parser(
        "external", aliases=["outside"], help="score folders of classes with another program, beside noise and shuffles"
    )
    external.add_argument("generated", type=Path, help="folder with one sub-folder a class")
    external.add_argument("reference", type=Path, help="the same classes, real")
    external.add_argument(
        "--scorer", type=Path, required=True, help="program: SCORER GENERATED REFERENCE prints one JSON"
    )
    external.add_argument("--output", type=Path, required=True, help="JSON file for the scores")
    external.set_defaults(run=run_external)


def add_copy_synthesis_parser(commands: argparse._SubParsersAction) -> None:
    copy = commands.add_parser(
        "copy-synthesis", help="recordings through log-mel and vocoder and back: the vocoder's own part in every score"
    )
    copy.add_argument("model", help="model folder or hub id with a vocoder")
    copy.add_argument("sounds", type=Path, help="folder of recordings, sub-folders too")
    copy.add_argument("output", type=Path, help="folder for the same names as .wav")
    copy.add_argument("--match", default="*", metavar="GLOB", help='names to take, for example "3-*" (default all)')
    copy.add_argument("--vocoder", choices=["folder", "griffin-lim"], default="folder", help="default the folder's")
    copy.set_defaults(run=run_copy_synthesis)


def add_report_parser(commands: argparse._SubParsersAction) -> None:
    report = commands.add_parser(
        "report",
        help="generate audio for the held-out prompts, score it, write it all into one page",
        description="Generates audio of a test set with each experiment's model, scores it under a protocol and writes "
        "one page and a JSON file. The protocol classification (the default) asks a classifier that was trained apart "
        "which sound each labelled clip holds; the others set the scores beside the paper's tables. Audio that is "
        "there already is used again.",
    )
    report.add_argument("experiments", nargs="+", metavar="EXPERIMENT.yaml", help="and key=value, changes to them")
    report.add_argument("--protocol", help="a name in evaluation/protocols.yaml, or a YAML file (classification)")
    report.add_argument("--output", type=html_path, help="default runs/NAME/report/report.html, or PROTOCOL.html")
    report.add_argument("--test-set", type=Path, metavar="SHARDS", help="default data.test of each experiment")
    report.add_argument(
        "--system", choices=["text_to_audio", "loa_to_audio", "reconstruction"],
        help="what is scored: from text (default), from AudioMAE's LOA of the test set, through VAE and vocoder",
    )  # fmt: skip
    report.add_argument("--clips", type=int, help="drawn at random from the test set (default all)")
    report.add_argument("--clips-per-class", type=int, help="of classification: one-event clips a class (default 10)")
    report.add_argument("--order-clips", type=int, help="of classification: two-event clips (default 60)")
    report.add_argument(
        "--figures", metavar="NAME,NAME", help="of the paper: guidance, reconstruction, tsne, continuation; of "
        "editing: inpainting, extension, super_resolution, restyle, long_form"
    )  # fmt: skip
    report.add_argument("--figure-clips", type=int, help="that a figure is measured on (default 32)")
    report.add_argument("--labelled", type=Path, metavar="SHARDS", help="clips of the t-SNE (default the test set)")
    report.add_argument("--weights", type=Path, help="folder of the protocol's checkpoints (default weights)")
    report.add_argument("--download", action="store_true", default=None, help="fetch checkpoints that are missing")
    report.add_argument("--resamples", type=int, help="of Fréchet distances (default 200); means take 25 times as many")
    report.add_argument("--batch-size", type=int, help="clips at a time (default 10)")
    report.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 … (default: cuda where there is one)")
    report.add_argument("--fresh", action="store_true", help="train the classifier and generate all audio anew")
    report.set_defaults(run=run_report, overrides=[])


def add_generate_parser(commands: argparse._SubParsersAction) -> None:
    generate = commands.add_parser(
        "generate",
        help="a test set's captions through any system, at one length and level",
        description="A .wav a caption by our model, a rival's or a folder of clips, for `score` and `listen`. "
        "Clips that are there stay. key=value are settings of the system, such as num_inference_steps=100.",
    )
    generate.add_argument("system", help="ours, audioldm2, musicgen … : a file in evaluation/systems/ names each")
    generate.add_argument("source", help="model folder, hub id or folder of clips")
    generate.add_argument("captions", type=Path, metavar="CAPTIONS.csv", help="with the columns filename and caption")
    generate.add_argument("output", type=Path, help="folder for the clips, and system.json that says how they are made")
    generate.add_argument("--seconds", type=float, help="of every clip: longer ones are cut, shorter ones padded (10)")
    generate.add_argument("--seed", type=int, help="default 0; each clip's own follows from it and the clip's name")
    generate.add_argument("--sample-rate", type=int, metavar="HZ", help="of the files (default 16000)")
    generate.add_argument("--peak", type=peak, default=0.5, help="of every clip, or null: its own (default 0.5)")
    generate.add_argument("--batch-size", type=int, help="clips at a time (default 8)")
    generate.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 … (default: cuda where there is one)")
    generate.set_defaults(run=run_generate, overrides=[])


def peak(text: str) -> float | None:
    return None if text == "null" else float(text)


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
        description="Scores any system's folder of audio. Reference clips, captions and labels pair with it by name.",
    )
    score.add_argument("generated", type=Path, help="folder of generated audio")
    score.add_argument("--reference", type=Path, help="folder of real audio under the same names")
    score.add_argument("--captions", type=Path, help="CSV with the columns filename and caption")
    score.add_argument("--labels", type=Path, help="CSV with the columns filename and label, a clip's events in order")
    score.add_argument("--protocol", required=True, help="a name in evaluation/protocols.yaml, or a YAML file of one")
    score.add_argument("--output", type=json_path, help="result JSON (default GENERATED.PROTOCOL.json)")
    add_network_options(score)
    score.add_argument("--resamples", type=int, default=200, help="of Fréchet distances; means take 25 times as many")
    score.set_defaults(run=run_score)
    compare = commands.add_parser("compare", help="two results of one protocol: the differences with intervals")
    compare.add_argument("first", type=Path, help="JSON of `score`")
    compare.add_argument("second", type=Path, help="the same of another system")
    compare.set_defaults(run=run_compare)


def add_curve_parser(commands: argparse._SubParsersAction) -> None:
    curve = commands.add_parser(
        "curve", help="score the exports of a run, while it trains or later: scores over batches"
    )
    curve.add_argument("experiment", type=Path, help="an experiment's YAML")
    curve.add_argument("overrides", nargs="*", metavar="key=value", help="as `train` was given them")
    curve.add_argument(
        "--protocol", default="audiomae", help="a name in evaluation/protocols.yaml, or a YAML (%(default)s)"
    )
    curve.add_argument("--clips", type=int, default=64, help="drawn from the test split (%(default)s)")
    curve.add_argument(
        "--watch", type=float, metavar="SECONDS", help="look for new exports this often, until interrupted"
    )
    curve.add_argument(
        "--weights", type=Path, help="folder of checkpoints (default the run's model, which has AudioMAE)"
    )
    curve.add_argument("--download", action="store_true", help="fetch checkpoints that are missing")
    curve.add_argument("--device", default="auto", help="cpu, cuda, mps (the best there is)")
    curve.set_defaults(run=run_curve)


def run_curve(options: argparse.Namespace) -> None:
    from audioldm2_pl.config import load_experiment
    from audioldm2_pl.sound_commands import pick_device

    from .curve import CurveOptions, follow
    from .score import ScoreOptions

    experiment, device = load_experiment(options.experiment, options.overrides), pick_device(options.device)
    weights = options.weights or experiment.model_folder
    scoring = ScoreOptions(weights=weights, device=device, download=options.download)
    print(follow(experiment, CurveOptions(options.protocol, options.clips, options.watch, device, scoring)))


LABELLED, UNLABELLED = ("clips_per_class", "order_clips"), ("clips", "system")  # options of protocols by their labels


def run_report(options: argparse.Namespace) -> None:
    from audioldm2_pl.config import load_experiment
    from audioldm2_pl.sound_commands import pick_device

    from .protocols import load_protocol
    from .report import ReportOptions, write_report
    from .score import ScoreOptions

    paths = [word for word in options.experiments if "=" not in word]
    overrides = [word for word in options.experiments if "=" in word] + options.overrides
    if not paths:
        raise UserError("name an experiment's YAML, for example experiments/demo.yaml")
    protocol = options.protocol or ReportOptions.protocol
    other = UNLABELLED if "labels" in load_protocol(protocol).needs else LABELLED
    if given := [name for name in other if getattr(options, name) is not None]:
        raise UserError(f"--{given[0].replace('_', '-')} is no option of the protocol {protocol}")
    if options.figures is not None:
        options.figures = options.figures.split(",")
    scoring = ScoreOptions(**given_of(options, "download", "resamples"), device=pick_device(options.device))
    given = given_of(
        options, "protocol", "test_set", "clips", "clips_per_class", "order_clips", "figures", "figure_clips",
        "labelled", "batch_size", "device", "fresh", "weights", "system",
    )  # fmt: skip
    experiments = [load_experiment(path, overrides) for path in paths]
    write_report(experiments, ReportOptions(**given, score=scoring), options.output)


def given_of(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the options that were given; the others keep their dataclass's default."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def run_external(options: argparse.Namespace) -> None:
    from .external import score_externally

    scores = score_externally(options.scorer, options.generated, options.reference)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(scores, indent=2) + "\n")
    print(json.dumps(scores, indent=2))


def run_copy_synthesis(options: argparse.Namespace) -> None:
    from .copy_synthesis import copy_synthesis

    written = copy_synthesis(
        options.model, options.sounds, options.output, options.match, options.vocoder == "griffin-lim"
    )
    print(f"{len(written)} files in {options.output}")


def run_generate(options: argparse.Namespace) -> None:
    from audioldm2_pl.fields import nearest
    from audioldm2_pl.sound_commands import pick_device

    from .systems import SYSTEMS
    from .systems.folder import ClipOptions, generate_clips, parse_settings

    if options.system not in SYSTEMS:
        raise UserError(f"{options.system}: no such system; {nearest(options.system, sorted(SYSTEMS))}")
    opener = SYSTEMS[options.system]
    given = given_of(options, "seconds", "seed", "sample_rate", "batch_size")
    settings = parse_settings(opener, options.overrides)
    clip_options = ClipOptions(**given, peak=options.peak, settings=settings, device=pick_device(options.device))
    written, kept = generate_clips(opener, options.source, options.captions, options.output, clip_options)
    print(f"{written} clips written, {kept} kept in {options.output}")


def run_score(options: argparse.Namespace) -> None:
    from .pairs import Inputs
    from .score import ScoreOptions, score_folders, score_table, write_result

    settings = ScoreOptions(**given_of(options, "weights", "device", "batch_size", "resamples", "download"))
    output = options.output or Path(f"{options.generated}.{Path(options.protocol).stem}.json")
    inputs = Inputs(options.generated, options.reference, options.captions, options.labels)
    result, samples = score_folders(inputs, options.protocol, settings)
    write_result(result, samples, output)
    print(f"{score_table(result)}\n{output}")


def run_compare(options: argparse.Namespace) -> None:
    from .compare import compare, comparison_table, read_result

    print(comparison_table(compare(read_result(options.first), read_result(options.second))))


def main(arguments: list[str] | None = None) -> int:
    options = parse_with_overrides(build_parser(), arguments)
    return run_tool(lambda: options.run(options))


if __name__ == "__main__":
    sys.exit(main())
