"""A part's weights as they come from its folder: whole or in shards, of any precision, .safetensors or .bin."""

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from audioldm2_pl.atomic import update_from
from audioldm2_pl.errors import UserError

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # of diffusers' and transformers' files


def find_weights(folder: Path) -> Path | None:
    """The file of weights, or the index of its shards; .safetensors and the whole precision come first."""
    for suffix in (".safetensors", ".bin"):
        found = [path for path in folder.glob(f"*{suffix}*") if path.name.split(".")[0] in STEMS]
        whole = [path for path in found if path.suffix == suffix or ".index." in path.name]
        if whole:
            return min(whole, key=lambda path: (variant_of(path) is not None, path.name))
    return None


def weights_of(folder: Path) -> Path:
    """`find_weights`; UserError where there are none."""
    path = find_weights(folder)
    if path is None:
        raise UserError(
            f"{folder}: cannot be loaded, it holds no {STEMS[0]}.safetensors; save or download the part again"
        )
    return path


def variant_of(path: Path) -> str | None:
    """`fp16` of model.fp16.safetensors and model.safetensors.index.fp16.json, None of plain names."""
    middle = [part for part in path.name.split(".")[1:] if part not in ("safetensors", "bin", "index", "json")]
    return middle[0] if middle else None


def loading_options(folder: Path) -> dict[str, Any]:
    """Keywords with which `from_pretrained` of diffusers and transformers opens the folder's weights."""
    path = weights_of(folder)
    return {"variant": variant_of(path), "use_safetensors": ".safetensors" in path.name}


def weight_files(folder: Path) -> list[Path]:
    """The file of weights, or its shards."""
    path = weights_of(folder)
    if path.suffix != ".json":
        return [path]
    names = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    if any(Path(name).name != name for name in names):
        raise UserError(f"{path}: names a shard outside its folder")
    return [folder / name for name in sorted(names)]


def digest_of_weights(folder: Path) -> str:
    """sha256 of the weights as they lie there."""
    digest = hashlib.sha256()
    for file in weight_files(folder):
        update_from(digest, file)
    return digest.hexdigest()


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor (...) by name, floating ones in float32. Nothing of a .bin runs."""
    weights: dict[str, Tensor] = {}
    for file in weight_files(folder):
        weights |= load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}


def load_reason(error: BaseException) -> str:
    """Why weights could not be loaded, in one line, without torch's advice to run the code in them."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, pickle.UnpicklingError):
        cause = cause.__context__  # diffusers raises another error in its place
    if cause is not None:
        return "its .bin is damaged, or not weights alone, so that opening it would run code; ask for .safetensors"
    return (str(error).strip() or type(error).__name__).splitlines()[0]
