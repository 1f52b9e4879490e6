"""A protocol: all that decides a score beside the clips. The named ones stand in protocols.yaml.

Numbers measured under different protocols cannot be compared; `differences` names what sets two apart.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from audioldm2_pl.errors import UserError

from .embeddings import BACKENDS
from .kl import DIRECTIONS
from .wer import RECOGNISERS

BUILT_IN = Path(__file__).with_name("protocols.yaml")


@dataclass
class AudioSettings:
    """How a file becomes the waveforms that a model hears, in the order of the fields."""

    channel: str = "mean"  # of the channels, or "first"
    load_rate: int | None = None  # Hz, on the way to the model's rate: cuts off what is above half of it
    remove_mean: bool = False
    peak_db: float | None = None  # scaled to this peak, dB of full scale; null keeps the level
    bits: int | None = None  # 16: truncated to 16-bit steps
    clip_seconds: float | None = None  # cut or zero-padded to this
    min_seconds: float = 0.0  # zero-padded up to this
    window_seconds: float | None = None  # heard in windows of this length; null: in one piece
    hop_seconds: float | None = None  # from one window's begin to the next one's; null: the window's length
    pad_window: bool = True  # zero-pad a shorter last window to the full length
    min_window_seconds: float = 0.0  # a last window no longer than this is dropped


@dataclass
class ModelSettings:
    backend: str = "???"  # a name in embeddings.BACKENDS or wer.RECOGNISERS
    weights: str = "???"  # file or folder within the weights folder
    audio: AudioSettings = field(default_factory=AudioSettings)


@dataclass
class ScoreSettings:
    kind: str = "???"  # a name in KINDS
    model: str = "???"  # a name in Protocol.models
    activation: str = "softmax"  # KL: or "sigmoid"
    epsilon: float = 0.0  # KL: added to the second posterior
    direction: str = DIRECTIONS[0]  # KL
    sample: str = "clip"  # KL: or "window": every window counts as one
    pool: str = "logits"  # KL, IS of clips: mean over windows of the logits, or of the "probabilities"


@dataclass
class Protocol:
    about: str = ""
    source: str = ""  # publication or code that it follows
    captions: str = "all"  # of a clip, or "first"
    min_paired: float = 1.0  # share of names that reference, generated clips and captions must have in common
    expected_clips: list[int] = field(default_factory=list)  # sizes of the test sets that it is published with
    models: dict[str, ModelSettings] = field(default_factory=dict)
    scores: dict[str, ScoreSettings] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """sha256 of all that decides a score; `about` and `source` do not."""
        return hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode()).hexdigest()

    def settings(self) -> dict[str, Any]:
        plain: Any = OmegaConf.to_container(OmegaConf.structured(self))
        return {key: value for key, value in plain.items() if key not in ("about", "source")}


KINDS = {  # what a score is made of beside the generated clips
    "frechet": "reference",
    "kl": "reference",
    "inception": None,
    "clap": "captions",
    "wer": "captions",
}
CHOICES = {
    "kind": tuple(KINDS),
    "captions": ("all", "first"),
    "channel": ("mean", "first"),
    "bits": (None, 16),
    "activation": ("softmax", "sigmoid"),
    "direction": DIRECTIONS,
    "sample": ("clip", "window"),
    "pool": ("logits", "probabilities"),
    "backend": (*BACKENDS, *RECOGNISERS),
}


@lru_cache
def built_in() -> Any:
    return OmegaConf.load(BUILT_IN)


def protocol_names() -> list[str]:
    return list(built_in())


def load_protocol(name: str) -> Protocol:
    """A protocol of protocols.yaml by its name, or the only one in a YAML file of the same layout."""
    file = Path(name) if name.endswith((".yaml", ".yml")) else BUILT_IN
    if not file.is_file():
        raise UserError(f"{file}: no such protocol file")
    try:
        known: Any = built_in() if file == BUILT_IN else OmegaConf.load(file)
        if file != BUILT_IN:
            name = next(iter(known))
        if name not in known:
            raise UserError(f"no protocol {name!r}; there are {', '.join(known)}, or give a .yaml file")
        protocol: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Protocol), known[name]))
    except (OmegaConfBaseException, ValueError, TypeError, StopIteration) as error:
        reason = (str(error).strip() or "empty").splitlines()[0]
        raise UserError(f"{file}: protocol {name}: {reason}") from None
    check(protocol, f"{file.name}: {name}")
    return protocol


def check(protocol: Protocol, name: str) -> None:
    """UserError where a choice is none of those there are or a score asks for a model that is not listed."""
    for path, value in flatten(protocol.settings()):
        choices = CHOICES.get(path.split(".")[-1])
        if choices and value not in choices:
            raise UserError(f"{name}: {path}={value!r}; choose from {', '.join(map(str, choices))}")
    for score, settings in protocol.scores.items():
        if settings.model not in protocol.models:
            raise UserError(f"{name}: scores.{score}.model={settings.model!r}; there are {', '.join(protocol.models)}")
        backend = protocol.models[settings.model].backend
        if (settings.kind == "wer") != (backend in RECOGNISERS):
            raise UserError(f"{name}: scores.{score}: a {backend} gives no {settings.kind}")
    if not protocol.scores:
        raise UserError(f"{name}: names no scores")


def flatten(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """{"a": {"b": 1}} => ("a.b", 1)"""
    if isinstance(settings, dict):
        for key, value in settings.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, settings


def differences(first: dict[str, Any], second: dict[str, Any], prefix: str = "") -> list[str]:
    """What sets two settings apart, one line each: "scores.kl.epsilon: 1e-06 / 0.0"."""
    found = []
    for key in dict.fromkeys([*first, *second]):
        path = f"{prefix}{key}"
        if key not in first or key not in second:
            found.append(f"{path}: only in the {'first' if key in first else 'second'}")
        elif isinstance(first[key], dict) and isinstance(second[key], dict):
            found += differences(first[key], second[key], f"{path}.")
        elif first[key] != second[key]:
            found.append(f"{path}: {first[key]} / {second[key]}")
    return found
