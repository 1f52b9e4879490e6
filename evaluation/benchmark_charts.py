"""Charts of scores as SVG inside a <figure>: intervals by system, curves with intervals, points by class."""

import math
from html import escape

import numpy as np

from .pictures import number

WIDTH = 340  # of every chart, in the SVG's own units
ROW_HEIGHT = 38  # of a system's interval
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 34  # margins of curves and points
CURVE_HEIGHT, CLOUD_HEIGHT = 200, 300
COLOURS = 10  # that the style sheet has: .c0 to .c9

Row = tuple[str, float, float | None, float | None]  # label, value, low, high
Point = tuple[float, float, float | None, float | None]  # x, value, low, high


def ticks(low: float, high: float) -> list[float]:
    """Two to seven round numbers within [low, high]."""
    rough = max(high - low, 1e-12) / 2.5
    power = 10.0 ** math.floor(math.log10(rough))
    step = max(factor * power for factor in (1, 2, 5) if factor * power <= rough * (1 + 1e-9))
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def bounds(values: list[float], ends: list[float | None]) -> tuple[float, float]:
    """A range that shows all values, and of the ends of their intervals those that are not far off."""
    low, high = min(values), max(values)
    reach = max(2 * (high - low), abs(high), abs(low))
    near = [*values, *(min(max(end, low - reach), high + reach) for end in ends if end is not None)]
    margin = 0.08 * (max(near) - min(near)) or 0.1 * abs(high) or 1.0
    return min(near) - margin, max(near) + margin


def figure(title: str, note: str, svg: str, label: str, css: str = "") -> str:
    return (
        f'<figure class="chart wide {css}"><figcaption><b>{escape(title)}</b> <span>{escape(note)}</span></figcaption>'
        f'<div role="img" aria-label="{escape(label)}">{svg}</div></figure>'
    )


def text(x: float, y: float, content: str, css: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}">{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>'


def svg(height: float, parts: list[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" class="plot">{"".join(parts)}</svg>'


def interval_chart(title: str, note: str, rows: list[Row]) -> str:
    """One row a system: a dot at the value, a bar over the interval, both in words above it."""
    low, high = bounds([row[1] for row in rows], [end for row in rows for end in row[2:]])
    bottom = len(rows) * ROW_HEIGHT + 4

    def place(value: float) -> float:
        return 8 + min(max((value - low) / (high - low), 0.0), 1.0) * (WIDTH - 16)

    parts = []
    for tick in ticks(low, high):
        parts.append(line(place(tick), 0, place(tick), bottom, "grid"))
        parts.append(text(place(tick), bottom + 14, number(tick), "tick", "middle"))
    for i, (label, value, least, most) in enumerate(rows):
        top = i * ROW_HEIGHT
        words = number(value)
        if least is not None and most is not None:
            words += f"  [{number(least)}, {number(most)}]"
            parts.append(line(place(least), top + 28, place(most), top + 28, f"whisker c{i % COLOURS}"))
        parts.append(f'<circle cx="{place(value):.1f}" cy="{top + 28}" r="4.5" class="dot c{i % COLOURS}"/>')
        parts += [text(8, top + 15, label, "label"), text(WIDTH - 8, top + 15, words, "value", "end")]
    told = ", ".join(f"{label}: {number(value)}" for label, value, _, _ in rows)
    return figure(title, note, svg(bottom + 20, parts), f"{title}: {told}")


def curve_chart(title: str, note: str, points: list[Point], x_label: str, limit: float | None = None) -> str:
    """A value over x, the intervals as a band; `limit` is a dashed line across."""
    points = sorted(points)
    left, right = bounds([p[0] for p in points], [])
    across_it = [] if limit is None else [limit]
    low, high = bounds([*across_it, *(p[1] for p in points)], [end for p in points for end in p[2:]])
    bottom = CURVE_HEIGHT - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - left) / (right - left) * (WIDTH - LEFT - RIGHT)
        return across, TOP + min(max((high - y) / (high - low), 0.0), 1.0) * (bottom - TOP)

    parts = [text((LEFT + WIDTH - RIGHT) / 2, CURVE_HEIGHT - 4, x_label, "tick", "middle")]
    for tick in ticks(low, high):
        _, y = place(left, tick)
        parts += [line(LEFT, y, WIDTH - RIGHT, y, "grid"), text(LEFT - 6, y + 4, number(tick), "tick", "end")]
    for tick in ticks(left, right):
        parts.append(text(place(tick, low)[0], bottom + 15, number(tick), "tick", "middle"))
    band = [(x, least, most) for x, _, least, most in points if least is not None and most is not None]
    if band:
        edge = [place(x, most) for x, _, most in band] + [place(x, least) for x, least, _ in reversed(band)]
        parts.append(f'<polygon class="band" points="{corners(edge)}"/>')
    if limit is not None:
        _, y = place(left, limit)
        parts += [line(LEFT, y, WIDTH - RIGHT, y, "limit"), text(WIDTH - RIGHT, y - 5, "n = ∞", "tick", "end")]
    dots = [place(x, value) for x, value, _, _ in points]
    parts.append(f'<polyline points="{corners(dots)}"/>')
    parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" class="dot c0"/>' for x, y in dots]
    told = ", ".join(f"{number(x)}: {number(value)}" for x, value, _, _ in points)
    return figure(title, note, svg(CURVE_HEIGHT, parts), f"{title} over {x_label}: {told}")


def corners(places: list[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def cloud_chart(title: str, note: str, places: np.ndarray, labels: list[str]) -> str:
    """Points (N, 2), one colour a label; even and odd labels have dots and squares."""
    names = sorted(set(labels))
    least, most = places.min(axis=0), places.max(axis=0)
    span = np.maximum(most - least, 1e-9)
    shown = (places - least) / span * (WIDTH - 24, CLOUD_HEIGHT - 24) + 12
    parts = []
    for (x, y), label in zip(shown.tolist(), labels):
        kind = names.index(label)
        css = f"point c{kind % COLOURS}"
        if kind % 2:
            parts.append(f'<rect x="{x - 3.2:.1f}" y="{y - 3.2:.1f}" width="6.4" height="6.4" class="{css}"/>')
        else:
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.7" class="{css}"/>')
    return figure(
        title, note, svg(CLOUD_HEIGHT, parts), f"{title}: {len(labels)} clips of {len(names)} classes", "cloud"
    )


def legend(labels: list[str]) -> str:
    names = sorted(set(labels))
    keys = "".join(
        f'<li><i class="key c{i % COLOURS}{" square" if i % 2 else ""}"></i>{escape(name)}</li>'
        for i, name in enumerate(names)
    )
    return f'<ul class="legend">{keys}</ul>'
