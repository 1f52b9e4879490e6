"""Files and spectrograms, beside librosa, torchaudio and transformers."""

import librosa
import numpy as np
import pytest
import soundfile
import torch
from transformers import ASTFeatureExtractor

from audioldm2_pl.audio import (
    AudioConfig,
    Fbank,
    LogMel,
    fit_length,
    limit_peak,
    load_waveform,
    normalise,
    prepare_clip,
    save_waveform,
    slaney_filters,
)
from audioldm2_pl.errors import UserError

torch.set_num_threads(1)
CONFIG = AudioConfig()
PADDED_ROW = 0.46703  # (0 - mean) / (2 std)


@pytest.fixture
def waveform() -> torch.Tensor:
    """A whole clip: a sweep over noise, (1, 163840)."""
    time = torch.arange(CONFIG.num_samples) / CONFIG.sample_rate
    sweep = torch.sin(2 * torch.pi * (100 * time + 300 * time.square()))
    noise = torch.randn(CONFIG.num_samples, generator=torch.Generator().manual_seed(0))
    return (0.3 * sweep + 0.05 * noise).unsqueeze(0)


def test_loud_parts_alone_are_turned_down():
    time = torch.arange(16_000) / 16_000
    tone = torch.sin(2 * torch.pi * 400 * time)
    envelope = 0.5 + 2.0 * (time > 0.5)  # 2.5 of full scale in its second half
    waveform = torch.stack([0.9 * tone, envelope * tone, 0.5 * tone])
    waveform[2, 100] = 40.0  # one burst
    limited = limit_peak(waveform, 16_000)
    assert limited.abs().max() <= 1.0
    assert limited[0].equal(waveform[0])  # what is within full scale stays, whatever its neighbours are
    assert limited[1, :7_600].equal(waveform[1, :7_600]) and limited[2, 600:].equal(waveform[2, 600:])
    torch.testing.assert_close(limited[1, 8_400:], tone[8_400:])  # a sine still
    assert limit_peak(torch.full((1, 3), 1.5), 16_000).allclose(torch.ones(1, 3))


def test_lengths():
    assert (CONFIG.num_samples, CONFIG.num_frames, CONFIG.frames_per_second) == (163_840, 1024, 100)
    short = AudioConfig(clip_seconds=2.56)
    assert (short.num_samples, short.num_frames) == (40_960, 256)


@pytest.mark.parametrize("seconds", [0.005, 10.241])
def test_clips_that_are_no_whole_number_of_frames_are_refused(seconds):
    with pytest.raises(UserError, match="clip_seconds"):
        AudioConfig(clip_seconds=seconds)


@pytest.mark.parametrize(
    "config", [CONFIG, AudioConfig(num_mel_bins=80), AudioConfig(sample_rate=48_000, mel_min_hz=50, mel_max_hz=14_000)]
)
def test_slaney_filters_are_librosas(config):
    expected = librosa.filters.mel(
        sr=config.sample_rate,
        n_fft=config.num_fft,
        n_mels=config.num_mel_bins,
        fmin=config.mel_min_hz,
        fmax=config.mel_max_hz,
    )
    np.testing.assert_allclose(slaney_filters(config).numpy().T, expected, atol=1e-7)


def test_log_mel_is_librosas(waveform):
    pad = (CONFIG.num_fft - CONFIG.hop_length) // 2
    padded = np.pad(waveform[0].numpy(), pad, mode="reflect")
    magnitude = np.abs(librosa.stft(padded, n_fft=1024, hop_length=160, center=False))
    mel = librosa.feature.melspectrogram(S=magnitude, sr=16_000, n_mels=64, fmin=0, fmax=8000)
    log_mel = LogMel(CONFIG)(waveform)
    assert log_mel.shape == (1, 1, 1024, 64)
    np.testing.assert_allclose(log_mel[0, 0].exp().numpy(), np.maximum(mel, 1e-5).T, atol=1e-5)
    np.testing.assert_allclose(log_mel[0, 0].numpy(), np.log(np.maximum(mel, 1e-5)).T, atol=1e-4)


