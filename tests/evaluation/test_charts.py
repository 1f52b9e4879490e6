import io
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from evaluation.report.charts import (
    MAX_COLUMNS,
    average_down,
    curve_chart,
    interval_chart,
    limits,
    log_mel_png,
    loss_chart,
    scatter_chart,
)

pytest.importorskip("matplotlib")


def texts(svg: bytes) -> list[str]:
    root = ElementTree.fromstring(svg)  # well formed
    return ["".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_charts_name_their_rows_and_axes():
    assert {"<x>", "y"} <= set(texts(interval_chart([("<x>", 1, 0.5, 1.5), ("y", 2, None, None)])))
    found = texts(curve_chart([(4, 1.0, 0, 2), (1, 3.0, 2, 4), (2, 2.0, None, None)], "scale", limit=0.5))
    assert {"scale", "n = ∞"} <= set(found)
    curves = {"train": [(i * 10.0, 1 / (i + 1)) for i in range(5000)], "val": [(20.0, 0.5)]}
    assert {"train", "val"} <= set(texts(loss_chart(curves)))
    places, labels = np.random.default_rng(0).normal(size=(12, 2)), ["a", "b", "<c>"] * 4
    assert {"a", "b", "<c>"} <= set(texts(scatter_chart(places, labels)))


def test_an_endless_interval_does_not_flatten_the_chart():
    low, high = limits([1.0, 2.0], [0.5, 1e9, None])
    assert 0 < high < 10 and low < 0.5


def test_long_curves_are_averaged_down():
    rows = average_down(np.arange(1001.0)[:, None], 400)
    assert len(rows) <= 400 and rows[0] == 1.0  # of 0, 1, 2


def test_log_mel_has_low_frequencies_at_the_bottom():
    log_mel = np.full((2 * MAX_COLUMNS, 64), -11.5)
    log_mel[:, 0] = 0.0
    picture = Image.open(io.BytesIO(log_mel_png(log_mel)))
    assert picture.size == (MAX_COLUMNS, 64) and picture.mode == "P"
    light = np.array(picture.convert("L"))
    assert (light[-1] > 240).all() and (light[:-1] < 5).all()
