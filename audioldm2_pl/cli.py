"""The command line `audioldm2`. Thin; heavy imports wait until a sub-command runs."""

import argparse
import os
import shlex
import sys
import warnings
from pathlib import Path

from audioldm2_pl.errors import Interrupted, run_tool
from audioldm2_pl.flags import Parser, last_or_batch, parse_with_overrides, without_option
from audioldm2_pl.sound_commands import add_edit, add_generate, add_heads, add_serve, add_show


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="audioldm2", description="Train AudioLDM 2 and make sound with it.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        add_demo,
        add_train,
        add_status,
        add_generate,
        add_edit,
        add_show,
        add_serve,
        add_describe,
        add_push,
        add_import,
        add_export,
    ):
        add(commands)
    return parser


def add_demo(commands: argparse._SubParsersAction) -> None:
    demo = commands.add_parser("demo", help="synthesise sounds, train all stages on them, write a page to listen to")
    demo.add_argument("--experiment", default="demo", metavar="NAME", help="that reads shards/synthetic (%(default)s)")
    demo.add_argument("--clips", type=int, default=4800, help="that are trained on (%(default)s)")
    demo.add_argument("overrides", nargs="*", metavar="key=value", help="anything in the YAML, such as seed=1")
    demo.set_defaults(run=run_demo_steps)


def add_train(commands: argparse._SubParsersAction) -> None:
    train = commands.add_parser("train", help="train the stages of an experiment, or resume them")
    train.add_argument("experiment", type=Path, help="an experiment's YAML, or a shipped one's name, such as demo")
    train.add_argument("--stage", help="train this stage only")
    train.add_argument(
        "--resume", type=last_or_batch, metavar="last|N",
        help="go on from the last checkpoint, or go back to that of batch N (last)",
    )  # fmt: skip
    train.add_argument("overrides", nargs="*", metavar="key=value", help="anything in the YAML, such as seed=1")
    train.add_argument("--allow-pipe", action="store_true", help="run the commands of pipe: folders in data.train")
    train.set_defaults(run=run_train)


def add_status(commands: argparse._SubParsersAction) -> None:
    status = commands.add_parser("status", help="show how far an experiment's run is, and what comes next")
    status.add_argument("experiment", type=Path, help="an experiment's YAML")
    status.add_argument("overrides", nargs="*", metavar="key=value", help="as `train` was given them")
    status.set_defaults(run=run_status)


def add_describe(commands: argparse._SubParsersAction) -> None:
    describe = commands.add_parser("describe", help="show an experiment: settings, lengths, parameters, memory")
    describe.add_argument("experiment", type=Path, help="an experiment's YAML")
    describe.add_argument("overrides", nargs="*", metavar="key=value", help="anything in the YAML, such as seed=1")
    describe.add_argument("--diff", type=Path, metavar="OTHER.yaml", help="show only what differs from this experiment")
    describe.set_defaults(run=run_describe)


def add_push(commands: argparse._SubParsersAction) -> None:
    push = commands.add_parser("push", help="put a run's model, with a model card, on the model hub")
    push.add_argument("experiment", type=Path, help="an experiment's YAML, trained")
    push.add_argument("repository", help="user/name on the hub")
    push.add_argument("overrides", nargs="*", metavar="key=value", help="as `train` was given them")
    push.add_argument(
        "--licence", default="other", help="of the weights, a word of the hub such as cc-by-4.0 (%(default)s)"
    )
    push.add_argument("--sounds", type=int, default=4, help="clips that are generated for the card (%(default)s)")
    push.add_argument("--private", action="store_true", help="make the repository a private one")
    push.add_argument("--dry-run", action="store_true", help="write the folder, upload nothing")
    push.set_defaults(run=run_push)


def add_import(commands: argparse._SubParsersAction) -> None:
    convert = commands.add_parser("import", help="turn one of the authors' .pth or .ckpt files into a model folder")
    convert.add_argument("file", type=Path, help="the checkpoint: AudioLDM 2, AudioLDM 1, or AudioMAE alone")
    convert.add_argument("folder", type=Path, help="the model folder; parts that it has are kept, none is replaced")
    convert.add_argument("--ema", action="store_true", help="take the T-UNet's averaged weights, not the last ones")
    convert.add_argument(
        "--heads",
        choices=["official", "hub"],
        default="official",
        help="of the T-UNet: 32 channels each, as it was trained, or 8 a level (%(default)s)",
    )
    convert.add_argument("--tokenizers", help="a model folder or hub id whose tokenizers are copied")
    convert.add_argument(
        "--vocoder-rates",
        type=lambda text: [int(rate) for rate in text.split(",")],
        metavar="5,4,2,2,2",
        help="upsampling rates of a vocoder that is none of the published ones",
    )
    convert.set_defaults(run=run_import)


