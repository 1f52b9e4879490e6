"""What was measured, beside what was printed: CSV and Markdown, never both in one column.

Letters: S seeds, N clips.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from audioldm2_pl.atomic import write_text, written_whole
from audioldm2_pl.errors import UserError

from ..compare import read_result, refuse_unequal
from ..metrics.metric import Metric, Samples
from ..uncertainty import Interval, interval_over_seeds
from .state import is_scored, score_file, state_of
from .table import Reproduction, Row

RESAMPLES = 200  # of sets of clips; means need none


@dataclass
class RowResult:
    """A row's numbers, and how they came about."""

    row: Row
    state: str  # measured, not trained, …
    scores: dict[str, Interval] = field(default_factory=dict)
    num_seeds: int = 0
    num_clips: int = 0
    warnings: list[str] = field(default_factory=list)

    @property
    def origin(self) -> str:
        """What the numbers are of."""
        if self.row.source is not None:
            return self.row.source
        return str(self.row.seeds[0].folder) if self.row.seeds else "recordings" if self.scores else ""


def result_of(found: Reproduction, row: Row) -> RowResult:
    """What is there of a row; where its seeds were not measured alike, that."""
    sides = row.seeds or [None]
    done = [training for training in sides if is_scored(found, row, training)]
    if not done:
        return RowResult(row, unmeasured(row))
    results = [read_result(score_file(found, row, training)) for training in done]
    try:
        for other in results[1:]:
            refuse_unequal(results[0][0], other[0])
    except UserError as error:
        return RowResult(row, f"its seeds are {error}")
    scores = {}
    for name in found.table.scores:
        metric = found.protocol.metric(name)
        if metric.needs == "reference" and row.settings.system == "real":
            continue  # the recordings against themselves
        scores[name] = over_seeds(metric, name, results)
    state = "measured" if len(done) == len(sides) else f"{len(done)} of {len(sides)} seeds measured"
    warnings = list(dict.fromkeys(line for result, _ in results for line in result["warnings"]))
    return RowResult(row, state, scores, len(row.seeds) and len(done), results[0][0]["num_clips"], warnings)


def unmeasured(row: Row) -> str:
    if row.source is not None or (not row.seeds and row.settings.system == "real"):
        return "not scored"
    if not row.seeds:
        return "published only"
    states = [state_of(training) for training in row.seeds]
    return "trained, not scored" if any(state.is_finished for state in states) else states[0].words


def over_seeds(metric: Metric, name: str, results: Sequence[tuple[dict[str, Any], Samples]]) -> Interval:
    """The mean of a score over seeds, with its interval: of one seed, over clips alone."""
    score = results[0][0]["scores"][name]
    if len(results) == 1:
        value, low, high = (np.nan if score[key] is None else score[key] for key in ("value", "low", "high"))
        return Interval(value, low, high, score["resamples"])
    values = np.array([result["scores"][name]["value"] for result, _ in results], dtype=float)  # (S,)
    samples = [of_score(name, arrays) for _, arrays in results]
    num_clips = results[0][0]["num_clips"]
    found = interval_over_seeds(values, clip_variance(metric, samples, num_clips), num_clips)
    return Interval(found.value, max(found.low, metric.range[0]), min(found.high, metric.range[1]), found.resamples)


def of_score(name: str, arrays: Samples) -> Samples:
    return {key.removeprefix(f"{name}/"): array for key, array in arrays.items() if key.startswith(f"{name}/")}


def clip_variance(metric: Metric, samples: Sequence[Samples], num_clips: int) -> float:
    """How far the mean over seeds would move with other clips, the same for every seed."""
    if metric.statistic is None:
        of_clips = np.mean([found["values"] for found in samples], axis=0)  # (N,)
        return float(of_clips.var(ddof=1) / len(of_clips)) if len(of_clips) > 1 else float("nan")
    draw = np.random.default_rng(0)
    statistics = [partial(metric.statistic, found) for found in samples]
    means = []
    for _ in range(RESAMPLES):
        clips = np.sort(draw.integers(num_clips, size=num_clips))
        means.append(np.mean([statistic(clips) for statistic in statistics]))
    return float(np.var(means, ddof=1))


