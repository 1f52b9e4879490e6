"""A model folder as ONNX files, one a part, which other runtimes open: `audioldm2 export MODEL OUTPUT --onnx`."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from audioldm2_pl.atomic import is_write_error, replace_folder, write_reason
from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.onnx_parts import TEXT_ENCODERS, Axes, Part, parts_of

MANIFEST = "onnx.json"
OPSET = 18  # of ONNX's operators
TYPES = {torch.float32: "float32", torch.int64: "int64", torch.bool: "bool"}


def export_onnx(model: Any, output: Path, report: Callable[[str], None] = print) -> list[str]:
    """Writes the parts of an open AudioLDM2, its tokenizers and onnx.json; returns the conditioners that are left out.

    The parts are float32 on the CPU. Raises UserError where the libraries are missing, `output` is another folder, or
    the disk is full.
    """
    check_libraries()
    if output.exists() and not (output / MANIFEST).is_file():
        raise UserError(f"{output}: exists and is no ONNX export; choose another folder")
    new = output.with_name(f".{output.name}.part")
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        parts = parts_of(model)
        for name, part in parts.items():
            write_part(part, new / f"{name}.onnx")
            report(f"{output / name}.onnx")
        for name in TEXT_ENCODERS.keys() & model.conditioners.keys():
            model.conditioners[name].tokenizer.save_pretrained(new / f"tokenizer_{name}")
        (new / MANIFEST).write_text(json.dumps(manifest(model, parts), indent=2) + "\n", encoding="utf-8")
    except Exception as error:
        shutil.rmtree(new, ignore_errors=True)
        if not is_write_error(error):
            raise
        raise UserError(f"{output}: cannot be written ({write_reason(error)}); make room there") from None
    replace_folder(output, new)
    return [name for name in model.conditioners if name not in TEXT_ENCODERS]


def check_libraries() -> None:
    """UserError where what writes or runs ONNX is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(f"--onnx needs onnx and onnxruntime ({error}); install the extra audioldm2-pl[onnx]") from None


def write_part(part: Part, path: Path) -> None:
    """One file; weights of more than 2 GB lie in files beside it."""
    axes = {name: open_axes(given) for name, given in part.axes.items()} | {part.output: open_axes(part.output_axes)}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the tracer, about sizes that tests/hub/test_onnx.py varies
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        # by tracing: torch's newer exporter takes minutes for a T-UNet where this one takes seconds
        torch.onnx.export(
            part.network.eval(), tuple(part.inputs.values()), str(path), input_names=list(part.inputs),
            output_names=[part.output], dynamic_axes=axes, opset_version=OPSET, dynamo=False,
        )  # fmt: skip


def open_axes(axes: Axes) -> dict[int, str]:
    """Number -> name of those that may have any size."""
    return {number: size for number, size in enumerate(axes) if isinstance(size, str)}


def manifest(model: Any, parts: dict[str, Part]) -> dict[str, Any]:
    """What a program has to know to make sound with the parts: the content of onnx.json."""
    generator, unet = model.loa_generator, model.unet.config
    gpt2 = generator and {
        "conditions": generator.conditions,
        "width": generator.projection.width,
        "num_vectors": generator.num_loa_vectors,
        "num_speech_vectors": generator.num_vectors(speaks=True),
    }
    readers = {name: model.conditioners[name] for name in TEXT_ENCODERS if name in model.conditioners}
    return {
        "opset": OPSET,
        "parts": {name: described(name, part) for name, part in parts.items()},
        "text_encoders": {
            name: {"tokenizer": f"tokenizer_{name}", "max_tokens": getattr(reader, "max_text_tokens", None)}
            for name, reader in readers.items()
        },
        "gpt2": gpt2,
        "unet": {"conditions": unet.conditions, "film": unet.film},
        "latent": {
            "channels": unet.in_channels,
            "bins": model.num_latent_bins,
            "downsampling": model.downsampling,
            "smallest_frames": model.smallest_latent,
            "scaling_factor": model.vae.config["scaling_factor"],  # the VAE's files apply it
        },
        "audio": asdict(model.audio),
        "audiomae_pooling": None if model.audiomae is None else model.pooling(speaks=False),
        "scheduler": {**model.scheduler.config, "_class_name": type(model.scheduler).__name__},
        "sampling": asdict(model.sampling),
    }


def described(name: str, part: Part) -> dict[str, Any]:
    """A part's file, inputs and output; a word for a size that may be any."""
    inputs = {key: {"shape": part.axes[key], "type": TYPES[tensor.dtype]} for key, tensor in part.inputs.items()}
    output = {part.output: {"shape": part.output_axes, "type": "float32"}}
    return {"file": f"{name}.onnx", "inputs": inputs, "outputs": output}
