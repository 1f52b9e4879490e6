"""Histograms and bars as one PNG, drawn with Pillow."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from audioldm2_pl.errors import UserError

WIDTH, HEIGHT = 760, 420  # pixels of a histogram's panel
MARGIN = 48
BAR_STEP = 36  # pixels from one bar to the next
NUM_BINS = 40
MAX_BARS = 8  # the rest become one
MAX_LABEL = 34  # characters
INK, PALE, FILL = (32, 32, 40), (222, 222, 228), (129, 37, 129)

Box = tuple[float, float, float, float]  # left, top, right, bottom


def draw(path: Path, histograms: Mapping[str, Sequence[float]], bars: Mapping[str, Mapping[str, float]]) -> None:
    """Panels of histograms (values by title) above panels of bars (amounts by name by title)."""
    most = max((min(len(amounts), MAX_BARS) for amounts in bars.values()), default=0)
    size = (WIDTH * max(len(histograms), len(bars)), HEIGHT + 2 * MARGIN + BAR_STEP * most)
    image = Image.new("RGB", size, "white")
    canvas = ImageDraw.Draw(image)
    for place, (title, values) in enumerate(histograms.items()):
        _histogram(canvas, _panel(canvas, title, place, 0), np.asarray(values, dtype=float))
    for place, (title, amounts) in enumerate(bars.items()):
        _bars(canvas, _panel(canvas, title, place, 1), amounts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, "PNG")
    except OSError as error:
        raise UserError(f"{path}: the picture cannot be written ({error})") from None


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _panel(canvas: ImageDraw.ImageDraw, title: str, column: int, row: int) -> Box:
    """Writes the title and returns what is left of the panel."""
    left, top = column * WIDTH + MARGIN, row * HEIGHT + MARGIN
    canvas.text((left, top - 12), title, fill=INK, font=_font(22), anchor="lm")
    return left, top + 16, (column + 1) * WIDTH - MARGIN, (row + 1) * HEIGHT - MARGIN


def _histogram(canvas: ImageDraw.ImageDraw, box: Box, values: np.ndarray) -> None:
    left, top, right, bottom = box
    canvas.line((left, bottom, right, bottom), fill=INK)
    if not len(values):
        canvas.text((left, (top + bottom) / 2), "none", fill=INK, font=_font(18), anchor="lm")
        return
    whole = bool((values == np.round(values)).all())
    low, high = float(values.min()), float(values.max())
    ends = {left: f"{low:.4g}", right: f"{high:.4g}"} if low < high else {(left + right) / 2: f"{low:.4g}"}
    # Whole numbers each stand in the middle of a bin as long as there are not too many.
    low, high = (low - 0.5, high + 0.5) if whole or low == high else (low, high)
    num_bins = round(high - low) if high - low <= NUM_BINS and (whole or len(ends) == 1) else NUM_BINS
    counts, edges = np.histogram(values, num_bins, (low, high))
    places = left + (edges - low) / (high - low) * (right - left)
    for count, start, end in zip(counts, places[:-1], places[1:]):
        if count:
            canvas.rectangle((start + 1, bottom - max(1, count / counts.max() * (bottom - top)), end - 1, bottom), FILL)
    for place, label in ends.items():
        anchor = "la" if place == left else "ra" if place == right else "ma"
        canvas.text((place, bottom + 6), label, fill=INK, font=_font(16), anchor=anchor)
    facts = f"median {np.median(values):.4g}, highest bar {counts.max():,}"
    canvas.text((right, top - 28), facts, fill=INK, font=_font(16), anchor="rm")


def _bars(canvas: ImageDraw.ImageDraw, box: Box, amounts: Mapping[str, float]) -> None:
    left, top, right, _ = box
    rows = sorted(amounts.items(), key=lambda row: -row[1])
    if len(rows) > MAX_BARS:
        rest = rows[MAX_BARS - 1 :]
        rows = [*rows[: MAX_BARS - 1], (f"{len(rest)} others", sum(amount for _, amount in rest))]
    middle = left + 0.45 * (right - left)
    for number, (name, amount) in enumerate(rows):
        y = top + (number + 0.5) * BAR_STEP
        label = name if len(name) <= MAX_LABEL else name[: MAX_LABEL - 1] + "…"
        length = amount / max(rows[0][1], 1e-9) * 0.8 * (right - middle)
        canvas.text((middle - 10, y), label, fill=INK, font=_font(16), anchor="rm")
        canvas.rectangle(
            (middle, y - 0.35 * BAR_STEP, middle + max(1, length), y + 0.35 * BAR_STEP), fill=FILL, outline=PALE
        )
        canvas.text((middle + length + 8, y), f"{amount:,.2f}", fill=INK, font=_font(16), anchor="lm")
