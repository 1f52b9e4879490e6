"""Figures of editing, of a model that was trained for seconds."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from audioldm2_pl.errors import UserError
from evaluation.report import ReportOptions, write_report
from evaluation.report.bench import Bench
from evaluation.report.editing_figures import EDITING_FIGURES, class_means, jumps, pitch
from evaluation.score import ScoreOptions
from evaluation.sound_classifier import SoundClassifierConfig


@pytest.fixture(scope="module")
def experiment(smoke_run, corpus):
    experiment = copy.copy(smoke_run)
    experiment.data = replace(experiment.data, test=str(corpus / "test"), judge=str(corpus / "judge"))
    experiment.sampling = replace(experiment.sampling, num_steps=2)
    return experiment


def test_all_abilities_in_one_page(experiment, tmp_path):
    options = ReportOptions(
        clips_per_class=2, order_clips=2, batch_size=6, device="cpu", figures=list(EDITING_FIGURES),
        score=ScoreOptions(resamples=20, num_workers=1),
    )  # fmt: skip
    classifier = SoundClassifierConfig(
        experiment.audio, channels=[8, 16, 16], embedding_size=16, batches=10, batch_size=12
    )
    found = write_report([experiment], options, tmp_path / "page.html", classifier=classifier)["figures"]["smoke"]
    assert list(found) == list(EDITING_FIGURES)
    assert all(numbers["num_clips"] == 6 and numbers["chance"] == pytest.approx(1 / 3) for numbers in found.values())
    assert found["inpainting"]["kept_max_difference"] == 0 and found["extension"]["kept_max_difference"] == 0
    assert found["inpainting"]["seams"]["limit_db"] > 0
    audio = experiment.run_folder / "report/audio"
    for clip in (audio / "extended").glob("*.flac"):  # the second half is new, not the clip's own
        real, extended = (soundfile.read(audio / system / clip.name)[0] for system in ("real", "extended"))
        half = len(real) // 2
        assert len(extended) == len(real) and np.array_equal(extended[:half], real[:half])
        assert not np.array_equal(extended[half:], real[half:])
    accuracy = found["inpainting"]["class accuracy of the middle half"]
    assert accuracy.keys() == {"Reference", "VAE + vocoder", "From text", "Inpainted", "The authors' way"}
    assert all(0 <= row["low"] <= row["value"] <= row["high"] <= 1 for row in accuracy.values())
    distances = found["super_resolution"]["log-spectral distance above 2000 Hz, dB"]
    assert distances.keys() == {"Low-passed", "Mean spectrum of the class", "VAE + vocoder", "Super-resolved"}
    assert all(row["value"] > 0 for row in distances.values())
    assert len(found["restyle"]["class accuracy of the target"]) == 6
    assert found["long_form"]["num_joints"] == 3
    page = (tmp_path / "page.html").read_text()
    assert "Inpainting" in page and "Sounds longer than a clip" in page


def test_editing_needs_the_classifier(experiment, tmp_path):
    bench = Bench(experiment, ReportOptions("classification", device="cpu"))
    bench.folder = tmp_path
    with pytest.raises(UserError, match="whose classifier names the sounds"):
        EDITING_FIGURES["inpainting"](bench)


def test_pitch_is_found_within_a_few_cents():
    times = torch.arange(16_000) / 16_000
    tones = torch.stack([torch.sin(2 * torch.pi * hz * times) for hz in (220.0, 447.0, 3_000.0)])
    assert ((12 * (pitch(tones, 16_000) / torch.tensor([220.0, 447.0, 3_000.0])).log2()).abs() < 0.05).all()


def test_mean_spectra_leave_their_clip_out():
    levels = torch.tensor([1.0, 3.0, 5.0, 9.0])[:, None, None].expand(4, 2, 3)
    assert class_means(levels, ["a", "a", "a", "b"])[:, 0].tolist() == [4.0, 3.0, 2.0, 9.0]
    assert np.allclose(jumps(torch.tensor([0.0, 1.0, 1.0])[None, :, None].expand(1, 3, 2)), [[1.0, 0.0]])