def add_export(commands: argparse._SubParsersAction) -> None:
    export = commands.add_parser("export", help="write a model folder's parts for other runtimes")
    export.add_argument("model", help="a model folder, or a hub id")
    export.add_argument("output", type=Path, help="folder to write; an earlier export there is replaced")
    export.add_argument("--onnx", action="store_true", required=True, help="as ONNX files, the format that there is")
    add_heads(export)
    export.set_defaults(run=run_export)


def run_demo_steps(args: argparse.Namespace) -> None:
    from audioldm2_pl.demo import DemoOptions, run_demo

    run_demo(DemoOptions(args.experiment, args.clips, args.overrides))


def run_train(args: argparse.Namespace) -> None:
    from audioldm2_pl.config import load_experiment
    from audioldm2_pl.hub.folder import ModelFolder
    from audioldm2_pl.training.run import train

    if args.allow_pipe:
        os.environ["AUDIOLDM2_ALLOW_PIPE"] = "1"  # which workers and ranks inherit
    experiment = load_experiment(args.experiment, args.overrides)
    try:
        train(experiment, args.stage, args.resume)
    except Interrupted as stop:
        state = f"{stop.state}; " if stop.state else ""
        command = shlex.join(["audioldm2", *without_option(args.arguments, "--resume")])  # what it went back to is last
        raise Interrupted(stop.signum, f"{state}resume with: {command}") from None
    if experiment.adapter is not None:
        print(f"adapter: {experiment.adapter_folder}")
        return
    print(f"model: {experiment.model_folder}")
    if not (folder := ModelFolder(experiment.model_folder)).opens_in_diffusers:
        print(f"stock diffusers does not open it: {folder.own_parts()}")


def run_status(args: argparse.Namespace) -> None:
    from audioldm2_pl.config import load_experiment
    from audioldm2_pl.training.status import describe_status

    experiment = load_experiment(args.experiment, args.overrides)
    command = shlex.join(["audioldm2", "train", str(args.experiment), *args.overrides])
    print(describe_status(experiment, command))


def run_describe(args: argparse.Namespace) -> None:
    from audioldm2_pl.config import load_experiment
    from audioldm2_pl.describe import describe, difference

    experiment = load_experiment(args.experiment, args.overrides)
    if args.diff is None:
        print(describe(experiment))
    else:
        print(difference(args.experiment.stem, experiment, args.diff.stem, load_experiment(args.diff)))


def run_push(args: argparse.Namespace) -> None:
    from audioldm2_pl.config import load_experiment
    from audioldm2_pl.hub.push import build_repository, push

    experiment = load_experiment(args.experiment, args.overrides)
    folder = build_repository(experiment, args.repository, args.licence, args.sounds)
    print(f"repository: {folder}")
    if not args.dry_run:
        print(f"uploaded: {push(folder, args.repository, args.private)}")


def run_import(args: argparse.Namespace) -> None:
    from audioldm2_pl.hub.original.folder import import_checkpoint

    print(import_checkpoint(args.file, args.folder, args.ema, args.heads, args.tokenizers, args.vocoder_rates))
    print(f"model: {args.folder}")


def run_export(args: argparse.Namespace) -> None:
    from audioldm2_pl.hub.onnx_export import check_libraries, export_onnx
    from audioldm2_pl.pipeline import AudioLDM2

    check_libraries()
    for name in export_onnx(AudioLDM2.from_pretrained(args.model, heads=args.heads), args.output):
        print(f"left out: the encoder of the condition {name!r}, which reads more than tokens")
    print(f"export: {args.output}")


def run(args: argparse.Namespace) -> None:
    with warnings.catch_warnings():
        if args.command in ("generate", "edit"):
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        args.run(args)


def main(arguments: list[str] | None = None) -> int:
    args = parse_with_overrides(build_parser(), arguments)
    args.arguments = sys.argv[1:] if arguments is None else arguments
    return run_tool(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
