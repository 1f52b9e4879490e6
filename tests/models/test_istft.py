"""The iSTFT vocoder: frames add up to the waveform, exact lengths, the folder round trip."""

from dataclasses import replace

import pytest
import torch

from audioldm2_pl.audio import AudioConfig, LogMel
from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.models.istft import ISTFTConfig, ISTFTVocoder
from audioldm2_pl.models.vocoder import (
    VocoderConfig,
    build_vocoder,
    check_front_end,
    finish_training,
    front_end_of,
    note_front_end,
    prepare_for_training,
    vocode,
)

SMALL = ISTFTConfig(hidden_size=16, intermediate_size=32, num_layers=2)


def build(**sizes) -> ISTFTVocoder:
    torch.manual_seed(0)
    vocoder = build_vocoder(VocoderConfig(kind="istft", istft=replace(SMALL, **sizes)))
    assert isinstance(vocoder, ISTFTVocoder)
    return vocoder


def test_size_of_vocos():
    with torch.device("meta"):
        vocoder = build_vocoder(VocoderConfig(kind="istft", num_mel_bins=100, istft=ISTFTConfig(256, 1024)))
    num_linear = 100 * 513 + 513  # from log-mel to log-magnitude, which Vocos has not
    assert sum(p.numel() for p in vocoder.parameters()) - num_linear == 13_531_650  # 13.5 M, as published


@pytest.mark.parametrize(("hop", "num_fft"), [(160, 640), (160, 1024), (160, 320), (480, 1920), (441, 1765), (9, 37)])
def test_frames_add_up_to_the_waveform(hop, num_fft):
    vocoder = build(hop_length=hop, num_fft=num_fft)
    waveform = torch.randn(2, 30 * hop)
    spectrum = vocoder.analyse(waveform)
    assert spectrum.shape == (2, 30, num_fft // 2 + 1)
    edge = num_fft // 2  # at whose windows' ends the division has nothing to divide
    torch.testing.assert_close(vocoder.synthesise(spectrum)[:, edge:-edge], waveform[:, edge:-edge])


def test_frames_stand_where_log_mel_has_them():
    """An impulse is loudest in the same frame of both."""
    waveform = torch.zeros(1, 40 * 160)
    waveform[0, 20 * 160 + 80] = 1.0  # the middle of frame 20
    assert build().analyse(waveform).abs().sum(2).argmax() == 20
    assert LogMel(AudioConfig())(waveform).exp().sum((1, 3)).argmax() in (19, 20, 21)


@pytest.mark.parametrize("rounds", [0, 3])
@pytest.mark.parametrize("num_frames", [1, 7, 40])
def test_length_is_exact(num_frames, rounds):
    vocoder = build(griffin_lim_rounds=rounds)
    waveform = vocode(vocoder, torch.randn(2, 1, num_frames, 64))
    assert waveform.shape == (2, num_frames * 160) and waveform.isfinite().all()


def test_rounds_make_the_spectrum_consistent():
    """The magnitudes of what comes out are nearer to those that the network asked for."""
    log_mel = LogMel(AudioConfig())(torch.randn(1, 8000))[:, 0]

    def inconsistency(rounds: int) -> float:
        vocoder = build(griffin_lim_rounds=rounds)  # in training mode, which cuts no peaks
        with torch.no_grad():
            wanted, _ = vocoder.spectrum(log_mel)
            return ((vocoder.analyse(vocoder(log_mel)).abs() - wanted).norm() / wanted.norm()).item()

    found = [inconsistency(rounds) for rounds in (0, 4, 16)]
    assert found[0] > found[1] > found[2]


@pytest.mark.parametrize("num_fft", [640, 1024])
def test_a_fresh_vocoder_knows_the_envelope(num_fft):
    """Its magnitudes are those of the waveform to 6 dB in the median, before any training."""
    audio = AudioConfig()
    vocoder = build_vocoder(VocoderConfig(kind="istft", istft=replace(SMALL, num_fft=num_fft)), audio)
    assert isinstance(vocoder, ISTFTVocoder)
    tilt = torch.fft.rfftfreq(16_000, 1 / 16_000).clamp(min=100).rsqrt()  # noise that falls by 3 dB an octave
    waveform = torch.fft.irfft(torch.fft.rfft(torch.randn(2, 16_000)) * tilt)
    with torch.no_grad():
        magnitude, _ = vocoder.spectrum(LogMel(audio)(waveform)[:, 0])
    difference = (magnitude.log() - vocoder.analyse(waveform).abs().log()).abs()  # (B, F, K)
    assert difference[:, 4:-4].median() < 0.69


@pytest.mark.parametrize("rounds", [0, 2])
def test_every_weight_gets_a_finite_gradient(rounds):
    vocoder = prepare_for_training(build(griffin_lim_rounds=rounds))
    log_mel = torch.randn(2, 1, 12, 64)
    log_mel[0] = -11.5  # silence
    vocode(vocoder, log_mel).square().mean().backward()
    for name, parameter in vocoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_bfloat16_weights_still_transform_in_float32():
    vocoder = build()
    log_mel = torch.randn(1, 1, 20, 64)
    whole = vocode(vocoder, log_mel)
    half = vocode(vocoder.to(torch.bfloat16), log_mel.to(torch.bfloat16))
    assert half.dtype == torch.float32 and (half - whole).norm() < 0.2 * whole.norm()


def test_folder_round_trip(tmp_path):
    vocoder, folder = build(griffin_lim_rounds=1), ModelFolder(tmp_path)
    folder.save("vocoder", note_front_end(finish_training(vocoder), AudioConfig(num_fft=512, window_length=400)))
    loaded = folder.load("vocoder")
    assert isinstance(loaded, ISTFTVocoder) and loaded.config == vocoder.config
    log_mel = torch.randn(1, 1, 12, 64)
    torch.testing.assert_close(vocode(loaded, log_mel), vocode(vocoder.eval(), log_mel))
    assert front_end_of(loaded)["num_fft"] == 512
    with pytest.raises(UserError, match=r"audio.num_fft is 1024, but the vocoder .* was trained with 512"):
        check_front_end(loaded, AudioConfig())
    assert not folder.opens_in_diffusers and "vocoder" not in (tmp_path / "model_index.json").read_text()


def test_a_damaged_config_gets_one_line(tmp_path):
    folder = ModelFolder(tmp_path)
    folder.save("vocoder", build())
    config = tmp_path / "vocoder/config.json"
    config.write_text(config.read_text().replace('"num_fft": 640', '"num_fft": 100'))
    with pytest.raises(UserError, match=r"vocoder: cannot be loaded \(vocoder.istft.num_fft=100"):
        folder.load("vocoder")


def test_sizes_that_do_not_fit():
    with pytest.raises(UserError, match=r"num_fft=300 has to be at least twice hop_length=160"):
        ISTFTConfig(num_fft=300)
    with pytest.raises(UserError, match=r"num_fft=641 .* odd or even as that is"):
        ISTFTConfig(num_fft=641)


@pytest.mark.parametrize("num_fft", [640, 4096])
def test_the_loudest_bin_has_room_for_a_sine_of_full_scale(num_fft):
    """Of any window length; what a damaged log-mel asks for beyond that is cut."""
    vocoder = build(num_fft=num_fft)
    sine = torch.sin(2 * torch.pi * 1_000 * torch.arange(80 * 160) / 16_000)[None]
    magnitude, _ = vocoder.spectrum(torch.full((1, 4, 64), 100.0))
    assert vocoder.analyse(sine).abs().max() < magnitude.max() <= 4.1 * vocoder.analyse(sine).abs().max()
