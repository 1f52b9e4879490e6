"""The report's JSON and audio => the sections of its page."""

from typing import Any

from markupsafe import Markup
from omegaconf import OmegaConf

from audioldm2_pl.config import to_plain

from ..metrics import METRICS
from ..metrics.metric import Metric
from .bench import Bench
from .charts import Point, Row, curve_chart, interval_chart, loss_chart, short_number
from .classification import predictions_of
from .costs import Curves, loss_curves
from .figures import Figure
from .generate import SYSTEM_NAMES, SYSTEMS
from .page import Chart, Page, Part, Section, Table, duration, percent, shaded, with_interval
from .published import published_tables
from .sounds import figures_section, labelled_section, listen_section, metrics_of

OTHER_NAMES = {  # of what is measured beside the scores
    "levels": "Clipped samples",
    "seconds": "Time of all stages and this report",
    "peak_memory_gib": "Memory of the largest process",
}


def build_page(results: dict[str, Any], benches: list[Bench], figures: dict[str, list[Figure]]) -> Page:
    """results: the report's JSON; figures: experiment -> its figures."""
    descriptions = [bench.experiment.description for bench in benches if bench.experiment.description]
    sections = [scores_section(results)]
    if benches[0].has_labels:
        predictions = predictions_of(results["systems"], benches[0].labels)
        sections += [labelled_section(benches[0], predictions), classes_section(results)]
    else:
        sections += [published_section(), listen_section(benches, results["systems"])]
    if any(figures.values()):
        sections.append(figures_section(benches, figures))
    sections += [
        losses_section({bench.name: loss_curves(bench.experiment.run_folder) for bench in benches}),
        costs_section(results["costs"]),
        settings_section(results["settings"]),
        provenance_section(results, benches),
    ]
    missed = results.get("missed_targets")
    reached = None if missed is None else not missed
    return Page(", ".join(b.name for b in benches), ". ".join(descriptions), summary_of(results), reached, sections)


def summary_of(results: dict[str, Any]) -> str:
    if "targets" in results:
        measured = [t for t in results["targets"].values() if t["reached"] is not None]
        counts = results["num_clips"]
        return (
            f"{sum(t['reached'] for t in measured)} of {len(measured)} targets reached, on {counts['class_accuracy']} "
            f"one-event and {counts['order_accuracy']} two-event test clips."
        )
    counts = ", ".join(f"{result['num_clips']} clips of {name}" for name, result in results["systems"].items())
    return f"{counts}, measured under {results['protocol']['name']}."


def settings_of(systems: dict[str, dict]) -> dict[str, Any]:
    """The protocol, which all results share."""
    return next(iter(systems.values()))["protocol_settings"]


# ---- Scores


def scores_section(results: dict[str, Any]) -> Section:
    systems, metrics = results["systems"], metrics_of(results["systems"])
    over = dict.fromkeys(f"{metric.title}: {metric.interval_over}" for metric in metrics.values())
    notes = [
        f"{name}: {line}" for name, result in systems.items() for line in (*result["warnings"], *outside_notes(result))
    ]
    parts = [
        Part(table=score_rows(results, metrics), notes=[*dict.fromkeys(notes)]),
        Part(charts=score_charts(systems, metrics)),
        *map(difference_part, results["differences"]),
    ]
    if "targets" in results:
        parts.insert(0, Part(table=targets_table(results["targets"])))
        parts.append(Part(text=results["order_accuracy_definition"]))
    text = (
        f"Under the protocol {results['protocol']['name']}, with 95 % intervals over clips. ↓: lower is better, ↑: "
        f"higher is better. {'; '.join(over)}."
    )
    return Section("scores", "Scores", text, parts)


def score_rows(results: dict[str, Any], metrics: dict[str, Metric]) -> Table:
    """A row a system; with labelled clips, their levels beside."""
    header: list[Any] = ["System"]
    header += [Markup("{} {} <small>{}</small>").format(name, m.arrow, m.unit) for name, m in metrics.items()]
    header.append("Clips")
    if "levels" in results:
        header += ["Both halves", "RMS", "Peak", "Clipped samples", "Silent clips"]
    rows = []
    for system, result in results["systems"].items():
        row = [SYSTEM_NAMES.get(system, system)]
        row += [with_interval(result["scores"][name]) for name in metrics]
        row.append(str(result["num_clips"]))
        if "levels" in results:
            level = results["levels"][system]
            row += [
                percent(results["order_both_correct"][system]),
                f"{level['rms_db']:.1f} dB",
                f"{level['peak']:.2f}",
                percent(level["share_of_clipped_samples"]),
                percent(level["share_of_silent_clips"]),
            ]
        rows.append(row)
    return Table(header, rows)


