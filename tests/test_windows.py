"""Sounds of any length by windows: which windows there are, what each keeps, and how they are joined."""

import itertools

import pytest
import torch

from audioldm2_pl.errors import UserError
from audioldm2_pl.generation import Generation, Sampling
from audioldm2_pl.pipeline import AudioLDM2
from audioldm2_pl.windows import Canvas, fit, loa_of_kept, spans_of, windows_over

SAMPLING = Sampling(num_steps=2, guidance_scale=2.0)
CLIP = 40_960  # samples of a clip of the smoke model: 32 latent frames


@pytest.fixture(scope="module")
def model(smoke_run) -> AudioLDM2:
    return AudioLDM2.from_pretrained(smoke_run.model_folder)


def test_spans_are_runs():
    assert spans_of(torch.tensor([1, 1, 0, 0, 1, 0]).bool()) == [(0, 2), (4, 5)]
    assert spans_of(torch.zeros(3).bool()) == [] and spans_of(torch.ones(3).bool()) == [(0, 3)]


def test_windows_cover_a_span_with_context():
    assert windows_over((5, 9), 20, 32) == [(0, 20)]  # shorter than a window
    assert windows_over((50, 60), 100, 32) == [(39, 71)]  # around the middle
    assert windows_over((0, 4), 100, 32) == [(0, 32)] and windows_over((97, 100), 100, 32) == [(68, 100)]
    for span, num_frames in (((0, 100), 100), ((40, 90), 100), ((30, 100), 100), ((0, 33), 33)):
        windows = windows_over(span, num_frames, 32)
        assert all(stop - start == 32 and start >= 0 and stop <= num_frames for start, stop in windows)
        assert windows[0][0] <= max(0, span[0] - 8) and windows[-1][1] >= span[1]
        assert all(after[0] <= before[1] - 8 for before, after in itertools.pairwise(windows))  # a quarter of overlap
    assert windows_over((30, 100), 100, 32)[0] == (22, 54)  # with a quarter of context before what is new


def test_a_window_is_cross_faded_where_it_kept():
    canvas = Canvas(torch.zeros(1, 40), torch.zeros(1, 2, 8, 1), torch.zeros(8, 1), torch.zeros(8, dtype=torch.bool))
    canvas.write((0, 4), torch.ones(4, dtype=torch.bool), torch.ones(1, 2, 4, 1), torch.ones(1, 20), 100)
    assert torch.equal(canvas.waveform[0, :20], torch.ones(20)) and not canvas.waveform[0, 20:].any()
    frames = torch.tensor([False, False, True, True, True, True])
    canvas.write((2, 8), frames, torch.full((1, 2, 6, 1), 2.0), torch.full((1, 30), 2.0), 100)
    fade = canvas.waveform[0, 10:20]  # what the second window kept
    assert fade[0] == 1 and fade[-1] == 2 and (fade.diff() >= 0).all() and canvas.waveform[0, 20:].eq(2).all()
    assert canvas.keep.all() and canvas.sampled.all()


def test_a_long_sound_goes_on_from_window_to_window(model):
    seconds = 3 * CLIP / model.sample_rate
    reports = []
    waveform = model.generate(
        ["a bell", "rain"], sampling=SAMPLING, seconds=seconds, progress=lambda *step: reports.append(step)
    )
    assert waveform.shape == (2, 3 * CLIP) and waveform.isfinite().all()
    # the first window is the clip that the same seed gives, up to its cross-fade with the next
    short = model.generate(["a bell", "rain"], sampling=SAMPLING)
    assert torch.equal(waveform[:, : CLIP * 3 // 4], short[:, : CLIP * 3 // 4])
    assert reports[-1][0] == reports[-1][1] and [step for step, _ in reports] == sorted(step for step, _ in reports)
    assert torch.equal(waveform, model.generate(["a bell", "rain"], sampling=SAMPLING, seconds=seconds))
    alone = model.generate("rain", sampling=SAMPLING, seconds=seconds, seed=1)
    torch.testing.assert_close(alone[0], waveform[1], atol=1e-4, rtol=0)
    at_once = model.generate("rain", sampling=SAMPLING, seconds=seconds, seed=1, window_seconds=seconds)
    assert at_once.shape == alone.shape and not torch.equal(at_once, alone)


def test_the_prompt_changes_on_a_time_line(model):
    half = CLIP / 2 / model.sample_rate
    changing = Generation("a bell", prompt_at=[(half, "rain")])
    waveform = model.generate(changing, sampling=SAMPLING)
    before = model.generate("a bell", sampling=SAMPLING)
    assert waveform.shape == before.shape
    assert torch.equal(waveform[:, : CLIP // 4 - 640], before[:, : CLIP // 4 - 640])
    assert not torch.equal(waveform[:, CLIP // 2 + 1280 :], before[:, CLIP // 2 + 1280 :])
    again = model.generate(Generation("a bell", prompt_at=[(half, "a dog")]), sampling=SAMPLING)
    assert not torch.equal(again[:, CLIP // 2 + 1280 :], waveform[:, CLIP // 2 + 1280 :])


def test_of_candidates_each_window_keeps_the_nearest(model):
    sampling = Sampling(num_steps=1, candidates=2)
    seconds = 2 * CLIP / model.sample_rate
    waveform = model.generate("rain", sampling=sampling, seconds=seconds)
    first = model.generate("rain", sampling=sampling)
    assert torch.equal(waveform[:, : CLIP // 2], first[:, : CLIP // 2])


def test_audiomae_hears_what_is_kept_alone(model):
    draw = torch.Generator().manual_seed(0)
    waveform = torch.randn(2, CLIP, generator=draw) * 0.1
    kept = torch.zeros(32, dtype=torch.bool)
    kept[:8] = True
    found = loa_of_kept(model, waveform, kept)
    rows, columns = (size // model.audiomae.config.pooling for size in model.audiomae.grid)
    assert found.keys() == {"loa_prefix"} and found["loa_prefix"].shape[1] == rows // 4 * columns
    other = waveform.clone()
    other[:, CLIP // 4 :] = torch.randn(2, CLIP * 3 // 4, generator=draw)
    assert torch.equal(loa_of_kept(model, other, kept)["loa_prefix"], found["loa_prefix"])  # nothing leaks
    expected = model.loa_of(waveform[:, : CLIP // 4].repeat(1, 4))[:, : rows // 4 * columns]
    assert torch.equal(found["loa_prefix"], expected)
    both = loa_of_kept(model, waveform, kept | kept.flip(0))
    assert both["loa_suffix"].shape == both["loa_prefix"].shape
    assert not loa_of_kept(model, waveform, torch.zeros(32, dtype=torch.bool))
    assert not loa_of_kept(model, waveform, torch.ones(32, dtype=torch.bool))


def test_what_one_window_alone_takes(model):
    loa = torch.zeros(1, model.loa_generator.num_loa_vectors, 32)
    with pytest.raises(UserError, match="for sounds of one window"):
        model.generate("rain", sampling=SAMPLING, seconds=10.0, loa=loa)
    assert fit(torch.ones(1, 3), 5).tolist() == [[1, 1, 1, 0, 0]] and fit(torch.ones(1, 3), 2).shape == (1, 2)
