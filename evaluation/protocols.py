"""A protocol: all that decides a score beside the clips. The named ones are in protocols.yaml.

Numbers measured under different protocols cannot be compared; `differences` names what sets two apart.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from audioldm2_pl.errors import UserError

from .metrics import METRICS, Metric
from .metrics.embeddings import BACKENDS, Backend

BUILT_IN = Path(__file__).with_name("protocols.yaml")
RENAMED = {"judge": "classifier"}  # protocols and backends: old name -> new name


@dataclass
class AudioSettings:
    """How a file becomes the waveforms that a network reads, in the order of the fields."""

    channel: Literal["mean", "first"] = "mean"  # of the channels, or the first
    load_rate: int | None = None  # Hz, on the way to the network's rate: cuts off what is above half of it
    remove_mean: bool = False
    peak_db: float | None = None  # scaled to this peak, dB of full scale; null: the level stays
    bits: Literal[16] | None = None  # truncated to 16-bit steps
    clip_seconds: float | None = None  # cut or zero-padded to this
    min_seconds: float = 0.0  # zero-padded up to this
    num_windows: int | None = None  # cut into as many equal windows
    window_seconds: float | None = None  # cut into windows of this length; null: in one piece
    hop_seconds: float | None = None  # from one window's begin to the next one's; null: the window's length
    pad_window: bool = True  # zero-pad a shorter last window to the full length
    min_window_seconds: float = 0.0  # a last window no longer than this is dropped


@dataclass
class ModelSettings:
    backend: str = "???"  # a file of metrics/embeddings/
    weights: str = "???"  # file or folder within the weights folder
    audio: AudioSettings = field(default_factory=AudioSettings)


@dataclass
class ScoreSettings:
    kind: str  # a metric's name
    model: str  # a name in Protocol.models
    choices: Any  # the metric's own settings


@dataclass
class Protocol:
    about: str = ""
    source: str = ""  # publication or code that it follows
    captions: Literal["all", "first"] = "all"  # of a clip
    min_paired: float = 1.0  # share of names that reference, generated clips and captions must have in common
    expected_clips: list[int] = field(default_factory=list)  # sizes of the test sets that it is published with
    models: dict[str, ModelSettings] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)  # ScoreSettings; in YAML the choices are beside kind and model

    @property
    def digest(self) -> str:
        """sha256 of all that decides a score; `about` and `source` do not."""
        return hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode()).hexdigest()

    def settings(self) -> dict[str, Any]:
        plain = {key: value for key, value in asdict(self).items() if key not in ("about", "source")}
        plain["scores"] = {name: {**score, **score.pop("choices")} for name, score in plain["scores"].items()}
        return plain

    def metric(self, score: str) -> Metric:
        return METRICS[self.scores[score].kind]

    def backend(self, model: str) -> Backend:
        return BACKENDS[self.models[model].backend]

    def scores_of(self, model: str) -> list[str]:
        return [name for name, score in self.scores.items() if score.model == model]

    def reads(self, model: str) -> set[str]:
        """What the scores read of a network."""
        return {part for score in self.scores_of(model) for part in self.metric(score).reads}

    @property
    def needs(self) -> set[str]:
        """What the scores need beside the generated clips."""
        return {side for score in self.scores if (side := self.metric(score).needs)}


@lru_cache
def built_in() -> Any:
    return OmegaConf.load(BUILT_IN)


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
            hint = f"it is called {RENAMED[name]!r} now" if name in RENAMED else f"there are {', '.join(known)}"
            raise UserError(f"no protocol {name!r}; {hint}, or give a .yaml file")
        content: Any = OmegaConf.to_container(known)
        return parse_protocol(content[name] or {}, f"{file.name}: {name}")
    except (OmegaConfBaseException, ValueError, TypeError, AttributeError, StopIteration) as error:
        lines = (str(error).strip() or "empty").splitlines()
        place = next((f" ({line.split(': ')[1]})" for line in lines if "full_key: " in line), "")
        raise UserError(f"{file}: protocol {name}: {lines[0]}{place}") from None


def parse_protocol(content: Any, place: str) -> Protocol:
    """YAML's content => the protocol; UserError for an unknown name, or a score that its network cannot give."""
    if not isinstance(content, dict):
        raise ValueError("is no mapping; the file is NAME: {models: ..., scores: ...}")
    scores = dict(content.pop("scores", None) or {})
    protocol: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Protocol), content))
    for name, settings in protocol.models.items():
        check_known(f"{place}: models.{name}.backend", settings.backend, BACKENDS)
    for name, settings in scores.items():
        choices = dict(settings)
        kind, model = choices.pop("kind", None), choices.pop("model", None)
        check_known(f"{place}: scores.{name}.kind", kind, METRICS)
        choices = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(METRICS[kind].settings), choices))
        check_known(f"{place}: scores.{name}.model", model, protocol.models)
        protocol.scores[name] = ScoreSettings(kind, model, choices)
        if not METRICS[kind].reads <= protocol.backend(model).gives:
            raise UserError(f"{place}: scores.{name}: a {protocol.models[model].backend} gives no {kind}")
    if not scores:
        raise UserError(f"{place}: names no scores")
    return protocol


def check_known(place: str, name: Any, known: Any) -> None:
    if name not in known:
        hint = f"it is called {RENAMED[name]!r} now" if name in RENAMED else f"choose from {', '.join(known)}"
        raise UserError(f"{place}={name!r}; {hint}")


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