def test_log_mel_of_silence_is_the_floor_and_has_a_finite_gradient():
    silence = torch.zeros(1, 3200, requires_grad=True)
    log_mel = LogMel(CONFIG)(silence)
    torch.testing.assert_close(log_mel, torch.full_like(log_mel, np.log(1e-5)))
    log_mel.sum().backward()
    assert silence.grad is not None and silence.grad.isfinite().all()


def test_spectrograms_are_float32_under_autocast(waveform):
    with torch.autocast("cpu", torch.bfloat16):
        short = waveform[:, :3200].bfloat16()
        assert LogMel(CONFIG)(short).dtype == Fbank(CONFIG)(short).dtype == torch.float32


def test_fbank_is_kaldis(waveform):
    kaldi = pytest.importorskip("torchaudio.compliance.kaldi").fbank(
        waveform,
        htk_compat=True,
        sample_frequency=16_000,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
        frame_shift=10,
    )  # (1022, 128)
    assert len(kaldi) == 1022
    fbank = Fbank(CONFIG)(waveform)
    assert fbank.shape == (1, 1, 1024, 128)
    padded = torch.nn.functional.pad(kaldi, (0, 0, 0, 2))
    expected = (padded - CONFIG.fbank_mean) / (2 * CONFIG.fbank_std)
    torch.testing.assert_close(fbank[0, 0], expected, atol=1e-4, rtol=0)
    assert (fbank[0, 0] - expected).abs().mean() < 1e-5
    torch.testing.assert_close(fbank[0, 0, 1022:], torch.full((2, 128), PADDED_ROW), atol=1e-5, rtol=0)


def test_fbank_is_that_of_transformers_ast(waveform):
    pytest.importorskip("torchaudio")  # without it the extractor's NumPy rounds more coarsely
    extractor = ASTFeatureExtractor()
    expected = extractor(waveform[0].numpy(), sampling_rate=16_000, return_tensors="pt")["input_values"]
    torch.testing.assert_close(Fbank(CONFIG)(waveform)[:, 0], expected, atol=1e-4, rtol=0)


def test_batches_equal_single_clips(waveform):
    batch = torch.stack([waveform[0, :16_000], waveform[0, 16_000:32_000]])
    for front_end in (LogMel(CONFIG), Fbank(CONFIG)):
        alone = torch.cat([front_end(clip[None]) for clip in batch])
        torch.testing.assert_close(front_end(batch), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_save_and_load(suffix, waveform, tmp_path):
    path = tmp_path / "new" / f"clip.{suffix}"
    clip = waveform[0, :8000]
    save_waveform(path, clip, 16_000)
    loaded = load_waveform(path, 16_000)
    assert loaded.dtype == np.float32 and loaded.shape == (8000,)
    np.testing.assert_allclose(loaded, clip.numpy(), atol=1 / 32_768)


def test_what_is_out_of_range_is_clipped(tmp_path):
    save_waveform(tmp_path / "loud.wav", np.array([-3.0, 0.0, 3.0]), 16_000)
    np.testing.assert_allclose(load_waveform(tmp_path / "loud.wav", 16_000), [-1, 0, 1], atol=1e-4)


@pytest.mark.parametrize("name", ["clip.unknown", "clip"])
def test_a_name_without_a_known_suffix_is_refused(name, tmp_path):
    with pytest.raises(UserError, match=r"\.wav"):
        save_waveform(tmp_path / name, np.zeros(10), 16_000)


def test_load_resamples_the_first_channel(tmp_path):
    time = np.arange(44_100) / 44_100
    stereo = np.stack([0.5 * np.sin(2 * np.pi * 440 * time), np.zeros(44_100)], axis=1)
    soundfile.write(tmp_path / "stereo.wav", stereo, 44_100)
    loaded = load_waveform(tmp_path / "stereo.wav", 16_000)
    assert loaded.shape == (16_000,)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(loaded[500:-500], expected[500:-500], atol=1e-3)


@pytest.mark.parametrize("channels", [2, 6])
def test_a_silent_first_channel_gives_way_to_the_loudest(channels, tmp_path):
    sound = 0.5 * np.sin(np.arange(16_000) / 10)
    waveform = np.zeros((16_000, channels))
    waveform[:, 0] = 5e-5  # a converter's offset
    waveform[:, -1], waveform[:, 1] = sound, sound / 10 if channels > 2 else sound
    soundfile.write(tmp_path / "a.wav", waveform, 16_000)
    np.testing.assert_allclose(load_waveform(tmp_path / "a.wav", 16_000), sound, atol=1e-4)
    assert not load_waveform_of(tmp_path, np.zeros((100, channels))).any()


def load_waveform_of(folder, waveform) -> np.ndarray:
    soundfile.write(folder / "b.wav", waveform, 16_000)
    return load_waveform(folder / "b.wav", 16_000)


def test_bad_files_are_user_errors_that_name_the_file(tmp_path):
    (tmp_path / "text.wav").write_text("no sound")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan, 0.0]), 16_000, subtype="FLOAT")
    for name in ("missing.wav", "text.wav", "empty.wav", "nan.wav"):
        with pytest.raises(UserError, match=name):
            load_waveform(tmp_path / name, 16_000)


