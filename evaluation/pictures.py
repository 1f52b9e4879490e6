"""Pictures for a page that stands alone: log-mels as PNG, loss curves as SVG."""

import struct
import zlib
from html import escape

import numpy as np

# Nine colours from dark to light that rise evenly in lightness, in the manner of matplotlib's magma.
ANCHORS = np.array(
    [
        (0, 0, 4), (28, 16, 68), (79, 18, 123), (129, 37, 129), (181, 54, 122),
        (229, 80, 100), (251, 135, 97), (254, 194, 135), (252, 253, 191),
    ]
)  # fmt: skip
MAX_COLUMNS = 320  # of a picture; longer log-mels are averaged down
CHART_WIDTH, CHART_HEIGHT, CHART_MARGIN = 300, 120, 8  # in the SVG's own units
MAX_POINTS = 400  # of a curve; longer ones are averaged down


def palette() -> bytes:
    """256 colours, RGB, between the anchors."""
    place = np.linspace(0, len(ANCHORS) - 1, 256)
    channels = [np.interp(place, np.arange(len(ANCHORS)), ANCHORS[:, c]) for c in range(3)]
    return np.stack(channels, axis=1).round().astype(np.uint8).tobytes()


def png(levels: np.ndarray) -> bytes:
    """Palette indices, uint8 (rows, columns), top row first => a PNG file (ISO/IEC 15948)"""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    num_rows, num_columns = levels.shape
    header = struct.pack(">IIBBBBB", num_columns, num_rows, 8, 3, 0, 0, 0)  # 8 bits, palette
    rows = np.pad(levels, ((0, 0), (1, 0)))  # each row begins with its filter, 0 = none
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"PLTE", palette())
        + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9))
        + chunk(b"IEND", b"")
    )


def log_mel_png(log_mel: np.ndarray, dynamic_range: float = 8.0) -> bytes:
    """Log-mel (frames, mel bins) => PNG, low frequencies at the bottom; the clip's loudest bin is
    white and what lies `dynamic_range` nepers below it is black."""
    step = -(-len(log_mel) // MAX_COLUMNS)
    whole = log_mel[: len(log_mel) // step * step]
    pooled = whole.reshape(-1, step, log_mel.shape[1]).mean(axis=1)  # (columns, mel bins)
    relative = 1 + (pooled - pooled.max()) / dynamic_range
    return png((relative.clip(0, 1).T[::-1] * 255).astype(np.uint8))


def thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of neighbouring points, at most MAX_POINTS of them."""
    step = -(-len(points) // MAX_POINTS)
    groups = [points[i : i + step] for i in range(0, len(points), step)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def loss_chart(term: str, curves: dict[str, list[tuple[float, float]]]) -> str:
    """One loss term's curves ("train", "val") over batches => a <figure> with an SVG. The top is the
    98th percentile where the first losses tower over the rest."""
    thinned = {name: thin(points) for name, points in curves.items()}
    x = np.array([p[0] for points in thinned.values() for p in points])
    y = np.array([p[1] for points in thinned.values() for p in points])
    bottom, top = float(y.min()), float(np.quantile(y, 0.98))
    if top - bottom < 1e-9:
        top = bottom + 1e-9
    width, height = CHART_WIDTH - 2 * CHART_MARGIN, CHART_HEIGHT - 2 * CHART_MARGIN
    span = max(float(x.max() - x.min()), 1e-9)

    def place(point: tuple[float, float]) -> str:
        left = CHART_MARGIN + (point[0] - x.min()) / span * width
        fraction = min((point[1] - bottom) / (top - bottom), 1.0)
        return f"{left:.1f},{CHART_MARGIN + (1 - fraction) * height:.1f}"

    lines = ""
    for name, points in thinned.items():
        ends = points if len(points) > 1 else points * 2
        lines += f'<polyline class="{escape(name)}" points="{" ".join(map(place, ends))}"/>'
    last = ", ".join(f"{escape(name)} {number(points[-1][1])}" for name, points in thinned.items())
    return (
        f'<figure class="chart"><figcaption><b>{escape(term)}</b> <span>last: {last}</span></figcaption>'
        f'<svg viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(term)} over batches">{lines}</svg>'
        f'<div class="axis"><span>batch {number(float(x.min()))}</span>'
        f"<span>{number(bottom)} to {number(top)}</span><span>{number(float(x.max()))}</span></div></figure>"
    )
