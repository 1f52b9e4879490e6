"""Which clips pair, and which of them tell little of a system.

Generated clips, reference clips, captions and labels pair by their name relative to their folder, without the suffix.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audioldm2_pl.audio import choose_channel, is_silent, read_audio
from audioldm2_pl.errors import UserError

from .features import load_ahead
from .folders import clip_files, read_names
from .protocols import Protocol

SHORT_SECONDS = 0.1  # a clip below this gets a warning: a network reads nothing in it


@dataclass
class Inputs:
    """The material of a score."""

    generated: Path  # folder of audio
    reference: Path | None = None  # folder of real audio under the same names
    captions: Path | None = None  # CSV with the columns filename and caption
    labels: Path | None = None  # CSV with the columns filename and label, a clip's events in order


@dataclass
class Pairs:
    names: list[str]  # sorted
    generated: list[Path]
    reference: list[Path]  # empty without a reference folder
    captions: list[list[str]]  # of each clip; empty without a captions file
    labels: list[list[str]]  # of each clip; empty without a labels file
    missing: dict[str, list[str]]  # of generated, reference, captions, labels: the names that others have


def pair_up(inputs: Inputs, protocol: Protocol) -> Pairs:
    """The clips that all sides have; UserError where that is less than the protocol's share of all names."""
    sides: dict[str, dict[str, Any]] = {"generated": clip_files(inputs.generated)}
    if inputs.reference:
        sides["reference"] = clip_files(inputs.reference)
    if inputs.captions:
        sides["captions"] = read_names(inputs.captions, "caption")
    if inputs.labels:
        sides["labels"] = read_names(inputs.labels, "label")
    everything = sorted(set().union(*sides.values()))
    names = [name for name in everything if all(name in side for side in sides.values())]
    missing = {side: [name for name in everything if name not in have] for side, have in sides.items()}
    if len(names) < max(1, protocol.min_paired * len(everything)):
        side, absent = max(missing.items(), key=lambda item: len(item[1]))
        raise UserError(
            f"only {len(names)} of {len(everything)} names are in {', '.join(sides)} alike, the protocol asks for "
            f"{protocol.min_paired:.0%}; {side} misses {len(absent)}, first {absent[0]!r}"
        )
    found = {side: [have[name] for name in names] for side, have in sides.items()}
    texts = found.get("captions", [])
    if protocol.captions == "first":
        texts = [text[:1] for text in texts]
    return Pairs(names, found["generated"], found.get("reference", []), texts, found.get("labels", []), missing)


def clip_warnings(side: str, names: list[str], paths: list[Path], num_workers: int = 4) -> list[str]:
    """A line for each kind of clips that tell little of a system: silent, very short, all alike."""
    facts = list(load_ahead(facts_of, paths, num_workers))
    silent = [name for name, (is_silent, _, _) in zip(names, facts) if is_silent]
    short = [name for name, (_, seconds, _) in zip(names, facts) if seconds < SHORT_SECONDS]
    lines = [
        f"{side}: {len(found)} of {len(names)} clips are {kind}, first {found[0]!r}"
        for kind, found in (("silent", silent), (f"shorter than {SHORT_SECONDS} s", short))
        if found
    ]
    (_, most), *_ = Counter(digest for _, _, digest in facts).most_common(1)
    if most > 1 and 2 * most > len(names):
        lines.append(f"{side}: {most} of {len(names)} clips are the same sound")
    return lines


def facts_of(path: Path) -> tuple[bool, float, str]:
    """Whether a file is silent, its seconds, and its sound's sha256."""
    channels, rate = read_audio(path)
    waveform = choose_channel(channels)
    return is_silent(waveform), len(waveform) / rate, hashlib.sha256(waveform.tobytes()).hexdigest()
