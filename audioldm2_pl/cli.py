"""`audioldm2`: train, generate, describe. Thin; heavy imports wait until a sub-command runs."""

import argparse
import sys
from pathlib import Path

from audioldm2_pl.errors import UserError


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="audioldm2", description="Train AudioLDM 2 and make sound with it.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train the stages of an experiment, or go on with them")
    train.add_argument("experiment", type=Path, help="an experiment's YAML")
    train.add_argument("--stage", help="train this stage only")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="anything in the YAML, such as seed=1")
    train.set_defaults(run=run_train)

    generate = commands.add_parser("generate", help="make sound from text")
    generate.add_argument("model", help="a model folder, or a hub id")
    generate.add_argument("prompts", nargs="*", metavar="TEXT", help="what to hear, one clip each")
    generate.add_argument("--prompts", dest="file", type=Path, help="a text file with one prompt a line")
    generate.add_argument("--output", type=Path, default=Path("output"), help="folder for the clips (%(default)s)")
    generate.add_argument("--seconds", type=float, help="length of each clip (the model's own)")
    generate.add_argument("--steps", type=int, default=200, help="sampling steps (%(default)s)")
    generate.add_argument("--guidance-scale", type=float, default=3.5, help="1 is no guidance (%(default)s)")
    generate.add_argument("--sampler", help="ddim, ddpm, dpm-solver++, unipc, euler, heun, pndm (the model's own)")
    generate.add_argument("--eta", type=float, default=1.0, help="noise that DDIM puts back, 0 to 1 (%(default)s)")
    generate.add_argument("--seed", type=int, default=0, help="of the first clip; the next ones count up (%(default)s)")
    generate.add_argument(
        "--candidates", type=int, default=1, help="clips tried per prompt; CLAP keeps one (%(default)s)"
    )
    generate.add_argument("--device", default="auto", help="cpu, cuda, mps (the best there is)")
    generate.set_defaults(run=run_generate)

    describe = commands.add_parser("describe", help="show an experiment: settings, lengths, parameters, memory")
    describe.add_argument("experiment", type=Path, help="an experiment's YAML")
    describe.add_argument("overrides", nargs="*", metavar="key=value", help="anything in the YAML, such as seed=1")
    describe.set_defaults(run=run_describe)
    return parser


def run_train(args: argparse.Namespace) -> None:
    from audioldm2_pl.config import load_experiment
    from audioldm2_pl.training.run import train

    experiment = load_experiment(args.experiment, args.overrides)
    train(experiment, args.stage)
    print(f"model: {experiment.model_folder}")


def run_describe(args: argparse.Namespace) -> None:
    from audioldm2_pl.config import load_experiment
    from audioldm2_pl.describe import describe

    print(describe(load_experiment(args.experiment, args.overrides)))


def run_generate(args: argparse.Namespace) -> None:
    prompts = list(args.prompts)
    if args.file is not None:
        if not args.file.is_file():
            raise UserError(f"{args.file}: no such prompt file")
        prompts += [line.strip() for line in args.file.read_text().splitlines() if line.strip()]

    from audioldm2_pl.audio import save_waveform
    from audioldm2_pl.pipeline import AudioLDM2, check_prompts

    check_prompts(prompts)
    model = AudioLDM2.from_pretrained(args.model, pick_device(args.device))
    if args.sampler:
        model.set_sampler(args.sampler)
    waveforms = model.generate(
        prompts, args.seconds, args.steps, args.guidance_scale, args.seed, args.candidates, args.eta
    )
    for number, (prompt, waveform) in enumerate(zip(prompts, waveforms), 1):
        path = args.output / f"{number:04d}_{file_name(prompt)}.wav"
        save_waveform(path, waveform, model.sample_rate)
        print(f"{path}  {prompt}")


def pick_device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):
        raise UserError(f"--device {name}: not on this machine; leave it out, or say cpu") from None
    return name


def file_name(prompt: str) -> str:
    """A prompt's first words, fit for a file name."""
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in prompt.lower()).split()
    return "_".join(words)[:60] or "clip"


def main(arguments: list[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    try:
        args.run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
