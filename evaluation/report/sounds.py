"""The sections of the page to listen to: worst, best and random clips, labelled clips, the paper's figures."""

import random
from collections import Counter
from functools import partial

from markupsafe import Markup

from ..metrics import METRICS, Metric
from .bench import Bench
from .charts import short_number
from .classification import Prediction, Predictions
from .figures import Figure
from .generate import SYSTEM_NAMES, SYSTEMS
from .page import Example, Part, Section, fitting, sound_player

EXTREMES = 2  # clips shown from each end of a score, and drawn at random
ROWS_PER_CLASS = 2  # labelled clips shown
ORDER_ROWS = 8  # two-event clips shown


def metrics_of(systems: dict[str, dict]) -> dict[str, Metric]:
    """Score -> its metric, under the protocol that all results share."""
    protocol = next(iter(systems.values()))["protocol_settings"]
    return {name: METRICS[score["kind"]] for name, score in protocol["scores"].items()}


def tagged_clips(systems: dict[str, dict]) -> dict[str, list[str]]:
    """Clip -> why it is shown: the worst and best of each score, system by system, and some at random."""
    tags: dict[str, list[str]] = {}
    ends: dict[str, list[tuple[str, str]]] = {"worst": [], "best": []}
    metrics = metrics_of(systems)
    for system, result in systems.items():
        for name, score in result["scores"].items():
            known = {key: value for key, value in (score["per_clip"] or {}).items() if value is not None}
            ranked = sorted(known, key=lambda key: known[key], reverse=not metrics[name].higher_is_better)
            for rank in range(min(EXTREMES, len(ranked) // 2)):
                for end, key in (("worst", ranked[rank]), ("best", ranked[-1 - rank])):
                    ends[end].append((key, f"{end} {name} of {system}: {short_number(known[key])}"))
    for key, tag in (*ends["worst"], *ends["best"]):
        tags.setdefault(key, []).append(tag)
    shared = sorted(set.intersection(*(set(result["clips"]) for result in systems.values())))
    for key in random.Random(0).sample(shared, min(EXTREMES, len(shared))):
        tags.setdefault(key, []).append("drawn at random")
    return tags


def tagged_example(benches: list[Bench], key: str, tags: list[str]) -> Example:
    """A clip's reference and generations."""
    having = [bench for bench in benches if key in bench.texts]
    sounds = [sound_player(having[0].sound.path("reference", key), "Reference", having[0].audio)]
    sounds += [sound_player(bench.sound.path(bench.options.system, key), bench.name, bench.audio) for bench in having]
    return Example(having[0].texts[key][0], "; ".join(tags), sounds)


def listen_section(benches: list[Bench], systems: dict[str, dict]) -> Section:
    makers = [partial(tagged_example, benches, key, tags) for key, tags in tagged_clips(systems).items()]
    text = "The clips with the worst and the best scores of their own, and some drawn at random."
    return Section("listen", "Listen", text, [Part(examples=[example]) for example in fitting(makers)], "pairs")


def chosen_clips(labels: dict[str, list[str]]) -> list[str]:
    """Two-event clips and one clip of every class first: what does not fit into the page falls off the end."""
    seen: Counter[str] = Counter()
    ranked: list[tuple[int, int, str]] = []
    for i, (key, names) in enumerate(labels.items()):
        group = "pair" if len(names) == 2 else names[0]
        limit = ORDER_ROWS if group == "pair" else ROWS_PER_CLASS
        if seen[group] < limit:
            rank = seen[group] if group != "pair" else seen[group] // (ORDER_ROWS // ROWS_PER_CLASS)
            ranked.append((rank, i, key))
        seen[group] += 1
    return [key for _, _, key in sorted(ranked)]


def labelled_example(bench: Bench, key: str, predictions: Predictions) -> Example:
    sounds = [
        sound_player(
            bench.sound.path(system, key), SYSTEM_NAMES[system], bench.audio, prediction_note(predictions[system][key])
        )
        for system in SYSTEMS
    ]
    return Example(bench.texts[key][0], " → ".join(bench.labels[key]), sounds)


def prediction_note(prediction: Prediction) -> Markup:
    mark, css = ("✓", "hit") if prediction.right else ("✗", "miss")
    text = '<span class="{}">{}</span> {} <small>{} %</small>'
    return Markup(text).format(css, mark, " → ".join(prediction.classes), f"{100 * prediction.probability:.0f}")


def labelled_section(bench: Bench, predictions: Predictions) -> Section:
    chosen = [key for key in chosen_clips(bench.labels) if all(key in found for found in predictions.values())]
    shown = {
        key: example
        for key, example in zip(chosen, fitting(partial(labelled_example, bench, key, predictions) for key in chosen))
    }
    text = (
        "Held-out prompts. A small classifier was trained on clips that no generator saw. Under each clip is what it "
        "predicts and how sure it is; two-event clips are classified half by half, and ✓ means that the order is right."
    )
    return Section("listen", "Listen", text, [Part(examples=[shown[key] for key in bench.labels if key in shown])])


def figures_section(benches: list[Bench], figures: dict[str, list[Figure]]) -> Section:
    parts = []
    for bench in benches:
        for figure in figures[bench.name]:
            heading = Markup("{} <small>{}</small>").format(figure.title, bench.name if len(benches) > 1 else "")
            examples = [
                Example(text, "", [sound_player(path, what, bench.audio) for what, path in sounds])
                for text, sounds in figure.examples
            ]
            parts.append(Part(heading, figure.about, charts=figure.charts, examples=examples))
    return Section("figures", "Figures", "", parts)
