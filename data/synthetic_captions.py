"""Captions of the synthetic corpus: events in, a line of text out."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

# Which attributes the captions of a class may name.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "tone": ("loudness", "pitch"),
    "rising chirp": ("loudness", "pitch"),
    "falling chirp": ("loudness", "pitch"),
    "bell": ("loudness", "tempo", "pitch"),
    "plucked string": ("loudness", "tempo", "pitch"),
    "drum loop": ("loudness", "tempo"),
    "siren": ("loudness", "tempo"),
    "engine": ("loudness", "tempo"),
    "ticking clock": ("loudness", "tempo"),
    "rain": ("loudness",),
    "bird": ("loudness", "tempo", "pitch"),
    "wind": ("loudness", "pitch"),
}

# {a}: article and adjectives; {such}: adjectives alone, of what has no article; {how}: adverbs.
NOUNS: dict[str, tuple[str, ...]] = {
    "tone": ("{a} tone", "{a} steady tone", "{a} sustained tone"),
    "rising chirp": ("{a} rising chirp", "{a} upward sweep", "{a} chirp going up"),
    "falling chirp": ("{a} falling chirp", "{a} downward sweep", "{a} chirp going down"),
    "bell": ("{a} bell", "{a} ringing bell", "{a} bell ringing{how}"),
    "plucked string": ("{a} plucked string", "{a} string plucked{how}", "{a} guitar string"),
    "drum loop": ("{a} drum loop", "{a} drum beat", "{a} beat of drums"),
    "siren": ("{a} siren", "{a} wailing siren", "{a} siren wailing{how}"),
    "engine": ("{a} engine", "{a} running engine", "{a} motor running{how}"),
    "ticking clock": ("{a} ticking clock", "{a} clock ticking{how}", "{a} clock"),
    "rain": ("{such} rain", "{such} rainfall", "{such} rain falling{how}"),
    "bird": ("{a} bird", "{a} chirping bird", "{a} bird singing{how}"),
    "wind": ("{such} wind", "{such} howling wind", "{such} wind blowing{how}"),
}
CLAUSES: dict[str, tuple[str, ...]] = {
    "tone": ("{a} tone sounds{how}", "{a} tone is held{how}"),
    "rising chirp": ("{a} chirp rises{how}", "{a} tone sweeps upward{how}"),
    "falling chirp": ("{a} chirp falls{how}", "{a} tone sweeps downward{how}"),
    "bell": ("{a} bell rings{how}", "{a} bell is struck{how}"),
    "plucked string": ("{a} string is plucked{how}", "someone plucks {a} string{how}"),
    "drum loop": ("{a} drum loop plays{how}", "drums beat{how}", "someone drums{how}"),
    "siren": ("{a} siren wails{how}", "{a} siren goes off{how}"),
    "engine": ("{a} engine runs{how}", "{a} motor hums{how}"),
    "ticking clock": ("{a} clock ticks{how}", "{a} clock is ticking{how}"),
    "rain": ("{such} rain falls{how}", "it rains{how}"),
    "bird": ("{a} bird sings{how}", "{a} bird chirps{how}"),
    "wind": ("{such} wind blows{how}", "{such} wind howls{how}"),
}
SINGLES = ("{noun}", "the sound of {noun}", "{clause}", "{noun} is heard", "you can hear {noun}")
PAIRS = (
    "{noun_1}, then {noun_2}",
    "{clause_1}, then {clause_2}",
    "first {noun_1}, then {noun_2}",
    "{noun_1} followed by {noun_2}",
    "{noun_1} before {noun_2}",
    "{noun_2} after {noun_1}",
    "after {noun_1} comes {noun_2}",
    "{noun_2} preceded by {noun_1}",
)
WORDS: dict[str, tuple[str, ...]] = {
    "low": ("low", "deep", "low-pitched"),
    "middle": ("middle-pitched", "medium-pitched"),
    "high": ("high", "high-pitched"),
    "slow": ("slow",),
    "fast": ("fast", "quick"),
    "soft": ("soft", "quiet"),
    "loud": ("loud",),
}
ADVERBS: dict[str, tuple[str, ...]] = {
    "slow": ("slowly",),
    "fast": ("fast", "quickly"),
    "soft": ("softly", "quietly"),
    "loud": ("loudly",),
}
NAMED_RATIO = 0.6  # how often a caption names an attribute


def caption(events: Sequence[dict[str, Any]], rng: np.random.Generator) -> str:
    """One wording out of many for one or two events: a lower-case line of at most 120 characters.

    `events` are the "events" of a clip's JSON, in order: names and attributes are read.
    """
    parts: dict[str, str] = {}
    for number, event in enumerate(events, 1):
        ending = f"_{number}" if len(events) > 1 else ""
        parts[f"noun{ending}"] = _phrase(NOUNS, event, rng)
        parts[f"clause{ending}"] = _phrase(CLAUSES, event, rng)
    text = str(rng.choice(SINGLES if len(events) == 1 else PAIRS)).format(**parts)
    return re.sub(r"\ba (?=[aeiou])", "an ", re.sub(r" +", " ", text).strip())


def _phrase(wordings: dict[str, tuple[str, ...]], event: dict[str, Any], rng: np.random.Generator) -> str:
    wording = str(rng.choice(wordings[event["name"]]))
    adjectives, adverbs = [], []
    for attribute in ATTRIBUTES[event["name"]]:
        level = event[attribute]
        if rng.uniform() >= NAMED_RATIO:
            continue
        no_adjective = "{a}" not in wording and "{such}" not in wording
        if "{how}" in wording and level in ADVERBS and (no_adjective or rng.uniform() < 0.5):
            adverbs.append(str(rng.choice(ADVERBS[level])))
        elif not no_adjective:
            adjectives.append(str(rng.choice(WORDS[level])))
    such = " ".join(adjectives)
    how = " " + " and ".join(adverbs) if adverbs else ""
    return wording.format(a=f"a {such}".strip(), such=such, how=how).strip()
