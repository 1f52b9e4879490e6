import re
from xml.etree import ElementTree

import numpy as np
import pytest

from evaluation.benchmark_charts import bounds, cloud_chart, curve_chart, interval_chart, legend, ticks


def circles(chart: str) -> list[tuple[float, float]]:
    root = ElementTree.fromstring(chart)  # well formed
    return [(float(c.get("cx", 0)), float(c.get("cy", 0))) for c in root.iter("circle")]


def test_ticks_are_round_and_within():
    assert ticks(0.0, 10.0) == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    for low, high in ((0.013, 0.094), (-3.0, 7.5), (1.0, 20_000.0)):
        found = ticks(low, high)
        assert 2 <= len(found) <= 7 and low <= found[0] and found[-1] <= high * 1.0001
        assert np.allclose(np.diff(found), found[1] - found[0])


def test_dots_lie_where_their_values_are():
    (a, _), (b, _), (c, _) = circles(
        interval_chart("kl", "<note>", [("x", 1, 0.5, 1.5), ("y", 2, None, None), ("z", 3, 2, 4)])
    )
    assert b - a == pytest.approx(c - b, abs=0.2) and a < b
    points = circles(curve_chart("fd", "", [(4, 1.0, 0, 2), (1, 3.0, 2, 4), (2, 2.0, 1, 3)], "scale", limit=0.5))
    assert [x for x, _ in points] == sorted(x for x, _ in points)  # in the order of x
    assert points[0][1] < points[1][1] < points[2][1]  # the highest value on top


def test_an_endless_interval_does_not_flatten_the_chart():
    low, high = bounds([1.0, 2.0], [0.5, 1e9, None])
    assert 0 < high < 10 and low < 0.5
    chart = interval_chart("kl", "", [("a", 1.0, 0.5, 1e9), ("b", 2.0, 1.0, 3.0)])
    assert max(float(x) for x in re.findall(r'x2="([\d.-]+)"', chart)) <= 340


def test_clouds_show_every_point_and_class():
    places, labels = np.random.default_rng(0).normal(size=(12, 2)), ["a", "b", "<c>"] * 4
    root = ElementTree.fromstring(cloud_chart("VAE", "", places, labels))
    assert len(list(root.iter("circle"))) + len(list(root.iter("rect"))) == 12
    assert {element.get("class") for element in root.iter("circle")} == {"point c0", "point c2"}
    assert "&lt;c&gt;" in legend(labels) and legend(labels).count("<li>") == 3