def test_normalise():
    waveform = np.array([0.1, 0.3, 0.5, 0.3], dtype=np.float32)
    scaled = normalise(waveform, 0.5)
    assert scaled.dtype == np.float32
    assert np.abs(scaled).max() == pytest.approx(0.5) and scaled.mean() == pytest.approx(0, abs=1e-7)
    np.testing.assert_allclose(normalise(waveform, None), waveform - 0.3, atol=1e-7)
    assert not normalise(np.zeros(4, dtype=np.float32), 0.5).any()


def test_near_silence_is_not_scaled_up_to_noise():
    hiss = np.random.default_rng(0).uniform(-1, 1, 1000).astype(np.float32)
    assert np.abs(normalise(2e-4 * hiss, 0.5)).max() < 0.03
    assert np.abs(normalise(np.full(1000, 0.3, dtype=np.float32), 0.5)).max() < 1e-4  # a constant's rounding
    assert np.abs(normalise(0.01 * hiss, 0.5)).max() == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_padding_is_digital_silence(rate):
    """DC of a clip that is levelled after it is padded would stand in the padding."""
    clip = 0.2 + 0.1 * np.sin(np.arange(rate) / 10).astype(np.float32)  # one second
    waveform = prepare_clip(clip, rate, CONFIG)
    assert waveform.shape == (CONFIG.num_samples,) and not waveform[16_000:].any()
    assert np.abs(waveform).max() == pytest.approx(0.5) and abs(waveform[:16_000].mean()) < 1e-6
    log_mel = LogMel(CONFIG)(torch.from_numpy(waveform)[None])[0, 0]
    torch.testing.assert_close(log_mel[110:], torch.full((914, 64), float(np.log(1e-5))))


def test_a_crop_has_a_level_of_its_own():
    waveform = np.concatenate([np.full(8000, 0.9), 0.1 * np.sin(np.arange(16_000) / 10)]).astype(np.float32)
    crop = prepare_clip(waveform, 16_000, CONFIG, 8000, start=8000)
    assert crop.shape == (8000,) and np.abs(crop).max() == pytest.approx(0.5, abs=1e-3)


def test_fit_length():
    waveform = np.arange(5.0)
    assert fit_length(waveform, 3, 1).tolist() == [1, 2, 3]
    assert fit_length(waveform, 3, 4).tolist() == [4, 0, 0]
    assert fit_length(waveform, 7).tolist() == [0, 1, 2, 3, 4, 0, 0]


def test_real_clips_have_finite_spectrograms(real_data):
    paths = sorted((real_data / "esc10" / "audio").glob("*/*.ogg"))[::50]
    if not paths:
        pytest.skip(f"{real_data} has no esc10/audio/*/*.ogg")
    for path in paths:
        waveform = load_waveform(path, CONFIG.sample_rate)
        assert 0 < np.abs(waveform).max() < 2
        clip = torch.from_numpy(fit_length(normalise(waveform, CONFIG.peak), CONFIG.num_samples))[None]
        assert clip.abs().max() <= 0.5 + 1e-6
        assert LogMel(CONFIG)(clip).isfinite().all() and Fbank(CONFIG)(clip).isfinite().all()
