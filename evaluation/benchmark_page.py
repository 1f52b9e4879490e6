"""The benchmark as one HTML file that needs nothing else."""

import random
from collections.abc import Iterator
from html import escape
from typing import Any

from omegaconf import OmegaConf

from .benchmark_audio import Bench
from .benchmark_charts import Point, Row, curve_chart, interval_chart
from .figures import Figure
from .page import MAX_MEDIA_BYTES, duration, fill_template, sound_player, table
from .pictures import number
from .published import PublishedTable, published_tables

HIGHER_IS_BETTER = {"frechet": False, "kl": False, "inception": True, "clap": True, "wer": False}  # by kind
EXTREMES = 2  # clips shown from each end of a score, and drawn at random


def render_benchmark(results: dict[str, Any], benches: list[Bench], figures: dict[str, list[Figure]]) -> str:
    """results: the report's JSON; figures: experiment -> its figures. => HTML"""
    systems, protocol = results["systems"], results["protocol"]
    return fill_template(
        "benchmark.html",
        title=escape(", ".join(systems)),
        about=escape(". ".join(b.experiment.description for b in benches if b.experiment.description)),
        summary=escape(summary(systems, protocol["name"])),
        protocol=escape(protocol["name"]),
        scores=score_table(systems),
        warnings=notes(
            f"{name}: {line}" for name, result in systems.items() for line in (*result["warnings"], *beside(result))
        ),
        charts=score_charts(systems),
        differences=difference_tables(results["differences"]),
        published="".join(map(published_section, published_tables())),
        examples=examples(benches, systems),
        figures="".join(
            figure_section(bench, figure, len(benches)) for bench in benches for figure in figures[bench.name]
        ),
        figure_links='<a href="#figures">Figures</a>' if any(figures.values()) else "",
        settings=settings_table(results["settings"]),
        provenance=provenance_table(results, benches),
        protocol_settings=escape(OmegaConf.to_yaml(OmegaConf.create(protocol_of(systems)))),
    )


def protocol_of(systems: dict[str, dict]) -> dict[str, Any]:
    return next(iter(systems.values()))["protocol_settings"]


def direction(systems: dict[str, dict], score: str) -> str:
    return "↑" if HIGHER_IS_BETTER[protocol_of(systems)["scores"][score]["kind"]] else "↓"


def summary(systems: dict[str, dict], protocol: str) -> str:
    counts = ", ".join(f"{result['num_clips']} clips of {name}" for name, result in systems.items())
    return f"{counts}, measured under {protocol}."


def beside(result: dict[str, Any]) -> Iterator[str]:
    """A line for each score that lies outside its own interval, which a reader would take for a mistake."""
    for name, score in result["scores"].items():
        if score["low"] is not None and not score["low"] <= score["value"] <= score["high"]:
            yield (
                f"{name} {number(score['value'])} lies outside its interval [{number(score['low'])}, "
                f"{number(score['high'])}]: so few clips make the score itself too large or too small, and the basic "
                "bootstrap takes that off the bounds, not off the score"
            )


