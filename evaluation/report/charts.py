"""Charts and pictures of the report: SVG by matplotlib, log-mels as PNG by Pillow.

Shapes: F frames, M mel bins, N points.
"""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ..libraries import import_library

WIDTH = 3.4  # inches of every chart
COLOURS = "tab10"
MAX_COLUMNS = 320  # of a log-mel's picture; longer ones are averaged down
MAX_POINTS = 400  # of a curve; longer ones are averaged down
STYLE = {
    "svg.fonttype": "none",
    "font.size": 8,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.35,
}

Row = tuple[str, float, float | None, float | None]  # label, value, low, high
Point = tuple[float, float, float | None, float | None]  # x, value, low, high


class Drawing:
    """with Drawing(height) as drawing: draws on `drawing.axes`; then `drawing.svg` is the picture."""

    svg = b""

    def __init__(self, height: float):
        matplotlib = import_library("matplotlib")
        self.style = matplotlib.rc_context(STYLE)
        self.colours = matplotlib.colormaps[COLOURS].colors
        self.height = height

    def __enter__(self) -> "Drawing":
        self.style.__enter__()
        # without pyplot: no state, no window system
        self.figure = import_library("matplotlib.figure").Figure((WIDTH, self.height), layout="constrained")
        self.axes = self.figure.add_subplot()
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            buffer = io.BytesIO()
            self.figure.savefig(buffer, format="svg", metadata={"Date": None})
            self.svg = buffer.getvalue()
        self.style.__exit__(*error)


def short_number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def limits(values: Sequence[float], ends: Sequence[float | None]) -> tuple[float, float]:
    """A range that shows all values, and of the ends of their intervals those that are not far off."""
    low, high = min(values), max(values)
    reach = max(2 * (high - low), abs(high), abs(low))
    near = [*values, *(min(max(end, low - reach), high + reach) for end in ends if end is not None)]
    margin = 0.08 * (max(near) - min(near)) or 0.1 * abs(high) or 1.0
    return min(near) - margin, max(near) + margin


def interval_chart(rows: list[Row]) -> bytes:
    """One row a system: a dot at the value, a bar over the interval."""
    with Drawing(0.55 + 0.27 * len(rows)) as drawing:
        for i, (_, value, low, high) in enumerate(rows):
            colour = drawing.colours[i % len(drawing.colours)]
            if low is not None and high is not None:
                drawing.axes.plot([low, high], [i, i], color=colour, linewidth=3, alpha=0.45, solid_capstyle="round")
            drawing.axes.plot(value, i, "o", color=colour)
        drawing.axes.set_yticks(range(len(rows)), [row[0] for row in rows])
        drawing.axes.set_ylim(len(rows) - 0.5, -0.5)
        drawing.axes.set_xlim(*limits([row[1] for row in rows], [end for row in rows for end in row[2:]]))
    return drawing.svg


def curve_chart(points: list[Point], x_label: str, limit: float | None = None) -> bytes:
    """A value over x, the intervals as a band; `limit` is a dashed line across."""
    points = sorted(points)
    x, y = [point[0] for point in points], [point[1] for point in points]
    with Drawing(2.0) as drawing:
        drawing.axes.plot(x, y, "o-", markersize=4, color=drawing.colours[0])
        band = [(at, low, high) for at, _, low, high in points if low is not None and high is not None]
        if band:
            drawing.axes.fill_between(*zip(*band), alpha=0.16, color=drawing.colours[0])
        if limit is not None:
            drawing.axes.axhline(limit, linestyle="--", color=drawing.colours[1])
            drawing.axes.annotate("n = ∞", (max(x), limit), ha="right", va="bottom")
        drawing.axes.set_ylim(*limits([*y, *([] if limit is None else [limit])], [e for p in points for e in p[2:]]))
        drawing.axes.set_xlabel(x_label)
    return drawing.svg


def scatter_chart(places: np.ndarray, labels: list[str]) -> bytes:
    """Points (N, 2), one colour a label; even and odd labels have dots and squares."""
    with Drawing(3.9) as drawing:
        for i, label in enumerate(sorted(set(labels))):
            chosen = places[np.array(labels) == label]
            colour = drawing.colours[i % len(drawing.colours)]
            drawing.axes.scatter(*chosen.T, s=14, marker="os"[i % 2], color=colour, alpha=0.8, label=label)
        drawing.axes.set_xticks([])
        drawing.axes.set_yticks([])
        drawing.figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return drawing.svg


def loss_chart(curves: dict[str, list[tuple[float, float]]]) -> bytes:
    """One loss term's curves ("train", "val") over batches. The top is the 98th percentile where the first losses are
    far above the rest."""
    thinned = {name: average_down(np.array(points), MAX_POINTS) for name, points in curves.items()}
    values = np.concatenate(list(thinned.values()))[:, 1]
    bottom, top = float(values.min()), float(np.quantile(values, 0.98))
    with Drawing(1.3) as drawing:
        for name, points in thinned.items():
            drawing.axes.plot(*points.T, marker="." if len(points) == 1 else "", label=name, linewidth=1.2)
        margin = 0.05 * (top - bottom) or 1e-9
        drawing.axes.set_ylim(bottom - margin, top + margin)
        if len(thinned) > 1:
            drawing.axes.legend(frameon=False)
    return drawing.svg


def average_down(rows: np.ndarray, most: int) -> np.ndarray:
    """(N, D) => means of neighbouring rows, at most (most, D); what is left over at the end joins no mean."""
    step = -(-len(rows) // most)
    return rows[: len(rows) // step * step].reshape(-1, step, rows.shape[1]).mean(axis=1)


def log_mel_png(log_mel: np.ndarray, dynamic_range: float = 8.0) -> bytes:
    """Log-mel (F, M) => PNG, low frequencies at the bottom; the clip's loudest bin is the brightest, and what lies
    `dynamic_range` nepers below it is black."""
    pooled = average_down(log_mel, MAX_COLUMNS)  # (columns, M)
    relative = (1 + (pooled - pooled.max()) / dynamic_range).clip(0, 1)
    image = Image.fromarray((relative.T[::-1] * 255).astype(np.uint8))
    palette = np.array(import_library("matplotlib").colormaps["magma"].colors)  # (256, 3)
    image.putpalette((palette * 255).round().astype(np.uint8).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
