"""Checkpoints of the networks that metrics read: where they are from, their checksums, their tensors."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.original.checkpoint import read_checkpoint


@dataclass(frozen=True)
class CheckpointSource:
    """Where a checkpoint comes from."""

    url: str | None = None  # of one file
    hub: str | None = None  # id of a folder on a model hub
    files: tuple[str, ...] = ()  # of the folder; the first tells that it is there


def find_checkpoint(folder: Path, name: str, source: CheckpointSource | None = None, download: bool = False) -> Path:
    """The checkpoint <folder>/<name>, fetched there first where it is missing and `download` allows it."""
    path, source = folder / name, source or CheckpointSource()
    if path.is_file() or (path.is_dir() and all((path / file).is_file() for file in source.files[:1])):
        return path
    origin = source.url or (source.hub and f"{', '.join(source.files)} of {source.hub}")
    if not download or not origin:
        raise UserError(
            f"{path}: not there; put {origin or 'the checkpoint'} there"
            + (", or add --download" if origin and not download else "")
        )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if source.url:
            torch.hub.download_url_to_file(source.url, str(path), progress=False)
        else:
            from huggingface_hub import snapshot_download

            snapshot_download(str(source.hub), local_dir=path, allow_patterns=list(source.files))
    except Exception as error:  # the network's errors have no common class
        raise UserError(f"{path}: cannot be downloaded ({error}); put {origin} there") from None
    return path


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def digests(path: Path, names: tuple[str, ...] = ()) -> dict[str, str]:
    """File name -> sha256 of the file `path`, or of `names` in the folder `path`."""
    files = [path / name for name in names] if names else [path]
    return {str(file.relative_to(path.parent)): sha256_of(file) for file in files}


def digest_of_folder(folder: Path) -> str:
    """sha256 over names and contents of all files below `folder`"""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{path.relative_to(folder)} {sha256_of(path)}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_state(path: Path, anchor: str) -> dict[str, Tensor]:
    """A checkpoint's tensors by the names that follow the one that ends in `anchor`: wrappers such as {"state_dict": …}
    and prefixes such as "module." are taken off. No code of the file's is run."""
    tensors, _ = read_checkpoint(path)
    if not tensors:
        raise UserError(f"{path}: holds no weights; fetch it again")
    found = [key.removesuffix(anchor) for key in tensors if f".{key}".endswith(f".{anchor}")]
    prefix = min(found, key=len, default="")
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def load_into(model: torch.nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """UserError where the tensors are not those of the model."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split()).partition(": ")[2]
        raise UserError(f"{path}: not the weights of {type(model).__name__} ({reason[:200]})") from None


class SkipInit(TorchFunctionMode):
    """Modules built within it keep whatever was in memory: seconds saved where a checkpoint fills in every weight."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == "torch.nn.init":
            return (kwargs or {}).get("tensor", args[0] if args else None)
        return func(*args, **(kwargs or {}))
