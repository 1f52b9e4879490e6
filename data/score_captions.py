"""Captions of rendered scores: what is true of a clip in, a line of text out."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

# Beats a minute of each word; between them no word fits well, and no clip is there.
TEMPO_BANDS = {"slow": (50.0, 70.0), "moderate": (84.0, 108.0), "fast": (132.0, 172.0)}
REGISTERS = {"low": (0, 55), "middle": (55, 74), "high": (74, 128)}  # of the leading part's mean MIDI pitch

NAMED_RATIO = 0.6  # how often a caption names a tempo, a key, a metre or a register that it may name
SPEEDS: dict[str, tuple[str, ...]] = {
    "slow": ("slow", "calm"),
    "moderate": ("moderate", "medium-tempo"),
    "fast": ("fast", "quick", "lively"),
}
ADVERBS: dict[str, tuple[str, ...]] = {"slow": ("slowly",), "moderate": ("at a moderate pace",), "fast": ("fast",)}
HEIGHTS: dict[str, tuple[str, ...]] = {"low": ("low", "deep"), "middle": (), "high": ("high",)}
DUETS = ("{lead} with {other}", "{lead} and {other}", "{lead} accompanied by {other}", "{lead} over {other}")
# {who}: the instruments with articles; {plain}: without; {speed}: an adjective or nothing; {how}: an adverb or nothing.
TEMPLATES = (
    "{who} playing a {speed} melody{facts}",
    "a {speed} tune played by {who}{facts}",
    "{speed} music for {plain}{facts}",
    "a {speed} piece for {plain}{facts}",
    "{who}{how}{facts}",
    "a recording of {who}{how}{facts}",
    "{speed} music played by {who}{facts}",
)


def caption(truth: dict[str, Any], rng: np.random.Generator) -> str:
    """One wording out of many; it names the instruments, and of the rest what it draws.

    `truth` has the clip's "labels" (instruments, the leading one first), "tempo_bpm", "tempo", "musical_key",
    "metre", "register"; key and metre may be None.
    """
    template = str(rng.choice(TEMPLATES))
    speed = how = ""
    if rng.uniform() < NAMED_RATIO:
        speed = str(rng.choice(SPEEDS[truth["tempo"]]))
        how = f" {rng.choice(ADVERBS[truth['tempo']])}"
    if "{how}" in template and how:
        how = " playing" + how
    height = ""
    if (words := HEIGHTS[truth["register"]]) and rng.uniform() < NAMED_RATIO:
        height = str(rng.choice(words))
    names = [f"{height} {truth['labels'][0]}".strip(), *truth["labels"][1:]]
    who = _joined([f"a {name}" for name in names], rng)
    text = template.format(who=who, plain=_joined(names, rng), speed=speed, how=how, facts=_facts(truth, rng))
    text = re.sub(r"\ba (?=[aeiou])", "an ", re.sub(r" +", " ", text).strip())
    return text.replace(" ,", ",")


def _joined(names: Sequence[str], rng: np.random.Generator) -> str:
    return names[0] if len(names) == 1 else str(rng.choice(DUETS)).format(lead=names[0], other=names[1])


def _facts(truth: dict[str, Any], rng: np.random.Generator) -> str:
    """ ", in G major, in 3/4 time, at 92 BPM": those that are known and drawn, in any order."""
    facts = []
    if truth["musical_key"]:
        facts.append(f"in {truth['musical_key']}")
    if truth["metre"]:
        facts.append(str(rng.choice(("in {0} time", "in {0}"))).format(truth["metre"]))
    facts.append(str(rng.choice(("at {0} BPM", "{0} beats per minute"))).format(truth["tempo_bpm"]))
    drawn = [fact for fact in facts if rng.uniform() < NAMED_RATIO]
    return "".join(f", {drawn[k]}" for k in rng.permutation(len(drawn)))
