import math

import numpy as np
import pytest
import torch
from tiny_corpus import AUDIO

from evaluation.metrics.accuracy import order_is_right
from evaluation.report.classification import Prediction, derangement, levels, log_mel_distance, summarise
from evaluation.report.generate import SYSTEMS


@pytest.mark.parametrize("num_items", [2, 3, 12, 50])
def test_derangement_leaves_nothing_in_place(num_items):
    for seed in range(20):
        order = derangement(num_items, seed)
        assert sorted(order) == list(range(num_items))
        assert all(i != item for i, item in enumerate(order))
        assert order == derangement(num_items, seed)


def test_derangement_of_one_is_refused():
    with pytest.raises(ValueError, match="two"):
        derangement(1, 0)


def test_order_rule():
    halves = np.log([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]])
    assert order_is_right(halves, 0, 1) and not order_is_right(halves, 1, 0)
    # The order can be told although both halves sound most like a third class.
    unsure = np.log([[0.2, 0.1, 0.7], [0.1, 0.2, 0.7]])
    assert order_is_right(unsure, 0, 1) and not order_is_right(unsure, 1, 0)
    # A clip that sounds the same throughout has no order.
    assert not order_is_right(halves[[0, 0]], 0, 1) and not order_is_right(halves[[0, 0]], 1, 0)


def test_accuracies_of_known_predictions():
    right = {"a": Prediction(["x"], ["x"], 1.0, True), "b": Prediction(["y"], ["y"], 1.0, True)}
    pair = {"c": Prediction(["x", "y"], ["x", "x"], 0.6, True)}
    half_wrong = {"a": right["a"], "b": Prediction(["y"], ["x"], 0.5, False)}
    predictions = {s: right | pair for s in SYSTEMS} | {"text_to_audio": half_wrong | pair}
    scores = summarise(predictions, ["x", "y"], seed=0)
    assert scores["class_accuracy"] == {
        "real": 1.0,
        "reconstruction": 1.0,
        "loa_to_audio": 1.0,
        "text_to_audio": 0.5,
        "shuffled_captions": 0.5,  # of two classes there is one derangement: y is asked to be x
    }
    assert scores["order_accuracy"] == {"real": 1.0, "text_to_audio": 1.0}
    assert scores["order_both_correct"]["text_to_audio"] == 0.0
    assert scores["confusion"]["text_to_audio"] == [[1, 0], [1, 0]]
    assert scores["class_accuracy_by_class"]["text_to_audio"] == {"x": 1.0, "y": 0.0}


def test_levels():
    times = torch.arange(16000) / 16000
    sine = (2 * math.pi * 440 * times).sin()
    found = levels(torch.stack([sine, torch.zeros(16000)]))
    assert found["peak"] == pytest.approx(1, abs=1e-3)
    assert found["share_of_silent_clips"] == 0.5
    assert 0 < found["share_of_clipped_samples"] < 0.05
    assert levels(sine[None])["rms_db"] == pytest.approx(-3.01, abs=0.01)


def test_log_mel_distance_of_half_the_level_is_six_decibels():
    waveform = 0.5 * torch.randn(3, AUDIO.num_samples, generator=torch.Generator().manual_seed(0))
    assert log_mel_distance(waveform, waveform, AUDIO) == 0
    assert log_mel_distance(waveform / 2, waveform, AUDIO) == pytest.approx(6.02, abs=0.01)
