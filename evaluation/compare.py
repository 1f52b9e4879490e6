"""Two systems' results of one protocol side by side: the differences of their scores, by paired bootstrap."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from audioldm2_pl.errors import UserError

from .metrics import METRICS
from .metrics.metric import Samples
from .protocols import differences
from .uncertainty import Interval

SAME = ("protocol_settings", "weights", "sha256.reference", "sha256.captions", "sha256.labels", "clips")


def read_result(path: Path) -> tuple[dict[str, Any], Samples]:
    """A result of `python -m evaluation score` and the arrays beside it."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
            samples = dict(arrays)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no result of `python -m evaluation score` with its .npz ({error})") from None
    if "protocol_sha256" not in result:
        raise UserError(f"{path}: no result of `python -m evaluation score`")
    return result, samples


def refuse_unequal(first: dict[str, Any], second: dict[str, Any]) -> None:
    """UserError that names what differs where two results were not measured alike."""
    for key in SAME:
        sides: list[Any] = [first, second]
        for part in key.split("."):
            sides = [side.get(part) for side in sides]
        if sides[0] == sides[1]:
            continue
        if key == "clips":
            odd = sorted(set(sides[0]) ^ set(sides[1]))
            raise UserError(f"not comparable: {len(odd)} clips are in one result only, first {odd[0]!r}")
        found = differences(*sides) if isinstance(sides[0], dict) else [f"{sides[0]} / {sides[1]}"]
        names = f" ({first['protocol']} / {second['protocol']})" if key == "protocol_settings" else ""
        raise UserError(f"not comparable: {key}{names}: {'; '.join(found[:5])}" + ("; …" if len(found) > 5 else ""))


def compare(
    first: tuple[dict[str, Any], Samples], second: tuple[dict[str, Any], Samples], resamples: int = 200, seed: int = 0
) -> dict[str, Interval]:
    """Score -> first - second with its interval, as the score's metric has it."""
    refuse_unequal(first[0], second[0])
    found = {}
    for name, settings in first[0]["protocol_settings"]["scores"].items():
        one, other = (
            {key.removeprefix(f"{name}/"): array for key, array in samples.items() if key.startswith(f"{name}/")}
            for _, samples in (first, second)
        )
        metric = METRICS[settings["kind"]]
        found[name] = metric.difference(one, other, len(first[0]["clips"]), resamples, seed)
    return found


def comparison_table(found: dict[str, Interval]) -> str:
    lines = [f"{'score':14} {'first - second':>15}   95 % interval"]
    for name, interval in found.items():
        finding = "different" if interval.excludes_zero else "not distinguishable"
        lines.append(f"{name:14} {interval.value:15.4f}   {interval.low:.4f} to {interval.high:.4f}: {finding}")
    return "\n".join(lines)
