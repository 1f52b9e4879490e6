"""Hook of mkdocs: pages that are made from other files, so that no fact stands twice.

configuration.md      of the config dataclasses: fields, types, defaults, ranges, and the comments beside them
contributing.md, changelog.md     the files of the repository's root
"""

import ast
import dataclasses
import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
INTRODUCTION = """# Configuration

Every key that an experiment's YAML may hold, and `key=value` on the command line, such as
`audioldm2 train demo training.vae.batches=2000`. A word or a number that is not allowed is refused when the file is
read. `audioldm2 describe EXPERIMENT` prints an experiment's own values.
"""


def on_files(files: Files, config: Any) -> Files:
    sys.path.insert(0, str(ROOT))
    pages = {"configuration.md": configuration()}
    for name in ("CONTRIBUTING", "CHANGELOG"):
        text = (ROOT / f"{name}.md").read_text(encoding="utf-8")
        pages["changelog.md" if name == "CHANGELOG" else "contributing.md"] = text.replace("](docs/", "](")
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def configuration() -> str:
    experiment = importlib.import_module("audioldm2_pl.config").ExperimentConfig
    return INTRODUCTION + "\n".join(section("", experiment))


def section(prefix: str, schema: type) -> list[str]:
    """A heading and a table of a dataclass's fields, then the same of the dataclasses in it."""
    hints, said, below = get_type_hints(schema), comments(schema), []
    lines = [f"\n## {prefix.rstrip('.') or 'Experiment'}\n", paragraph(schema), ""]
    lines += ["| key | type | default | range | |", "|---|---|---|---|---|"]
    for field in dataclasses.fields(schema):
        name, hint = field.name.rstrip("_"), hints[field.name]
        if inner := dataclass_in(hint):
            below.append((f"{prefix}{name}.", inner))
        cells = (f"`{name}`", type_text(hint), default_text(field), range_of(schema, field), said.get(field.name, ""))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines + [line for name, inner in below for line in section(name, inner)]


def paragraph(schema: type) -> str:
    """The first of a docstring that somebody wrote."""
    text = inspect.cleandoc(schema.__doc__ or "").split("\n\n")[0]
    return "" if text.startswith(f"{schema.__name__}(") else text


def dataclass_in(hint: Any) -> type | None:
    kinds = [hint, *get_args(hint)]
    return next((kind for kind in kinds if isinstance(kind, type) and dataclasses.is_dataclass(kind)), None)


def type_text(hint: Any) -> str:
    """A type in words; a choice of words by the words."""
    if hint is type(None):
        return "null"
    inner = get_args(hint)
    if get_origin(hint) is not None and type(None) in inner:
        return " or ".join(map(type_text, inner))
    if str(get_origin(hint)).endswith("Literal"):
        return ", ".join(f"`{word}`" for word in inner)
    if get_origin(hint) in (list, tuple):
        return f"list of {type_text(inner[0])}"
    if get_origin(hint) is dict:
        return f"{type_text(inner[0])} → {type_text(inner[1])}"
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", Any: "any"}
    return names.get(
        hint, "settings, below" if dataclasses.is_dataclass(hint) else getattr(hint, "__name__", str(hint))
    )


def default_text(field: dataclasses.Field) -> str:
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if value is dataclasses.MISSING or dataclasses.is_dataclass(value):
        return ""
    words = {"None": "null", "True": "true", "False": "false", "": '""'}
    return f"`{words.get(str(value), value)}`"


def range_of(schema: type, field: dataclasses.Field) -> str:
    fields = importlib.import_module("audioldm2_pl.fields")
    return fields.range_text(fields.limits_of(schema, field.name).get("bounds", {}))


def comments(schema: type) -> dict[str, str]:
    """Field -> its help, or the comment behind it or above it, of the class and of those that it extends."""
    found: dict[str, str] = {}
    for base in reversed([base for base in schema.__mro__ if dataclasses.is_dataclass(base)]):
        lines = inspect.getsource(base).splitlines()
        (tree,) = ast.parse(inspect.cleandoc("\n".join(lines))).body
        for node in tree.body if isinstance(tree, ast.ClassDef) else []:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                behind = re.search(r"#\s*(.+)$", lines[(node.end_lineno or 0) - 1])
                above = re.match(r"\s*#\s*(.+)$", lines[node.lineno - 2])
                text = behind or above
                found[node.target.id] = text[1].replace("<", "&lt;") if text else found.get(node.target.id, "")
    helps = {field.name: field.metadata.get("help", "") for field in dataclasses.fields(schema)}
    return found | {name: text for name, text in helps.items() if text}
