"""The vocoder: published size, exact lengths, weight norm on and off, the folder round trip."""

import pytest
import torch
from transformers import SpeechT5HifiGan

from audioldm2_pl.audio import AudioConfig
from audioldm2_pl.errors import UserError
from audioldm2_pl.models.vocoder import (
    VocoderConfig,
    build_vocoder,
    check_front_end,
    check_hop_length,
    finish_training,
    front_end_of,
    note_front_end,
    prepare_for_training,
    vocode,
)

SMALL = VocoderConfig(
    upsample_rates=[8, 5, 4],
    upsample_kernel_sizes=[16, 11, 8],
    upsample_initial_channel=32,
    resblock_kernel_sizes=[3],
    resblock_dilation_sizes=[[1, 3]],
)


@pytest.fixture
def vocoder() -> SpeechT5HifiGan:
    torch.manual_seed(0)
    return build_vocoder(SMALL)


def test_published_size():
    with torch.device("meta"):
        vocoder = build_vocoder(VocoderConfig())
    assert sum(p.numel() for p in vocoder.parameters()) == 55_264_897  # 55.26 M, without weight norm
    assert vocoder.config.model_in_dim == 64 and not vocoder.config.normalize_before
    assert VocoderConfig().hop_length == 160


@pytest.mark.parametrize("num_frames", [1, 7, 40])
def test_length_is_exact(vocoder, num_frames):
    assert vocode(vocoder, torch.randn(2, 1, num_frames, 64)).shape == (2, num_frames * 160)


def test_surplus_of_the_published_kernels_is_cut():
    published = build_vocoder(VocoderConfig(upsample_initial_channel=32))
    log_mel = torch.randn(1, 1, 40, 64)
    assert published(log_mel.squeeze(1)).shape[1] == 40 * 160 + 32
    assert vocode(published, log_mel).shape == (1, 40 * 160)


def test_a_fresh_vocoder_is_audible(vocoder):
    log_mel = torch.randn(2, 1, 20, 64) * 2 - 6
    assert vocode(vocoder, log_mel).std() > 1e-3


def test_weight_norm_changes_no_sample(vocoder):
    log_mel = torch.randn(1, 1, 12, 64)
    before = vocode(vocoder, log_mel)
    names = set(vocoder.state_dict())
    prepare_for_training(vocoder)
    torch.testing.assert_close(vocode(vocoder, log_mel), before)
    finished = finish_training(vocoder)
    assert set(finished.state_dict()) == names
    torch.testing.assert_close(vocode(finished, log_mel), before)
    assert any("parametrizations" in name for name in vocoder.state_dict())
    torch.testing.assert_close(vocode(vocoder, log_mel), before)  # the one in training is left as it was


def test_every_weight_gets_a_finite_gradient(vocoder):
    prepare_for_training(vocoder)
    vocode(vocoder, torch.randn(2, 1, 12, 64)).square().mean().backward()
    for name, parameter in vocoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_folder_round_trip(vocoder, tmp_path):
    finish_training(prepare_for_training(vocoder)).save_pretrained(tmp_path)
    loaded, info = SpeechT5HifiGan.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    log_mel = torch.randn(1, 1, 12, 64)
    torch.testing.assert_close(vocode(loaded, log_mel), vocode(vocoder, log_mel))


def test_user_errors(vocoder):
    with pytest.raises(UserError, match=r"makes 160 samples of a frame, but audio\.hop_length is 240"):
        check_hop_length(vocoder, 240)
    with pytest.raises(UserError, match="upsample_kernel_sizes"):
        build_vocoder(VocoderConfig(upsample_kernel_sizes=[16, 16]))
    with pytest.raises(UserError, match="resblock_dilation_sizes"):
        build_vocoder(VocoderConfig(resblock_kernel_sizes=[3]))


def test_the_folder_tells_of_which_log_mels_it_makes_sound(tmp_path, vocoder):
    audio = AudioConfig(num_fft=512, window_length=400, mel_min_hz=50.0)
    note_front_end(vocoder, audio).save_pretrained(tmp_path)
    loaded = SpeechT5HifiGan.from_pretrained(tmp_path)
    assert AudioConfig(**front_end_of(loaded)) == audio
    check_front_end(loaded, audio)
    with pytest.raises(UserError, match=r"audio.num_fft is 1024, but the vocoder .* was trained with 512"):
        check_front_end(loaded, AudioConfig())


def test_a_hub_folder_that_does_not_tell_has_the_published_front_end(vocoder):
    check_front_end(vocoder, AudioConfig())
