"""The benchmark report: one or several experiments under one protocol, beside the paper's tables.

Generates the test set where it is missing, scores it, and writes one HTML file and, beside it, a JSON of its numbers.
Each experiment's result also lies in runs/<name>/benchmark/<protocol>.json, for `python -m evaluation compare`.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

from audioldm2_pl.config import ExperimentConfig, load_experiment, to_plain
from audioldm2_pl.describe import flat
from audioldm2_pl.errors import UserError

from .benchmark_audio import Bench, BenchmarkOptions, Scored
from .benchmark_page import render_benchmark
from .compare import compare
from .figures import FIGURES, Figure
from .protocols import load_protocol
from .report import write_text
from .score import check_options, fetch, table, write_result

PRESETS = ("paper", "official")
EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def write_benchmark(
    experiments: list[ExperimentConfig],
    options: BenchmarkOptions,
    output: Path,
    load_model: Callable[[Path, str], Any] | None = None,
) -> dict[str, Any]:
    """Writes `output` (HTML) and the JSON beside it. => that JSON's content

    `load_model` (model folder, device) stands in for AudioLDM2.from_pretrained. Raises UserError before anything is
    generated where a model, a test set, a checkpoint of the protocol or a figure is missing.
    """
    begin = time.perf_counter()
    check(experiments, options)
    benches = [Bench(experiment, options, load_model) for experiment in experiments]
    scored: dict[str, Scored] = {}
    figures: dict[str, list[Figure]] = {}
    for bench in benches:
        bench.write_test_set()
        result, samples = bench.score("text_to_audio", list(bench.texts))
        write_result(result, samples, bench.sound.folder / f"{Path(options.protocol).stem}.json")
        print(f"\n{bench.name}: {table(result)}\n", flush=True)
        scored[bench.name] = result, samples
        figures[bench.name] = [FIGURES[name](bench) for name in options.figures]
        bench.close()
    protocol = load_protocol(options.protocol)
    results = {
        "protocol": {"name": options.protocol, "about": protocol.about, "source": protocol.source},
        "systems": {name: result for name, (result, _) in scored.items()},
        "origins": {bench.name: bench.sound.origin for bench in benches},
        "test_sets": {bench.name: str(bench.test) for bench in benches},
        "differences": differences_of(scored),
        "settings": settings_against_presets(experiments),
        "figures": {name: {figure.name: figure.numbers for figure in found} for name, found in figures.items()},
        "seconds": time.perf_counter() - begin,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, render_benchmark(results, benches, figures))
    write_text(output.with_suffix(".json"), json.dumps(results, indent=2) + "\n")
    print(output)
    return results


def check(experiments: list[ExperimentConfig], options: BenchmarkOptions) -> None:
    """UserError for what would only come to light after hours of generation."""
    names = [experiment.name for experiment in experiments]
    if len(set(names)) < len(names):
        raise UserError(f"experiments {', '.join(names)}: two have one name, and so one run folder; rename one")
    if unknown := set(options.figures) - set(FIGURES):
        raise UserError(f"--figures {','.join(sorted(unknown))}: no such figure; there are {', '.join(FIGURES)}")
    if options.batch_size < 1 or (options.clips or 2) < 2 or options.figure_clips < 2:
        raise UserError("--batch-size has to be at least 1, --clips and --figure-clips at least 2")
    check_options(options.score)
    for model in load_protocol(options.protocol).models.values():
        fetch(model, options.score)


def differences_of(scored: dict[str, Scored]) -> list[dict[str, Any]]:
    """Of each two systems: score -> first - second with its interval, or why they cannot be compared."""
    found = []
    for (first, ours), (second, theirs) in combinations(scored.items(), 2):
        entry: dict[str, Any] = {"first": first, "second": second, "refused": None, "scores": {}}
        try:
            entry["scores"] = {
                name: {**asdict(interval), "apart": interval.excludes_zero}
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