def targets_table(targets: dict[str, dict]) -> Table:
    marks = {
        True: Markup('<span class="hit">✓ reached</span>'),
        False: Markup('<span class="miss">✗ missed</span>'),
        None: "not measured",
    }
    rows = []
    for key, target in targets.items():
        group, system, *_ = [*key.split("."), ""]
        bound = "≥" if target["bound"] == "at least" else "≤"
        title = METRICS[group].title if group in METRICS else OTHER_NAMES[group]
        name = Markup("{} <small>{}</small>").format(title, SYSTEM_NAMES.get(system, ""))
        value = Markup("<b>{}</b>").format(in_units(group, target["value"]))
        wanted = f"{bound} {in_units(group, target['target'], exact=False)}"
        rows.append([name, value, wanted, marks[target["reached"]]])
    return Table(["Score", "Measured", "Target", ""], rows)


def in_units(group: str, value: float | None, exact: bool = True) -> str:
    """A score or a cost as people read it; a target needs no decimals."""
    if value is None:
        return "–"
    if group == "seconds":
        return duration(value)
    if group == "peak_memory_gib":
        return f"{value:.2f} GiB" if exact else f"{value:.0f} GiB"
    return percent(value) if exact else f"{100 * value:g} %"


def outside_notes(result: dict[str, Any]) -> list[str]:
    """A line for each score that lies outside its own interval, which a reader would take for a mistake."""
    return [
        f"{name} {short_number(score['value'])} lies outside its interval [{short_number(score['low'])}, "
        f"{short_number(score['high'])}]: so few clips make the score itself too large or too small, and the basic "
        "bootstrap takes that off the bounds, not off the score"
        for name, score in result["scores"].items()
        if score["low"] is not None and not score["low"] <= score["value"] <= score["high"]
    ]


def score_charts(systems: dict[str, dict], metrics: dict[str, Metric]) -> list[Chart]:
    """Each score's intervals, and each Fréchet distance against the number of clips."""
    charts, curves = [], []
    for name, metric in metrics.items():
        found = {SYSTEM_NAMES.get(system, system): result["scores"][name] for system, result in systems.items()}
        rows: list[Row] = [(s, f["value"], f["low"], f["high"]) for s, f in found.items() if f["value"] is not None]
        charts += [Chart(name, f"95 % intervals, {metric.better}", interval_chart(rows))] if rows else []
        for system, score in found.items():
            if curve := score.get("against_n"):
                limit = short_number(score["at_infinity"])
                note = f"{system}; extrapolated to n = ∞: {limit} (R² {score['r_squared']:.2f})"
                points: list[Point] = [(float(n), value, None, None) for n, value in curve]
                svg = curve_chart(points, "clips", score["at_infinity"])
                curves.append(Chart(f"{name} against clips", note, svg))
    return charts + curves


def difference_part(entry: dict[str, Any]) -> Part:
    heading = f"{entry['first']} − {entry['second']}, the same clips"
    if entry["refused"]:
        return Part(heading, entry["refused"])
    rows = [
        [name, with_interval(score), "different" if score["different"] else "not distinguishable"]
        for name, score in entry["scores"].items()
    ]
    return Part(heading, table=Table(["Score", "Difference", ""], rows))


def published_section() -> Section:
    parts = []
    for table in published_tables():
        source = f"published: {table.source}, {table.year}"
        heading = Markup("Table {}: {} <small>{}</small>").format(table.number, table.title, source)
        rows = [["–" if cell == "-" else cell for cell in (system, *cells)] for system, cells in table.rows]
        parts.append(Part(heading, table=Table(["System", *table.columns], rows)))
    text = (
        "The tables of the AudioLDM 2 paper, as printed. Their authors measured them on their own test clips with "
        "their own code, so they are set beside the scores above and not in line with them; a difference says "
        "something only where protocol and test set are the same."
    )
    return Section("published", "Published by others", text, parts, "tables")


# ---- Classes, losses, costs


def classes_section(results: dict[str, Any]) -> Section:
    by_class, classes = results["class_accuracy_by_class"], results["classes"]
    rows = [[name, *(shaded(by_class[s][name], percent(by_class[s][name])) for s in SYSTEMS)] for name in classes]
    accuracy = Table(["Class", *(SYSTEM_NAMES[s] for s in SYSTEMS)], rows, "shades")
    rows = []
    for name, counts in zip(classes, results["confusion"]["text_to_audio"]):
        total = max(sum(counts), 1)
        rows.append([name, *(shaded(count / total, str(count) if count else "·") for count in counts)])
    turned = [Markup('<span class="turned">{}</span>').format(name) for name in classes]
    confusion = Table(["caption ↓ predicted →", *turned], rows, "shades confusion")
    parts = [Part(table=accuracy), Part("Confusions of text to audio", table=confusion)]
    return Section("classes", "Classes", "", parts)


