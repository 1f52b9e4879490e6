"""diffusers' pipelines of text to audio: how one is opened and called.

Letters: B clips, C channels, T samples.
"""

import warnings
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from audioldm2_pl.errors import UserError
from audioldm2_pl.weights import load_reason

from .system import Request, Settings, generators, open_pretrained

SAMPLING = {"num_inference_steps": int, "guidance_scale": float, "negative_prompt": str}


def open_pipeline(class_name: str, source: str, device: str, **options: Any) -> Any:
    """A pipeline on a device. UserError where the source holds none, or another one."""
    import diffusers  # takes seconds

    diffusers.utils.logging.disable_progress_bar()
    kind = getattr(diffusers, class_name, None)
    if kind is None:
        raise UserError(f"diffusers {metadata.version('diffusers')} has no {class_name}; install a newer one")
    found = class_of(kind, source)
    if found != class_name:
        raise UserError(f"{source}: holds a {found}, not a {class_name}; name the system that it is of")
    options |= {"use_safetensors": True, "torch_dtype": torch.float32}  # a pickled file may run code
    pipeline = open_pretrained(kind, source, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def class_of(kind: Any, source: str) -> str | None:
    """What model_index.json says that the source is. UserError where there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an argument that diffusers still gives to the hub
            return kind.load_config(source).get("_class_name")
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot load {kind.__name__} from {source!r} ({load_reason(error)}); give a folder that holds one, or a "
            "hub id where there is a network"
        ) from None


def run(pipeline: Any, requests: Sequence[Request], settings: Settings, **options: Any) -> Any:
    """Requests => the pipeline's output in tensors, each clip of its own noise."""
    given = dict(settings)
    if "negative_prompt" in given:  # pipelines want one for each prompt
        given["negative_prompt"] = [given["negative_prompt"]] * len(requests)
    captions = [request.caption for request in requests]
    return pipeline(captions, generator=generators(requests), output_type="pt", **options, **given)


def waveforms(pipeline: Any, requests: Sequence[Request], settings: Settings, **options: Any) -> list[Tensor]:
    """Requests => waveforms (T,) or (C, T)"""
    return list(run(pipeline, requests, settings, **options).audios)