def write_results(found: Reproduction) -> int:
    """Writes table.csv and table.md, prints the latter. => the number of rows that were measured"""
    results = [result_of(found, row) for row in found.rows]
    with written_whole(found.output / "table.csv") as part, part.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(csv_rows(found, results))
    text = markdown(found, results)
    write_text(found.output / "table.md", text)
    print(f"\n{text}\n{found.output / 'table.md'}", flush=True)
    return sum(bool(result.scores) for result in results)


def published_cells(found: Reproduction, row: Row) -> dict[str, str]:
    """Printed column -> cell; "-" where the paper has none."""
    table = found.published
    if table is None:
        return {}
    name = row.settings.published or row.name
    cells = [cells for system, cells in table.rows if system == name]
    here = cells[row.settings.occurrence - 1] if len(cells) >= row.settings.occurrence else ["-"] * len(table.columns)
    return dict(zip(table.columns, here))


def factor(found: Reproduction, score: str) -> float:
    """Into the unit of the printed column."""
    return 100.0 if "(%)" in (found.table.scores[score] or "") else 1.0


def label(found: Reproduction, score: str) -> str:
    """A score as the printed table, or else its metric, calls it."""
    metric = found.protocol.metric(score)
    return found.table.scores[score] or f"{metric.title} {metric.arrow}"


def numbers(found: Reproduction, result: RowResult, score: str) -> list[str]:
    """Value, low, high; empty where there is none."""
    interval = result.scores.get(score)
    if interval is None:
        return ["", "", ""]
    scale = factor(found, score)
    return [
        f"{scale * value:.4g}" if np.isfinite(value) else "" for value in (interval.value, interval.low, interval.high)
    ]


def csv_rows(found: Reproduction, results: Sequence[RowResult]) -> list[list[str]]:
    printed = found.published.columns if found.published else []
    header = ["row", *(f"published {column}" for column in printed)]
    for score in found.table.scores:
        header += [f"measured {label(found, score)}", f"low {score}", f"high {score}"]
    rows = [[*header, "seeds", "clips", "protocol", "protocol sha256", "state", "of"]]
    for result in results:
        cells = published_cells(found, result.row)
        measured = [cell for score in found.table.scores for cell in numbers(found, result, score)]
        counts = [str(result.num_seeds or ""), str(result.num_clips or "")]
        protocol = [found.table.protocol, found.protocol.digest] if result.scores else ["", ""]
        row = [result.row.name, *(cells[column] for column in printed), *measured, *counts, *protocol]
        rows.append([*row, result.state, result.origin])
    return rows


def markdown(found: Reproduction, results: Sequence[RowResult]) -> str:
    printed = found.published.columns if found.published else []
    header = ["row", *(f"{column}, published" for column in printed)]
    header += [f"{label(found, score)}, measured [95 %]" for score in found.table.scores]
    lines = [f"# {found.table.title}", "", table_line([*header, "state"]), table_line(["---"] * (len(header) + 1))]
    for result in results:
        cells = published_cells(found, result.row)
        shown = []
        for score in found.table.scores:
            value, low, high = numbers(found, result, score)
            shown.append(f"{value} [{low or '?'}, {high or '?'}]" if value else "")
        lines.append(table_line([result.row.name, *(cells[column] for column in printed), *shown, result.state]))
    return "\n".join([*lines, "", *notes(found, results), ""])


def table_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def notes(found: Reproduction, results: Sequence[RowResult]) -> list[str]:
    """What a reader of the numbers has to know."""
    lines = [f"Measured under the protocol {found.table.protocol} ({found.protocol.digest[:12]}) on {found.test_set}."]
    if found.published is not None:
        source = f"{found.published.source} ({found.published.year})"
        lines.append(f"Published: {source}, by its authors' code on their clips; not measured here.")
    counts = {result.num_seeds for result in results if result.num_seeds}
    if counts:
        over = "seeds and clips" if max(counts) > 1 else "clips; one seed tells nothing of other trainings"
        lines.append(f"Intervals are over {over}.")
    warned = dict.fromkeys(line for result in results for line in result.warnings)
    for line in warned:
        rows = [result.row.name for result in results if line in result.warnings]
        lines.append(f"{', '.join(rows)}: {line}.")
    return [f"- {line}" for line in lines]