def losses_section(curves: dict[str, Curves]) -> Section:
    """A part a stage, a chart a loss term, training and validation in the same chart."""
    parts = []
    for experiment, stages in curves.items():
        for stage, columns in stages.items():
            terms: dict[str, dict[str, list[tuple[float, float]]]] = {}
            for column, points in sorted(columns.items()):
                phase, _, term = column.partition("/")
                terms.setdefault(term, {})[phase] = points
            charts = []
            for term, found in terms.items():
                last = ", ".join(f"{phase} {short_number(points[-1][1])}" for phase, points in found.items())
                charts.append(Chart(term, f"last: {last}", loss_chart(found)))
            parts.append(Part(stage if len(curves) == 1 else f"{experiment}: {stage}", charts=charts))
    text = "One chart a loss term, over batches." if parts else "No loss curves were found beside the model."
    return Section("losses", "Losses", text, parts, "stages")


COST_COLUMNS = {  # fact -> heading, and how a stage's number is written
    "peak_memory_gib": ("Peak memory", "{:.2f} GiB"),
    "cpu_cores": ("Cores in use", "{:.1f}"),
    "peak_gpu_memory_gib": ("Peak GPU memory", "{:.2f} GiB"),
    "gpu_utilization": ("GPU in use", "{:.0%}"),
    "gpu_power_watts": ("GPU power", "{:.0f} W"),
    "gpu_energy_kwh": ("GPU energy", "{:.3f} kWh"),
}


def costs_section(costs: dict[str, dict[str, Any]]) -> Section:
    """Time, memory, processor and energy of each stage; facts that no stage has are no columns."""
    parts = []
    for experiment, cost in costs.items():
        facts = {fact: cost.get(f"{fact}_by_stage") or {} for fact in COST_COLUMNS}
        facts = {fact: stages for fact, stages in facts.items() if stages}
        energy = sum(cost.get("gpu_energy_kwh_by_stage", {}).values())
        longest = max(cost["seconds"]["total"], 1e-9)
        rows = []
        for stage, seconds in cost["seconds"].items():
            bar = Markup('<span class="bar" style="width:{}%"></span>').format(f"{100 * seconds / longest:.1f}")
            cells = [COST_COLUMNS[fact][1].format(of[stage]) if stage in of else "" for fact, of in facts.items()]
            if stage == "total" and energy:
                cells[-1] = COST_COLUMNS["gpu_energy_kwh"][1].format(energy)
            rows.append([stage, duration(seconds), *cells, "" if stage == "total" else bar])
        header = ["Stage", "Time", *(COST_COLUMNS[fact][0] for fact in facts), "Share"]
        parts.append(Part(experiment if len(costs) > 1 else "", table=Table(header, rows, "timing")))
    return Section("cost", "Cost", "", parts)


# ---- Settings, provenance


def settings_section(settings: dict[str, Any]) -> Section:
    rows = [[key, *values] for key, values in settings["rows"].items()]
    table = Table(["Setting", *settings["columns"]], rows, "settings", f"{len(rows)} settings differ")
    text = (
        "Where an experiment is not as the presets paper (what the paper says) and official (what its authors' code "
        "does)."
    )
    return Section("settings", "Settings", text, [Part(table=table)])


def provenance_section(results: dict[str, Any], benches: list[Bench]) -> Section:
    rows = [[name, str(value)] for name, value in facts_of_page(results, benches).items()]
    parts = [Part(table=Table(["Fact", ""], rows, "facts"))]
    protocol = OmegaConf.to_yaml(OmegaConf.create(settings_of(results["systems"])))
    parts.append(Part(code=("The protocol, all settings", protocol)))
    for bench in benches:
        content = OmegaConf.to_yaml(OmegaConf.create(to_plain(bench.experiment)))
        parts.append(Part(code=(f"The experiment {bench.name}, all settings resolved", content)))
    return Section("provenance", "Provenance", "", parts)


def facts_of_page(results: dict[str, Any], benches: list[Bench]) -> dict[str, Any]:
    protocol, first = results["protocol"], next(iter(results["systems"].values()))
    facts = {
        "protocol": f"{protocol['name']}: {protocol['about']} {protocol['source']}",
        "protocol's sha256": first["protocol_sha256"],
        **{
            f"weights of {model}": ", ".join(f"{file} {digest}" for file, digest in files.items())
            for model, files in first["weights"].items()
        },
        "versions": ", ".join(f"{library} {version}" for library, version in first["versions"].items() if version),
        "bootstrap": f"{first['resamples']} resamples of sets, 25 times as many of means, seed {first['seed']}",
        "page made in": duration(results["page_seconds"]),
    }
    if "log_mel_distance_db" in results:
        facts["device"] = results["device"]
        facts["peak memory"] = f"{results['peak_memory_gib']:.2f} GiB"
        facts["log-mel distance of reconstruction"] = f"{results['log_mel_distance_db']['reconstruction']:.2f} dB"
    for bench in benches:
        result = results["systems"]["text_to_audio" if bench.has_labels else bench.name]
        origin = results["origins"][bench.name]
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
    return facts
