"""Flags of a command line that are made from the fields of dataclasses."""

import argparse
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from audioldm2_pl.fields import is_optional, range_text, without_none

METAVARS = {int: "N", float: "X", str: "TEXT"}  # of flags without a unit


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one line, as all other errors."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


class Pairs(argparse.Action):
    """Collects what is given in pairs, each entry of its own type: `--between 4 6 --between 8 9`."""

    def __init__(self, option_strings: Sequence[str], dest: str, *, kinds: tuple[type, type], **options: Any):
        super().__init__(option_strings, dest, nargs=2, **options)
        self.kinds = kinds

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        try:
            pair = tuple(kind(value) for kind, value in zip(self.kinds, values))
        except ValueError as error:
            parser.error(f"{option_string} {' '.join(values)}: {error}")
        setattr(namespace, self.dest, [*getattr(namespace, self.dest, []), pair])


def add_fields(parser: argparse.ArgumentParser, schema: type, default: str = "", leave_out: Sequence[str] = ()) -> None:
    """A flag for each optional field of a dataclass: its names, type or words, help, unit, range and default.

    `default` says where a missing value comes from, if not from the dataclass. Ranges are checked later, by the schema.
    """
    hints = get_type_hints(schema)
    for f in (f for f in fields(schema) if f.default is not MISSING and f.name not in leave_out):
        hint = without_none(hints[f.name]) if is_optional(hints[f.name]) else hints[f.name]
        names = [f"--{name.replace('_', '-')}" for name in (f.name, *f.metadata["aliases"])]
        shown = default or ("" if f.default in (None, "") else str(f.default))
        notes = [range_text(f.metadata["bounds"]), f"default: {shown}" if shown else ""]
        about = f.metadata["help"] + (f" ({'; '.join(filter(None, notes))})" if any(notes) else "")
        parser.add_argument(*names, dest=f.name, default=argparse.SUPPRESS, help=about, **kind_of(f, hint))


def kind_of(field: Any, hint: Any) -> dict[str, Any]:
    """How argparse reads a field of the type `hint`: a word, a yes or no, pairs, or one value."""
    unit = field.metadata["unit"].upper()
    if get_origin(hint) is list:  # of pairs
        kinds = get_args(get_args(hint)[0])
        return {"action": Pairs, "kinds": kinds, "metavar": (unit, "TEXT") if kinds[1] is str else ("START", "STOP")}
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    words = get_args(hint) if get_origin(hint) is Literal else ()
    return {"type": str if words else hint, "metavar": f"{{{','.join(words)}}}" if words else unit or METAVARS[hint]}


def given_fields(args: argparse.Namespace, schema: type) -> dict[str, Any]:
    """The fields of a dataclass that the command line sets."""
    return {f.name: getattr(args, f.name) for f in fields(schema) if hasattr(args, f.name)}


def parse_with_overrides(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """Like parse_args, but prompts and `key=value` may also stand behind an option, where argparse gives up on them."""
    args, rest = parser.parse_known_args(arguments)
    further = getattr(args, "further", "overrides")
    wrong = [word for word in rest if is_option(word) or (further == "overrides" and "=" not in word)]
    if wrong or (rest and not hasattr(args, further)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        getattr(args, further).extend(rest)
    return args


def last_or_batch(text: str) -> int | None:
    """The batch that `--resume` names; None for the last."""
    if text == "last":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither last nor the number of a batch")
    return int(text)


def without_option(arguments: Sequence[str], option: str) -> list[str]:
    """A command line's words without an option and its value."""
    kept: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == option:
            next(words, None)
        elif not word.startswith(f"{option}="):
            kept.append(word)
    return kept


def is_option(word: str) -> bool:
    return word.startswith("-") and " " not in word
