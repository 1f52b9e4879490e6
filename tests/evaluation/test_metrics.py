"""Every metric says of itself what it is; a new one is one file."""

import sys
from pathlib import Path

import numpy as np
import pytest

from evaluation import metrics, protocols
from evaluation.libraries import members
from evaluation.metrics import METRICS
from evaluation.metrics.embeddings import BACKENDS
from evaluation.metrics.metric import Metric

TOY = """
import numpy as np

from evaluation.metrics.metric import Measured, Metric

SPREAD = Metric(
    name="spread",
    title="Spread of the embeddings",
    unit="",
    higher_is_better=True,
    reads=frozenset({"embeddings"}),
    needs=None,
    compute=lambda material, settings: Measured({"values": material.generated.embeddings.clip_means().std(axis=1)}),
)
"""


def test_every_metric_is_complete():
    given = {part for backend in BACKENDS.values() for part in backend.gives}
    distances = {"frechet", "kad", "kl", "inception", "clap", "wer"}
    accuracies = {"class_accuracy", "order_accuracy", "nearest_mean_accuracy"}
    ratings = {"dnsmos", "aesthetics", "pam_laion", "tempo_accuracy", "key_accuracy"}
    assert set(METRICS) == distances | accuracies | ratings | {"speaker_similarity"}
    for metric in METRICS.values():
        assert metric.title and metric.reads <= given and metric.arrow in "↑↓"
        assert metric.is_share == metric.unit.startswith("share")
        metric.settings()


def test_a_new_metric_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "spread.py").write_text(TOY)
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path)])
    found = dict(members(metrics.__name__, metrics.__path__, Metric))["spread"]
    sys.modules.pop("evaluation.metrics.spread")
    monkeypatch.setitem(protocols.METRICS, "spread", found)
    path = tmp_path / "mine.yaml"
    path.write_text(
        "mine:\n  models: {x: {backend: vggish, weights: w}}\n  scores: {spread: {kind: spread, model: x}}\n"
    )
    protocol = protocols.load_protocol(str(path))
    assert protocol.metric("spread").better == "higher is better" and protocol.needs == set()
    interval = found.interval({"values": np.arange(20.0)}, 20, 20)
    assert interval.low < interval.value < interval.high


@pytest.mark.parametrize("name", sorted(METRICS))
def test_no_other_file_lists_the_metrics(name):
    """No table elsewhere repeats which metrics there are: report, comparison and scores read `METRICS`."""
    package = Path(metrics.__file__).parents[1]
    for file in [*package.glob("*.py"), package / "report" / "sections.py", package / "report" / "sounds.py"]:
        text = file.read_text()
        assert f'"{name}":' not in text and f'== "{name}"' not in text, file
