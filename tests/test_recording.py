"""Edits of recordings, from a file to a file, by a trained smoke model."""

import numpy as np
import pytest
import soundfile
import torch

from audioldm2_pl.cli import main
from audioldm2_pl.errors import UserError
from audioldm2_pl.generation import Editing, Generation, Sampling
from audioldm2_pl.models.vae import latent_of
from audioldm2_pl.pipeline import AudioLDM2
from audioldm2_pl.recording import Recording, cross_over, edit_waveforms, joined, paste_back

SAMPLING = Sampling(num_steps=3, guidance_scale=2.0)
RATE = 16_000
CLIP = 40_960


def sound(num_samples: int, num_channels: int = 1, rate: int = RATE) -> torch.Tensor:
    """Tones and a little noise, (channels, T)."""
    times = torch.arange(num_samples) / rate
    noise = torch.randn(num_channels, num_samples, generator=torch.Generator().manual_seed(0))
    tones = torch.sin(2 * torch.pi * torch.tensor([[300.0], [500.0]])[:num_channels] * times)
    return 0.2 * tones + 0.02 * noise


@pytest.fixture(scope="module")
def model(smoke_run) -> AudioLDM2:
    return AudioLDM2.from_pretrained(smoke_run.model_folder)


@pytest.mark.parametrize(("seconds", "rate", "num_channels"), [(2.56, 16_000, 1), (1.0, 44_100, 2), (7.3, 8_000, 1)])
def test_inpainting_keeps_every_other_sample(model, seconds, rate, num_channels):
    source = sound(round(seconds * rate), num_channels, rate)
    edited, out_rate = model.edit(source, "a bell", sample_rate=rate, between=[(0.3, 0.6)], sampling=SAMPLING)
    assert out_rate == rate and edited.shape == source.shape
    first, last = round(0.3 * rate), round(0.6 * rate)
    assert torch.equal(edited[:, :first], source[:, :first]) and torch.equal(edited[:, last:], source[:, last:])
    assert (edited - source)[:, first:last].abs().max() > 0.01
    for edge in (first, last):  # no jump where the two meet
        assert (edited[:, edge] - edited[:, edge - 1]).abs().max() < 0.2
    if num_channels == 2:
        alone, _ = model.edit(source[:1], "a bell", sample_rate=rate, between=[(0.3, 0.6)], sampling=SAMPLING)
        torch.testing.assert_close(alone[0], edited[0], atol=1e-4, rtol=0)  # a channel has the noise that it has alone


def test_several_spans_and_a_span_longer_than_a_window(model):
    source = sound(4 * CLIP)
    spans = [(0.5, 1.0), (4.0, 9.0)]
    edited, _ = model.edit(source, "rain", between=spans, sampling=SAMPLING)
    kept = torch.ones(4 * CLIP, dtype=torch.bool)
    for start, stop in spans:
        kept[round(start * RATE) : round(stop * RATE)] = False
    assert torch.equal(edited[:, kept], source[:, kept])
    for start, stop in spans:
        part = slice(round(start * RATE), round(stop * RATE))
        assert (edited - source)[:, part].std() > 0.01


