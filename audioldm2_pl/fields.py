"""What a field of a config may hold: its type's words, and the range that stands beside it.

batch_size: int = bounded(16, ge=1)  # clips per device and batch
"""

import math
import types
from collections.abc import Callable, Sequence
from dataclasses import field, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from audioldm2_pl.errors import UserError

COMPARISONS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "ge": ("at least", lambda value, bound: value >= bound),
    "gt": ("above", lambda value, bound: value > bound),
    "le": ("at most", lambda value, bound: value <= bound),
    "lt": ("below", lambda value, bound: value < bound),
}
NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def bounded(
    default: Any, *, keys: Sequence[str] = (), min_length: int = 0, aliases: Sequence[str] = (), help: str = "",
    unit: str = "", **bounds: float,
) -> Any:  # fmt: skip
    """A dataclass field of a number, or of a list, tuple or dict of numbers, with its range; see `check_fields`.

    Args:
        default: the value, or a function that makes it.
        keys: those that a dict may have.
        min_length: of a list.
        aliases: other names that the field goes by.
        help, unit: what a user interface shows of the field.
        bounds: `ge`, `gt`, `le`, `lt` as in pydantic, of each number.
    """
    metadata = {
        "bounds": bounds, "keys": tuple(keys), "min_length": min_length,
        "aliases": tuple(aliases), "help": help, "unit": unit,
    }  # fmt: skip
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def check_fields(config: Any, prefix: str = "") -> None:
    """UserError where a field of a dataclass, or of those inside it, holds what its type or range does not allow."""
    hints = get_type_hints(type(config))
    for f in fields(config):
        check_value(
            prefix + f.name.rstrip("_"), getattr(config, f.name), hints[f.name], limits_of(type(config), f.name)
        )


def limits_of(config: type, name: str) -> dict[str, Any]:
    """A field's range, which stays the base class's where a class gives the field another default."""
    for base in filter(is_dataclass, config.__mro__):
        metadata = base.__dataclass_fields__[name].metadata if name in base.__dataclass_fields__ else {}
        if metadata:
            return dict(metadata)
    return {}


def check_value(key: str, value: Any, hint: Any, limits: dict[str, Any]) -> None:
    if is_optional(hint):
        if value is None:
            return
        hint = without_none(hint)
    kind = get_origin(hint) or hint
    if is_dataclass(kind):
        check_kind(key, value, kind)
        check_fields(value, f"{key}.")
    elif kind is Literal:
        if value not in get_args(hint):
            raise UserError(f"{key}={value!r}: {nearest(str(value), get_args(hint))}")
    elif kind in (list, tuple, dict):
        check_entries(key, value, hint, limits)
    elif kind in NAMES:
        check_kind(key, value, kind)
        if kind in (int, float):
            check_number(key, value, limits.get("bounds", {}))


def check_entries(key: str, values: Any, hint: Any, limits: dict[str, Any]) -> None:
    kind, inner = get_origin(hint) or hint, get_args(hint)
    allowed: Any = dict if kind is dict else (list, tuple)
    if not isinstance(values, allowed):
        raise UserError(f"{key}={values!r} is not a {'mapping' if kind is dict else 'list'}")
    if len(values) < limits.get("min_length", 0):
        raise UserError(f"{key} is empty; give one entry or more")
    if kind is tuple and len(values) != len(inner):
        raise UserError(f"{key}={values!r}: give {len(inner)} entries")
    if kind is not dict:
        for i, value in enumerate(values):
            check_value(f"{key}[{i}]", value, inner[i if kind is tuple else 0], limits)
        return
    for name, value in values.items():
        if limits.get("keys") and name not in limits["keys"]:
            raise UserError(f"{key}.{name}: no such name; {nearest(str(name), limits['keys'])}")
        check_value(f"{key}.{name}", value, inner[1], limits)


def check_kind(key: str, value: Any, kind: Any) -> None:
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{key}={value!r} is not {NAMES.get(kind, kind.__name__)}")


def check_number(key: str, value: float, bounds: dict[str, float]) -> None:
    """UserError for a number that is not finite or out of its range."""
    if not math.isfinite(value):
        raise UserError(f"{key}={value} is not finite")
    if not all(COMPARISONS[name][1](value, bound) for name, bound in bounds.items()):
        raise UserError(f"{key}={value} has to be {range_text(bounds)}")


def range_text(bounds: dict[str, float]) -> str:
    """Bounds in words, such as "from 0 to 1"; empty where there are none."""
    shown = {name: "2^63" if bound == 2**63 else f"{bound:g}" for name, bound in bounds.items()}
    if bounds.keys() == {"ge", "le"}:
        return f"from {shown['ge']} to {shown['le']}"
    return " and ".join(f"{COMPARISONS[name][0]} {bound}" for name, bound in shown.items())


def nearest(word: str, words: Sequence[str]) -> str:
    """Which of `words` was meant, and all of them."""
    near = get_close_matches(word, words, n=1, cutoff=0.5)
    return (f"did you mean {near[0]!r}? " if near else "") + f"choose one of {', '.join(words)}"


def is_optional(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)


def without_none(hint: Any) -> Any:
    """`X | None` => X."""
    return next(arg for arg in get_args(hint) if arg is not type(None))


def type_at(hint: Any, key: str) -> Any:
    """The type of what stands at a dotted key in a config's type, None where nothing does."""
    for name in key.replace("[", ".[").strip(".").split("."):
        hint = without_none(hint) if is_optional(hint) else hint
        if is_dataclass(hint):
            hints = get_type_hints(hint)
            hint = hints.get(name, hints.get(f"{name}_"))
        elif get_origin(hint) in (dict, list, tuple):
            hint = get_args(hint)[-1]
        else:
            return None
    return hint