def notes(lines: Iterator[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="notes quiet">{items}</ul>' if items else ""


def with_interval(score: dict[str, Any]) -> str:
    if score["value"] is None:
        return "–"
    interval = "" if score["low"] is None else f"[{number(score['low'])}, {number(score['high'])}]"
    return f"<b>{number(score['value'])}</b> <small>{interval}</small>"


def score_table(systems: dict[str, dict]) -> str:
    names = list(protocol_of(systems)["scores"])
    header = ["System", *(f"{escape(name)} {direction(systems, name)}" for name in names), "Clips"]
    rows = [
        [escape(system), *(with_interval(result["scores"][name]) for name in names), str(result["num_clips"])]
        for system, result in systems.items()
    ]
    return table(header, rows)


def score_charts(systems: dict[str, dict]) -> str:
    """Each score's intervals, and each Fréchet distance against the number of clips."""
    charts, curves = [], []
    for name in protocol_of(systems)["scores"]:
        found = {system: result["scores"][name] for system, result in systems.items()}
        rows: list[Row] = [(s, f["value"], f["low"], f["high"]) for s, f in found.items() if f["value"] is not None]
        better = "higher is better" if direction(systems, name) == "↑" else "lower is better"
        charts += [interval_chart(name, f"95 % intervals, {better}", rows)] if rows else []
        for system, score in found.items():
            if curve := score.get("against_n"):
                note = f"{system}; extrapolated to n = ∞: {number(score['at_infinity'])} (R² {score['r_squared']:.2f})"
                points: list[Point] = [(float(n), value, None, None) for n, value in curve]
                curves.append(curve_chart(f"{name} against clips", note, points, "clips", score["at_infinity"]))
    return "".join(charts + curves)


def difference_tables(differences: list[dict[str, Any]]) -> str:
    sections = []
    for entry in differences:
        title = f"<h3>{escape(entry['first'])} − {escape(entry['second'])}, the same clips</h3>"
        if entry["refused"]:
            sections.append(f"{title}<p>{escape(entry['refused'])}</p>")
            continue
        rows = [
            [escape(name), with_interval(score), "apart" if score["apart"] else "not told apart"]
            for name, score in entry["scores"].items()
        ]
        sections.append(title + table(["Score", "Difference", ""], rows))
    return "".join(sections)


def published_section(published: PublishedTable) -> str:
    header = ["System", *map(escape, published.columns)]
    rows = [["–" if cell == "-" else escape(cell) for cell in (s, *c)] for s, c in published.rows]
    source = f"{escape(published.source)}, {published.year}"
    title = f"<h3>Table {published.number}: {escape(published.title)} <small>published: {source}</small></h3>"
    return f"<div>{title}{table(header, rows)}</div>"


def tagged_clips(systems: dict[str, dict]) -> dict[str, list[str]]:
    """Clip -> why it is shown: the worst and best of each score, system by system, and some at random."""
    tags: dict[str, list[str]] = {}
    ends: dict[str, list[tuple[str, str]]] = {"worst": [], "best": []}
    for system, result in systems.items():
        for name, score in result["scores"].items():
            known = {key: value for key, value in (score["per_clip"] or {}).items() if value is not None}
            ranked = sorted(known, key=lambda key: known[key], reverse=direction(systems, name) == "↓")
            for rank in range(min(EXTREMES, len(ranked) // 2)):
                for end, key in (("worst", ranked[rank]), ("best", ranked[-1 - rank])):
                    ends[end].append((key, f"{end} {name} of {system}: {number(known[key])}"))
    for key, tag in (*ends["worst"], *ends["best"]):
        tags.setdefault(key, []).append(tag)
    shared = sorted(set.intersection(*(set(result["clips"]) for result in systems.values())))
    for key in random.Random(0).sample(shared, min(EXTREMES, len(shared))):
        tags.setdefault(key, []).append("drawn at random")
    return tags


def examples(benches: list[Bench], systems: dict[str, dict]) -> str:
    """Each clip's reference and generations. What would make the page too large is left out."""
    articles, num_bytes = [], 0
    for key, tags in tagged_clips(systems).items():
        having = [bench for bench in benches if key in bench.texts]
        cells = [cell("Reference", having[0], "reference", key)]
        cells += [cell(bench.name, bench, "text_to_audio", key) for bench in having]
        num_bytes += sum(map(len, cells))
        if articles and num_bytes > MAX_MEDIA_BYTES:
            break
        text = escape(having[0].texts[key][0])
        articles.append(
            f'<article><h3>“{text}”</h3><p class="events">{escape("; ".join(tags))}</p>'
            f'<div class="cells free">{"".join(cells)}</div></article>'
        )
    return "\n".join(articles)


def cell(title: str, bench: Bench, system: str, key: str) -> str:
    player = sound_player(bench.file(system, key), f"{key}, {title}", bench.audio)
    return f'<div class="cell"><h4>{escape(title)}</h4>{player}</div>'


def figure_section(bench: Bench, figure: Figure, num_benches: int) -> str:
    of = f" <small>{escape(bench.name)}</small>" if num_benches > 1 else ""
    rows = []
    for text, sounds in figure.examples:
        cells = "".join(
            f'<div class="cell"><h4>{escape(what)}</h4>{sound_player(path, f"{text}, {what}", bench.audio)}</div>'
            for what, path in sounds
        )
        rows.append(f'<article><h3>“{escape(text)}”</h3><div class="cells free">{cells}</div></article>')
    return (
        f"<section><h2>{escape(figure.title)}{of}</h2><p>{escape(figure.about)}</p>"
        f'<div class="charts">{"".join(figure.charts)}</div>{"".join(rows)}</section>'
    )


def settings_table(settings: dict[str, Any]) -> str:
    rows = [[escape(key), *map(escape, values)] for key, values in settings["rows"].items()]
    header = ["Setting", *map(escape, settings["columns"])]
    return f"<details><summary>{len(rows)} settings differ</summary>{table(header, rows, 'settings')}</details>"


def provenance_table(results: dict[str, Any], benches: list[Bench]) -> str:
    protocol, systems, first = results["protocol"], results["systems"], next(iter(results["systems"].values()))
    facts = {
        "protocol": f"{protocol['name']}: {protocol['about']} {protocol['source']}",
        "protocol's sha256": first["protocol_sha256"],
        **{
            f"weights of {model}": ", ".join(f"{file} {digest}" for file, digest in files.items())
            for model, files in first["weights"].items()
        },
        "versions": ", ".join(f"{library} {version}" for library, version in first["versions"].items() if version),
        "bootstrap": f"{first['resamples']} resamples of distances, 25 times as many of means, seed {first['seed']}",
        "page made in": duration(results["seconds"]),
    }
    for bench in benches:
        result, origin = systems[bench.name], results["origins"][bench.name]
        missing = {side: len(names) for side, names in result["missing"].items() if names}
        facts |= {
            f"{bench.name}: model's sha256": origin["model"],
            f"{bench.name}: sampling": ", ".join(f"{k} {v}" for k, v in origin["sampling"].items())
            + f", seed {origin['seed']}, {bench.device}",
            f"{bench.name}: test set": f"{results['test_sets'][bench.name]}, {result['num_clips']} clips, sha256 of "
            f"its index {origin['test']}, missing {missing or 'none'}, Hz {result['sample_rates']}",
            f"{bench.name}: generated audio's sha256": result["sha256"]["generated"],
            f"{bench.name}: reference's sha256": result["sha256"]["reference"],
            f"{bench.name}: generated in": duration(bench.sound.seconds),
        }
    return table(["Fact", ""], [[escape(name), escape(str(value))] for name, value in facts.items()], "facts")
