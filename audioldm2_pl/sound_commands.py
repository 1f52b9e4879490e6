"""The commands that make sound: generate, edit, show, serve. Heavy imports wait until one runs."""

import argparse
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from audioldm2_pl.errors import UserError
from audioldm2_pl.fields import check_fields
from audioldm2_pl.flags import add_fields, given_fields
from audioldm2_pl.generation import MEDIA, Editing, Generation, Sampling, requests_of
from audioldm2_pl.prompts import file_name, read_prompts


def add_generate(commands: argparse._SubParsersAction) -> None:
    generate = commands.add_parser("generate", help="make sound from text, a picture, a video or a recording")
    generate.add_argument("model", help="a model folder, or a hub id")
    generate.add_argument("prompts", nargs="*", metavar="TEXT", help="what to generate, one clip each")
    generate.add_argument("--prompts", dest="file", type=Path, help="a text file: one TEXT a line, or NAME | TEXT")
    generate.add_argument("--output", type=Path, default=Path("output"), help="folder for the clips (%(default)s)")
    add_fields(generate, Generation)
    add_fields(generate, Sampling, default="the model's own")
    generate.add_argument("--batch-size", type=int, default=16, help="clips made at once (%(default)s)")
    add_model_options(generate)
    generate.set_defaults(run=run_generate, further="prompts")


def add_edit(commands: argparse._SubParsersAction) -> None:
    edit = commands.add_parser("edit", help="change, continue or clean up a recording")
    edit.add_argument("model", help="a model folder, or a hub id")
    edit.add_argument("source", type=Path, metavar="IN.wav", help="the recording, of any length, rate and channels")
    edit.add_argument("prompts", nargs="*", metavar="TEXT", help="what the edited part is to be")
    edit.add_argument("--output", type=Path, default=Path("output/edited.wav"), help="file to write (%(default)s)")
    add_fields(edit, Editing)
    add_fields(edit, Generation, leave_out=("seconds", "prompt_at"))
    add_fields(edit, Sampling, default="the model's own")
    add_model_options(edit)
    edit.set_defaults(run=run_edit, further="prompts")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """How a model is opened."""
    add_heads(parser)
    parser.add_argument(
        "--vocoder", choices=["folder", "griffin-lim"], default="folder",
        help="the model's network, or Griffin and Lim's algorithm (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--adapter", dest="adapters", action="append", default=[], metavar="PATH[:STRENGTH]",
        help="LoRA adapter: a run's adapter folder, or a .safetensors file; strength from 0 to 10 (1); may come again",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps (the best there is)")
    parser.add_argument(
        "--precision", choices=["32", "bf16", "16"], default="32", help="bits of the networks' numbers (%(default)s)"
    )
    parser.add_argument("--int8", action="store_true", help="GPT-2 and text encoders in int8: faster on a CPU")


def add_heads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--heads", choices=["folder", "official"], default="folder",
        help="of the T-UNet: as its folder says, or 32 channels each as the authors trained (%(default)s)",
    )  # fmt: skip


def add_show(commands: argparse._SubParsersAction) -> None:
    show = commands.add_parser("show", help="show how a generated file was made, and make it again")
    show.add_argument("file", type=Path, help="a WAV or FLAC file of generate or edit")
    show.add_argument("--again", type=Path, metavar="OUTPUT.wav", help="file to write the same sound to")
    show.add_argument("--model", help="where the model is now; left out, where it was")
    show.add_argument("--device", default="auto", help="cpu, cuda, mps (the best there is)")
    show.set_defaults(run=run_show)


def add_serve(commands: argparse._SubParsersAction) -> None:
    from audioldm2_pl.serve.jobs import Limits

    serve = commands.add_parser("serve", help="serve a model: an HTTP API and a page")
    serve.add_argument("model", help="a model folder, or a hub id")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s: this machine alone)")
    serve.add_argument("--port", type=int, default=7860, help="0 takes any that is free (%(default)s)")
    serve.add_argument("--token-file", type=Path, metavar="FILE", help="file with the token that calls then need")
    serve.add_argument("--output", type=Path, default=Path("served"), help="folder for jobs and sounds (%(default)s)")
    add_fields(serve, Limits)
    add_model_options(serve)
    serve.set_defaults(run=run_serve)