def test_without_paste_back_the_kept_part_is_the_vocoders(model):
    source = sound(CLIP)
    assert model.audio.peak is None  # the smoke experiment trains on sound as loud as it is
    edited, _ = model.edit(source, "rain", between=[(1.28, 2.56)], paste_back=False, sampling=SAMPLING)
    floor = model.reconstruct(source - source.mean()) + source.mean()
    kept = slice(0, CLIP // 2 - 8_000)  # away from the edge, whose surroundings the decoder sees
    error, distance = (edited - floor)[:, kept].std(), (edited - source)[:, kept].std()
    assert 0 < error < 0.2 * distance


def test_extension_goes_on_from_the_context(model):
    source = sound(20_000)
    edited, _ = model.edit(source, extend=3.0, sampling=SAMPLING)
    assert edited.shape == (1, 68_000) and torch.equal(edited[:, :20_000], source)
    assert edited[:, 20_000:].std() > 1e-4
    other = source.clone()
    other[:, :10_000] += 0.2 * torch.randn(10_000)
    assert not torch.allclose(model.edit(other, extend=3.0, sampling=SAMPLING)[0][:, 20_000:], edited[:, 20_000:])


def test_super_resolution_keeps_the_lower_frequencies(model):
    low = sound(8_000, rate=8_000)
    edited, rate = model.edit(low, "a bell", sample_rate=8_000, above=3_000.0, sampling=SAMPLING)
    assert rate == RATE and edited.shape[1] == 16_000
    expected = Recording(low, 8_000).at(RATE).waveform
    spectrum, reference = torch.fft.rfft(edited), torch.fft.rfft(expected)
    kept = slice(0, 2_600)  # Hz: a second has a bin a hertz
    torch.testing.assert_close(spectrum[:, kept], reference[:, kept], atol=0.05, rtol=0)
    assert not torch.allclose(spectrum[:, 3_100:], reference[:, 3_100:], atol=0.05)


def test_restyle_moves_further_with_its_strength(model):
    source = sound(CLIP)
    near, far = (model.edit(source, "rain", restyle=strength, num_steps=20, eta=0.0)[0] for strength in (0.1, 1.0))
    rebuilt = model.reconstruct(source.reshape(1, -1)).reshape(near.shape)  # what VAE and vocoder make of it alone
    sounds = {"source": rebuilt, "near": near, "far": far}
    log_mel = {name: model.log_mel(x / x.abs().max()) for name, x in sounds.items()}
    distance = {name: (log_mel[name] - log_mel["source"]).abs().mean() for name in ("near", "far")}
    assert distance["near"] < distance["far"]
    varied, _ = model.edit(source, vary=0.5, num_steps=20)
    assert varied.shape == source.shape and not torch.allclose(varied, near)


def test_inversion_with_the_sources_own_words_gives_it_back(model):
    """With one prompt and one guidance for both ways the latent is the source's."""
    waveform = sound(CLIP)
    editing = Editing(restyle=0.5, restyle_method="inversion", source_prompt="a bell", source_guidance=2.0)
    sampling = Sampling(num_steps=10, guidance_scale=2.0)
    same = edit_waveforms(model, waveform, [Generation("a bell")], editing, sampling)
    torch.testing.assert_close(same, model.reconstruct(waveform), atol=0.02, rtol=0)
    other = edit_waveforms(model, waveform, [Generation("rain")], editing, sampling)
    assert not torch.equal(other, same)


def test_official_mode_is_the_authors(model):
    source = sound(CLIP)
    editing = Editing(restyle=0.5, mode="official")
    edited = edit_waveforms(model, source, [Generation("rain")], editing, Sampling(num_steps=10))
    assert edited.shape[1] == CLIP - 3 * model.unit  # the last three latent frames are left out
    inpainted, _ = model.edit(source, "rain", between=[(1.0, 2.0)], mode="official", sampling=SAMPLING)
    assert inpainted.shape == source.shape and not torch.equal(inpainted[:, :8_000], source[:, :8_000])


def test_candidates_are_whole_edits(model):
    source = sound(CLIP, 2)
    sampling = Sampling(num_steps=1, candidates=3)
    edited, _ = model.edit(source, "rain", between=[(1.0, 2.0)], sampling=sampling)
    found = [model.edit(source, Generation("rain", seed=seed), between=[(1.0, 2.0)], num_steps=1)[0] for seed in (0,)]
    assert edited.shape == found[0].shape


def test_joints_run_on_from_what_is_beside_them():
    times = torch.arange(400) / RATE
    old = torch.sin(2 * torch.pi * 440 * times)[None]
    new = torch.zeros(1, 400)
    span = joined(old, new, 100, 300, 50)
    whole = torch.cat([old[:, :100], span, old[:, 300:]], dim=1)
    assert whole.diff().abs().max() <= 1.05 * old.diff().abs().max()
    assert not whole[:, 160:240].any()
    hidden = old.clone()
    hidden[:, 100:300] = 9.0  # what is replaced is not heard
    assert torch.equal(joined(hidden, new, 100, 300, 50), span)
    at_end = joined(old[:, :100], torch.zeros(1, 400), 100, 400, 50)
    assert at_end.shape == (1, 300) and at_end[0, 0].abs() > 0


def test_cross_over_takes_each_side():
    times = torch.arange(RATE) / RATE
    low, high = torch.sin(2 * torch.pi * 500 * times), torch.sin(2 * torch.pi * 5_000 * times)
    mixed = cross_over((low + 0.5 * high)[None], (0.3 * low + high)[None], 2_000, RATE)
    torch.testing.assert_close(mixed[0], low + high, atol=2e-3, rtol=0)


def test_paste_back_is_left_out_where_nothing_is_kept():
    source, edited = Recording(torch.zeros(1, 4_000), RATE), Recording(torch.ones(1, 4_096), RATE)
    assert torch.equal(paste_back(source, edited, Editing(restyle=0.5)).waveform, torch.ones(1, 4_000))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "no edit: choose one of --between"),
        ({"between": [(0.1, 0.2)], "extend": 2.0}, "between and extend: choose one"),
        ({"between": [(2.0, 1.0)]}, "the first has to be before the second"),
        ({"between": [(20.0, 21.0)]}, "nothing to edit"),
        ({"above": 7_999.0}, "nothing to edit"),
        ({"restyle": 1.5}, "restyle=1.5 has to be"),
        ({"extend": 2.0, "restyle_method": "inversion"}, "goes with --restyle"),
        ({"extend": 2.0, "seconds": 5.0}, "are for generate"),
        ({"mode": "officially", "extend": 1.0}, "did you mean 'official'"),
        ({"restyle": 0.5}, "prompt 1 is empty"),
    ],
)  # fmt: skip
def test_bad_edits_are_plain_errors(model, values, message):
    with pytest.raises(UserError, match=message):
        model.edit(sound(CLIP), sampling=SAMPLING, **values)


