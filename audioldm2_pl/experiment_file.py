"""A YAML and `key=value` words => plain values. A file is data: no tag, resolver or `${...}` in it does anything.

A scalar whose field holds a text stays as it is written: `name: 0123` is no number there, and `words: [on]` no truth.
"""

from collections.abc import Iterator
from dataclasses import is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf

from audioldm2_pl.errors import UserError
from audioldm2_pl.fields import is_optional, type_at, without_none

MAX_VALUES = 100_000  # in one file, those that aliases repeat included
MAX_DEPTH = 20  # of a file's nesting, and of files over files
RENAMED_KEYS = {  # key of an earlier version -> today's, or a sentence that tells what to write
    "diffusion.sampler": "sampling.sampler",
    "diffusion.num_steps": "sampling.num_steps",
    "diffusion.guidance_scale": "sampling.guidance_scale",
    "diffusion.eta": "sampling.eta",
    "diffusion.unconditional": "sampling.unconditional",
    "diffusion.candidates": "sampling.candidates",
    "training.ldm.loa_dropout": "write diffusion.dropout_alone.loa, which the joint stage heeds too",
    "unet.cross_attention_dim": "write unet.conditions, a list of names such as [loa, t5]; the widths follow from it",
    "unet.film_dim": "write unet.film, the name of the condition, such as clap; the width follows from it",
}
TEXT = "tag:yaml.org,2002:str"
NULL = "tag:yaml.org,2002:null"


def read_yaml(path: Path, schema: type, over: tuple[Path, ...] = ()) -> DictConfig:
    """A YAML merged over the files that its `base:` names (a path from its folder or a shipped one's name, or a list).

    `schema` is the dataclass that it fills, `over` the files that name this one as their base.
    """
    path = find_yaml(path)
    if path.resolve() in over or len(over) > MAX_DEPTH:
        raise UserError(f"{path}: is its own base, or has too many below each other; take its base: out")
    content = values_of(path, schema)
    bases = content.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: base: names a YAML file beside this one, or a list of them")
    merged = [read_yaml(find_yaml(Path(base), path.parent), schema, (*over, path.resolve())) for base in bases]
    return OmegaConf.merge(*merged, OmegaConf.create(content))  # type: ignore[return-value]


def find_yaml(path: Path, folder: Path = Path()) -> Path:
    """A path from a folder on; where nothing lies there, the shipped experiment of that name: demo, table_1/audioldm_m,
    experiments/demo.yaml. So a name means the same in a clone, beside an installation and in `base:`.

    Raises UserError where there is neither.
    """
    if (folder / path).is_file():
        return folder / path
    name = Path(*path.parts[1:]) if path.parts[:1] == ("experiments",) else path
    shipped = shipped_experiments()
    found = shipped.get(str(name.with_suffix("") if name.suffix == ".yaml" else name))
    if found is None:
        near = get_close_matches(str(name.with_suffix("")), list(shipped), n=1, cutoff=0.6)
        raise UserError(f"{folder / path}: no such experiment file{f'; did you mean {near[0]!r}?' if near else ''}")
    return found


def shipped_experiments() -> dict[str, Path]:
    """Name -> YAML of the experiments that come with the code."""
    package = Path(__file__).parent
    installed = package / "experiments"
    folder = installed if installed.is_dir() else package.parent / "experiments"
    return {str(path.relative_to(folder).with_suffix("")): path for path in sorted(folder.rglob("*.yaml"))}


def values_of(path: Path, schema: type) -> dict[str, Any]:
    """A file's mapping of keys to values. Raises UserError where it is none."""
    try:
        content = construct(path.read_text(encoding="utf-8-sig"), schema)
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path}: not valid YAML ({one_line(error)})") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: an experiment is a mapping of keys to values")
    return content


def value_of(override: str, schema: type) -> dict[str, Any]:
    """`key=value` => {key: value}."""
    key, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"{override!r}: an override is key=value, for example trainer.devices=2")
    check_text(key, text)
    check_renamed(key)
    hint = type_at(schema, key)
    optional = is_optional(hint)
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if holds_text(hint) and not quoted and not (optional and text in ("null", "")):
        return {key: text}
    try:
        return {key: construct(text, hint, key)}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{override}: not a value ({one_line(error)}); put it in quotes") from None


def construct(text: str, hint: Any, key: str = "") -> Any:
    """YAML => dicts, lists and scalars, for a field of a type."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        prepare(node, hint, key)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def prepare(node: yaml.Node, hint: Any, key: str, depth: int = 0) -> int:
    """Marks the scalars of text fields as texts => the number of values.

    Raises UserError for `${...}`, for a key that stands twice, and for more values than an experiment has.
    """
    if isinstance(node, yaml.ScalarNode):
        check_text(key, node.value)
        if is_dataclass(hint):
            raise UserError(f"{key}: {node.value!r} stands where settings do; write {{setting: value}}")
        if holds_text(hint) and not (node.tag == NULL and is_optional(hint)):
            node.tag = TEXT
        return 1
    count = 1
    for child, child_hint, child_key in children(node, hint, key):
        if depth == MAX_DEPTH or count > MAX_VALUES:
            raise UserError(f"{key.partition('.')[0]}: nested too deep, or holds too many values")
        count += prepare(child, child_hint, child_key, depth + 1)
    return count


def children(node: yaml.Node, hint: Any, key: str) -> Iterator[tuple[yaml.Node, Any, str]]:
    """(node, type, dotted key) of a list's or a mapping's values."""
    if isinstance(node, yaml.SequenceNode):
        if get_origin(hint) is tuple and len(node.value) != len(get_args(hint)):
            raise UserError(f"{key}: {len(node.value)} entries, has to have {len(get_args(hint))}")
        for i, child in enumerate(node.value):
            yield child, type_at(hint, f"[{i}]"), f"{key}[{i}]"
        return
    seen = set()
    for name, child in node.value:
        if name.tag == "tag:yaml.org,2002:merge":
            yield child, hint, key
            continue
        if not isinstance(name, yaml.ScalarNode):
            raise UserError(f"{key}: a key is a word")
        name.tag = TEXT
        dotted = f"{key}.{name.value}".lstrip(".")
        check_text(dotted, name.value)
        check_renamed(dotted)
        if name.value in seen:
            raise UserError(f"{dotted}: stands there twice; take one out")
        seen.add(name.value)
        yield child, type_at(hint, name.value), dotted


def check_renamed(key: str) -> None:
    """UserError for a key of an earlier version, which names today's."""
    if key in RENAMED_KEYS:
        now = RENAMED_KEYS[key]
        raise UserError(f"{key}: {now}" if " " in now else f"{key} is now {now}")


def check_text(key: str, text: str) -> None:
    if "${" in text:
        raise UserError(f"{key}: {text!r}: nothing is filled in for ${{...}}, a file is data; write the value itself")
    if "\0" in text or (not text.isprintable() and any("\ud800" <= c <= "\udfff" for c in text)):
        raise UserError(f"{key}: {text!r} is not a text")


def holds_text(hint: Any) -> bool:
    hint = without_none(hint) if is_optional(hint) else hint
    return hint is str or (get_origin(hint) is Literal and all(isinstance(word, str) for word in get_args(hint)))


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
