"""A test set through a system: one .wav a caption, all of one length, rate and peak, and how they were made.

Letters: C channels, T samples.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from torch import Tensor

from audioldm2_pl.atomic import read_json_object, write_text
from audioldm2_pl.audio import fit_length, normalise, save_waveform
from audioldm2_pl.errors import UserError, reason_of
from audioldm2_pl.fields import bounded, check_fields, nearest
from audioldm2_pl.seeds import seed_of

from ..folders import read_names
from .system import Opener, Request, System

RECORD = "system.json"


@dataclass
class ClipOptions:
    seconds: float = bounded(10.0, gt=0, le=86_400)
    sample_rate: int = bounded(16_000, ge=1_000, le=384_000)  # Hz
    peak: float | None = bounded(0.5, gt=0, le=1)  # null keeps a system's own level
    seed: int = bounded(0, ge=0, lt=2**63)  # a clip's own follows from this and its name
    settings: dict[str, Any] = field(default_factory=dict)  # of the system; its library's own where not given
    batch_size: int = bounded(8, ge=1)  # clips that a system is asked for at a time
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_fields(self)


def generate_clips(opener: Opener, source: str, captions: Path, output: Path, options: ClipOptions) -> tuple[int, int]:
    """Writes OUTPUT/name.wav of every name in the captions' file that is not there yet, of its first caption where it
    has several; => the clips written, and those that were there.

    UserError where the folder holds clips of other settings, and where the source cannot be opened.
    """
    texts = read_captions(captions)
    record = describe(opener, source, texts, options)
    check_folder(output, record)
    missing = {name: text for name, text in texts.items() if not clip_path(output, name).is_file()}
    if missing:
        system = opener.open(source, options.device, options.settings)
        write_text(output / RECORD, json.dumps(record, indent=2) + "\n")
        requests = [Request(name, text, seed_of(options.seed, "clip", name)) for name, text in missing.items()]
        for start in range(0, len(requests), options.batch_size):
            write_batch(opener, system, requests[start : start + options.batch_size], output, options)
    return len(missing), len(texts) - len(missing)


def write_batch(
    opener: Opener, system: System, requests: Sequence[Request], output: Path, options: ClipOptions
) -> None:
    try:
        waveforms = system.generate(requests, options.seconds)
    except ValueError as error:  # how libraries say that a length or a setting is none of theirs
        raise UserError(f"{opener.name}: {reason_of(error)}") from None
    for request, waveform in zip(requests, waveforms, strict=True):
        path = clip_path(output, request.name)
        save_waveform(path, fit_clip(waveform, system.sample_rate, options), options.sample_rate)


def fit_clip(waveform: Tensor, rate: int, options: ClipOptions) -> np.ndarray:
    """(T,) or (C, T) at `rate` Hz => the mean of its channels at the options' rate, length and peak, (T,).

    A longer clip is cut, a shorter one ends in zeros; the level is that of what is heard.
    """
    samples = waveform.detach().float().cpu().numpy()
    mono = samples.mean(axis=0) if samples.ndim == 2 else samples
    mono = mono[: round(options.seconds * rate)]
    if rate != options.sample_rate:
        mono = soxr.resample(mono, rate, options.sample_rate)
    num_samples = round(options.seconds * options.sample_rate)
    levelled = normalise(mono[:num_samples], options.peak) if len(mono) else mono
    return fit_length(levelled, num_samples)


def clip_path(output: Path, name: str) -> Path:
    return output / f"{name}.wav"


def read_captions(path: Path) -> dict[str, str]:
    """Name -> its first caption. UserError where a name would leave the output folder."""
    texts = {name: found[0] for name, found in read_names(path, "caption").items()}
    for name in texts:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{path}: the name {name} leads out of the folder of clips; name files below it")
    return texts


def describe(opener: Opener, source: str, texts: Mapping[str, str], options: ClipOptions) -> dict[str, Any]:
    """All that decides the clips; as JSON."""
    return {
        "system": opener.name,
        "source": source,
        "package": opener.package,
        "version": version_of(opener.package),
        "settings": dict(options.settings),
        "seconds": options.seconds,
        "sample_rate": options.sample_rate,
        "peak": options.peak,
        "seed": options.seed,
        "captions": hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest(),
    }


def version_of(package: str | None) -> str | None:
    """None where it is not installed, as this project itself may not be."""
    try:
        return metadata.version(package) if package else None
    except metadata.PackageNotFoundError:
        return None


def check_folder(output: Path, record: Mapping[str, Any]) -> None:
    """UserError where the folder holds clips that were not made like this."""
    if not any(output.rglob("*.wav")):
        return
    if not (output / RECORD).is_file():
        raise UserError(f"{output}: holds clips, but no {RECORD} that says of what; name an empty folder")
    found = read_json_object(output / RECORD)
    if other := [key for key in record if found.get(key) != record[key]]:
        key = other[0]
        change = "other captions" if key == "captions" else f"{key}={found.get(key)!r}, not {record[key]!r}"
        raise UserError(f"{output}: its clips are of {change}; name another folder")


def parse_settings(opener: Opener, words: Sequence[str]) -> dict[str, Any]:
    """`key=value` words => settings of a system. UserError for a key that it has not, or a value of another type."""
    settings: dict[str, Any] = {}
    for word in words:
        key, _, text = word.partition("=")
        if key not in opener.settings:
            known = nearest(key, list(opener.settings)) if opener.settings else "it has none"
            raise UserError(f"{key}: no setting of the system {opener.name}; {known}")
        try:
            settings[key] = opener.settings[key](text)
        except ValueError:
            kind = {int: "a whole number", float: "a number"}[opener.settings[key]]
            raise UserError(f"{key}={text}: has to be {kind}") from None
        least = 1 if key in ("num_inference_steps", "num_steps", "candidates") else 0
        if opener.settings[key] is not str and not least <= settings[key] < math.inf:
            raise UserError(f"{key}={text}: has to be at least {least}")
    return settings