def test_bad_sources_are_plain_errors(model, tmp_path):
    (tmp_path / "no.wav").write_text("no sound")
    bad = {
        "no such audio file": tmp_path / "gone.wav",
        "cannot be read": tmp_path / "no.wav",
        "holds no sound": torch.zeros(10),
        "all finite": torch.full((CLIP,), torch.nan),
    }
    for message, source in bad.items():
        with pytest.raises(UserError, match=message):
            model.edit(source, "rain", extend=1.0, sampling=SAMPLING)


def test_the_command_keeps_a_files_samples_bit_for_bit(smoke_run, tmp_path, capsys):
    source = (sound(30_000, 2).T.numpy() * 32_767).astype(np.int16)
    soundfile.write(tmp_path / "in.wav", source, RATE, subtype="PCM_16")
    arguments = ["edit", str(smoke_run.model_folder), str(tmp_path / "in.wav"), "a bell", "--between", "0.5", "0.8",
                 "--between", "1", "1.2", "--steps", "2", "--output", str(tmp_path / "new" / "out.flac")]  # fmt: skip
    assert main(arguments) == 0 and "out.flac" in capsys.readouterr().out
    edited, rate = soundfile.read(tmp_path / "new" / "out.flac", dtype="int16")
    kept = np.r_[0:8_000, 12_800:16_000, 19_200:30_000]
    assert rate == RATE and np.array_equal(edited[kept], source[kept]) and not np.array_equal(edited, source)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--between", "a", "2"], "--between a 2: could not convert"),
        (["--extend", "1", "--output", "x.mp3"], "use a name that ends in .wav or .flac"),
        (["--extend", "1", "more text"], "put it in quotes"),
        (["--extend", "1", "--restyle", "0.5"], "extend and restyle: choose one"),
    ],
)
def test_a_wrong_command_line_is_one_line(smoke_run, arguments, message, capsys):
    try:
        code = main(["edit", str(smoke_run.model_folder), "in.wav", "a bell", *arguments])
    except SystemExit as stop:
        code = stop.code
    assert code == 2 and message in capsys.readouterr().err


def test_latents_of_a_source_are_the_vaes(model):
    waveform = sound(CLIP)
    expected = latent_of(model.vae, model.log_mel(waveform), sample=False)
    assert torch.equal(model.encode_latent(waveform), expected)
    assert not torch.equal(model.encode_latent(waveform, sample=True), expected)
