"""The report: one or several experiments under one protocol.

Generates the test set's audio where it is missing, scores it, and writes one HTML page and, beside it, a JSON of its
numbers. Each system's result is also in runs/<name>/report/scores/, for `python -m evaluation compare`.
"""

import json
import time
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from audioldm2_pl.atomic import write_text
from audioldm2_pl.config import ExperimentConfig, load_experiment, to_plain
from audioldm2_pl.describe import flat
from audioldm2_pl.errors import UserError

from ..compare import compare
from ..protocols import load_protocol
from ..score import Arrays, Result, check_score_options, fetch_weights, score_table
from ..sound_classifier import SoundClassifierConfig
from .bench import Bench, LoadModel, ReportOptions
from .classification import compare_with_targets, measure_sound, predictions_of, summarise, target_table
from .costs import costs_of, device_name
from .editing_figures import EDITING_FIGURES
from .figures import FIGURES, Figure
from .sections import build_page

PRESETS = ("paper", "official")
ALL_FIGURES = {**FIGURES, **EDITING_FIGURES}
EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def write_report(
    experiments: list[ExperimentConfig],
    options: ReportOptions,
    output: Path | None = None,
    load_model: LoadModel | None = None,
    classifier: SoundClassifierConfig | None = None,
) -> dict[str, Any]:
    """Writes `output` (HTML) and the JSON beside it. => that JSON's content

    `load_model` (model folder, device) stands in for AudioLDM2.from_pretrained, `classifier` for the sound classifier's
    defaults. Raises UserError before anything is generated where a model, a test set, a checkpoint or a figure is
    missing.
    """
    begin = time.perf_counter()
    check_report(experiments, options)
    benches = [Bench(experiment, options, load_model) for experiment in experiments]
    if benches[0].trains_classifier:
        benches[0].train_classifier(classifier)
    for bench in benches:
        if bench.trains_classifier:
            bench.weights = experiments[0].run_folder  # all are measured by one classifier
        fetch_weights(bench.protocol, bench.score_options)
    scored: dict[str, dict[str, tuple[Result, Arrays]]] = {}
    figures: dict[str, list[Figure]] = {}
    seconds = {}
    for bench in benches:
        started, earlier = time.perf_counter(), bench.classifier_seconds + bench.sound.seconds
        bench.write_test_set()
        scored[bench.name] = bench.score_systems()
        figures[bench.name] = [ALL_FIGURES[name](bench) for name in options.figures]
        bench.close()
        seconds[bench.name] = earlier + time.perf_counter() - started
    results = results_of(benches, scored, figures)
    results |= {"page_seconds": time.perf_counter() - begin}
    results["costs"] = {bench.name: costs_of(bench.experiment.run_folder, seconds[bench.name]) for bench in benches}
    if benches[0].has_labels:
        results |= classification_of(benches[0], scored[benches[0].name], results["costs"][benches[0].name])
    stem = "report" if options.protocol == ReportOptions.protocol else Path(options.protocol).stem
    output = output or benches[0].folder / f"{stem}.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, build_page(results, benches, figures).render())
    write_text(output.with_suffix(".json"), json.dumps(results, indent=2) + "\n")
    for name, systems in scored.items():
        print("".join(f"\n{name}, {system}: {score_table(result)}\n" for system, (result, _) in systems.items()))
    print(*([target_table(results["targets"])] if "targets" in results else []), output, sep="\n")
    return results


def check_report(experiments: list[ExperimentConfig], options: ReportOptions) -> None:
    """UserError for what would only come to light after hours of generation."""
    names = [experiment.name for experiment in experiments]
    protocol = load_protocol(options.protocol)
    if len(names) > 1 and "labels" in protocol.needs:
        raise UserError(
            f"{len(names)} experiments: {options.protocol} reports one; to compare them give --protocol NAME"
        )
    if len(set(names)) < len(names):
        raise UserError(f"experiments {', '.join(names)}: two have one name, and so one run folder; rename one")
    if unknown := set(options.figures) - set(ALL_FIGURES):
        raise UserError(f"--figures {','.join(sorted(unknown))}: no such figure; there are {', '.join(ALL_FIGURES)}")
    if options.batch_size < 1 or (options.clips or 2) < 2 or options.figure_clips < 2:
        raise UserError("--batch-size has to be at least 1, --clips and --figure-clips at least 2")
    check_score_options(options.score)


def results_of(
    benches: list[Bench], scored: dict[str, dict[str, tuple[Result, Arrays]]], figures: dict[str, list[Figure]]
) -> dict[str, Any]:
    """The JSON of any protocol. A row is an experiment or, of a protocol with labels, a system."""
    protocol = benches[0].protocol
    rows = {(system if bench.has_labels else bench.name): result
            for bench in benches for system, (result, _) in scored[bench.name].items()}  # fmt: skip
    return {
        "protocol": {"name": benches[0].options.protocol, "about": protocol.about, "source": protocol.source},
        "systems": rows,
        "origins": {bench.name: bench.sound.origin for bench in benches},
        "test_sets": {bench.name: str(bench.test) for bench in benches},
        "differences": differences_of({name: systems[benches[0].options.system] for name, systems in scored.items()}),
        "settings": settings_against_presets([bench.experiment for bench in benches]),
        "figures": {name: {figure.name: figure.numbers for figure in found} for name, found in figures.items()},
    }


def classification_of(bench: Bench, scored: dict[str, tuple[Result, Arrays]], costs: dict[str, Any]) -> dict[str, Any]:
    """What a report on labelled clips has beside: accuracies, levels, costs and targets."""
    systems = {system: result for system, (result, _) in scored.items()}
    classes = next(s["classes"] for s in systems["real"]["scores"].values() if "classes" in s)
    seed = bench.experiment.seed
    results = {
        **summarise(predictions_of(systems, bench.labels), classes, seed),
        **measure_sound(bench.sound, list(bench.labels), bench.audio),
        **costs,
        "seed": seed,
        "device": device_name(bench.device),
        "torch": torch.__version__,
        "sampling": bench.sampling,
    }
    results["targets"] = compare_with_targets(results)
    results["missed_targets"] = [key for key, target in results["targets"].items() if target["reached"] is False]
    return results


def differences_of(scored: dict[str, tuple[Result, Arrays]]) -> list[dict[str, Any]]:
    """Of each two experiments: score -> first - second with its interval, or why they cannot be compared."""
    found = []
    for (first, ours), (second, theirs) in combinations(scored.items(), 2):
        entry: dict[str, Any] = {"first": first, "second": second, "refused": None, "scores": {}}
        try:
            entry["scores"] = {
                name: {**asdict(interval), "different": interval.excludes_zero}
                for name, interval in compare(ours, theirs, ours[0]["resamples"]).items()
            }
        except UserError as error:
            entry["refused"] = str(error)
        found.append(entry)
    return found


def settings_against_presets(experiments: list[ExperimentConfig]) -> dict[str, Any]:
    """The settings in which an experiment is not as both presets: {"columns": names, "rows": key -> values}."""
    presets = [load_experiment(EXPERIMENTS / f"{name}.yaml") for name in PRESETS]
    sides = [flat(to_plain(experiment)) for experiment in (*experiments, *presets)]
    rows = {}
    for key in dict.fromkeys(key for side in sides for key in side):
        values = ["–" if side.get(key) is None else str(side[key]) for side in sides]
        if len(set(values)) > 1 and key not in ("name", "description"):
            rows[key] = values
    return {"columns": [experiment.name for experiment in experiments] + list(PRESETS), "rows": rows}
