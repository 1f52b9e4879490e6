"""Modules that are found when they are needed: libraries of the extras, and the files of a package."""

import contextlib
import importlib
import io
import pkgutil
import platform
from collections.abc import Iterable, Iterator
from importlib import metadata
from types import ModuleType
from typing import TypeVar

from audioldm2_pl.errors import UserError

REPORTED = (
    "torch",
    "torchaudio",
    "numpy",
    "scipy",
    "soxr",
    "librosa",
    "soundfile",
    "transformers",
    "laion-clap",
    "frechet-audio-distance",
    "hear21passt",
    "jiwer",
    "speechmos",
    "onnxruntime",
    "resemblyzer",
    "pocketsphinx",
    "audiobox-aesthetics",
)
EXTRAS = {"resemblyzer": "speaker", "audiobox_aesthetics": "aesthetics"}  # package -> extra, where it is not `eval`

Kind = TypeVar("Kind")


def import_library(name: str) -> ModuleType:
    """A module of the extra's libraries, without what it prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            return importlib.import_module(name)
        except ImportError as error:
            extra = EXTRAS.get(name.partition(".")[0], "eval")
            raise UserError(f"{name} cannot be imported ({error}); pip install 'audioldm2-pl[{extra}]'") from None


def members(package: str, path: Iterable[str], kind: type[Kind]) -> Iterator[tuple[str, Kind]]:
    """(module, object) of all objects of a kind in a package's modules."""
    for module in pkgutil.iter_modules(path):
        for value in vars(importlib.import_module(f"{package}.{module.name}")).values():
            if isinstance(value, kind):
                yield module.name, value


def versions() -> dict[str, str | None]:
    """Of Python and of each library that a score may depend on; None where it is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in REPORTED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found