def run_generate(args: argparse.Namespace) -> None:
    if args.file is None and not args.prompts and hasattr(args, "prompt_at"):
        args.prompts = [min(args.prompt_at)[1]]
    named = [(f"{number:04d}_{file_name(text)}", text) for number, text in enumerate(args.prompts, 1)]
    if args.file is not None:
        named += read_prompts(args.file, first=len(named) + 1)
    if twice := [name for name, count in Counter(name for name, _ in named).items() if count > 1]:
        raise UserError(f"{args.file}: two clips would be named {twice[0]!r}; give each a name of its own")
    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size}: clips made at once are 1 or more")

    asked = given_fields(args, Generation)
    if not named and (files := [asked[name] for name in MEDIA if name in asked]):
        named = [(f"0001_{file_name(Path(files[0]).stem)}", "")]
    requests = requests_of([text for _, text in named], asked)
    sampling = given_fields(args, Sampling)
    check_fields(Sampling(**sampling))

    from audioldm2_pl.audio import save_waveform
    from audioldm2_pl.transcripts import as_long_as_spoken

    model = open_model(args)
    check_output(args.output)
    with ThreadPoolExecutor(1) as background:  # to hash gigabytes takes seconds
        origin = background.submit(origin_of, args, model)
        for start in range(0, len(named), args.batch_size):  # written batch by batch: what is done stays done
            rows = named[start : start + args.batch_size]
            asked_now = requests[start : start + args.batch_size]
            waveforms = model.generate(asked_now, **sampling)
            for (name, text), request, waveform in zip(rows, asked_now, waveforms):
                path = args.output / f"{name}.wav"
                comment = origin.result().with_request(request).comment()
                save_waveform(path, as_long_as_spoken(waveform, request), model.sample_rate, comment)
                print(f"{path}  {text}".rstrip(), flush=True)


def run_edit(args: argparse.Namespace) -> None:
    if len(args.prompts) > 1:
        raise UserError(f"one TEXT says what the edited part is to be; {len(args.prompts)} are given, put it in quotes")
    check_file_name(args.output)
    editing = given_fields(args, Editing)
    Editing(**editing).check()

    from audioldm2_pl.audio import save_waveform

    model = open_model(args)
    check_output(args.output.parent)
    asked, how = given_fields(args, Generation), given_fields(args, Sampling)
    request = Generation(args.prompts[0] if args.prompts else "", **asked)
    waveform, sample_rate = model.edit(args.source, request, **editing, **how)
    comment = origin_of(args, model).with_request(request, editing, args.source).comment()
    save_waveform(args.output, waveform.T, sample_rate, comment)
    print(args.output)


def run_show(args: argparse.Namespace) -> None:
    if args.again is not None:
        check_file_name(args.again, "--again")

    from audioldm2_pl.provenance import read_provenance

    provenance = read_provenance(args.file)
    if args.again is None:
        print(provenance.describe(args.file))
        return

    from audioldm2_pl.audio import save_waveform
    from audioldm2_pl.provenance import difference_between, make_again

    check_output(args.again.parent, "--again")
    waveform, sample_rate = make_again(provenance, args.model or provenance.model, pick_device(args.device))
    save_waveform(args.again, waveform, sample_rate, provenance.comment())
    print(f"{args.again}  {difference_between(args.file, args.again)}")


def run_serve(args: argparse.Namespace) -> None:
    from audioldm2_pl.serve.jobs import Limits

    limits = Limits(**given_fields(args, Limits))
    check_fields(limits)
    try:
        from audioldm2_pl.serve.server import read_token, serve
    except ImportError as error:
        raise UserError(f"serve needs fastapi and uvicorn ({error}); install the extra audioldm2-pl[serve]") from None

    token = None if args.token_file is None else read_token(args.token_file)
    check_output(args.output)
    model = open_model(args)
    serve(model, origin_of(args, model), args.output, (args.host, args.port), token, limits)


def origin_of(args: argparse.Namespace, model: Any) -> Any:
    """The Provenance of what a model makes, before a request is added."""
    from audioldm2_pl.hub.parts import find_model
    from audioldm2_pl.provenance import Provenance

    sampling = replace(model.sampling, **given_fields(args, Sampling))
    return Provenance.of(args.model, find_model(args.model), opened_of(args), sampling)


def opened_of(args: argparse.Namespace) -> Any:
    """The Opened that `add_model_options` asks for."""
    from audioldm2_pl.models.adapters import parse_adapters
    from audioldm2_pl.provenance import Opened

    return Opened(args.heads, args.vocoder, args.precision, parse_adapters(args.adapters), args.int8)


def open_model(args: argparse.Namespace) -> Any:
    return opened_of(args).open(args.model, pick_device(args.device))


def check_file_name(path: Path, flag: str = "--output") -> None:
    """UserError for an output file whose format cannot be written."""
    if path.suffix.lower() not in (".wav", ".flac"):
        raise UserError(f"{flag} {path}: use a name that ends in .wav or .flac")


def check_output(folder: Path, flag: str = "--output") -> None:
    """Makes the folder before anything is drawn. Raises UserError where nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag} {folder}: cannot be made a folder ({error.strerror}); choose another") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{flag} {folder}: cannot be written to; choose another")


def pick_device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):
        raise UserError(f"--device {name}: not on this machine; leave it out, or say cpu") from None
    return name
