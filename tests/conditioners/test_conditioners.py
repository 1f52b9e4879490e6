"""The condition encoders: shapes, features equal to transformers', tokenizers, saving and loading."""

import string

import numpy as np
import pytest
import soxr
import torch
import transformers

from audioldm2_pl.audio import resample
from audioldm2_pl.conditioners.clap import CLAP, CLAPConfig, CLAPMel
from audioldm2_pl.conditioners.condition import Condition
from audioldm2_pl.conditioners.t5 import T5, T5EncoderConfig
from audioldm2_pl.conditioners.tokenizers import build_roberta_tokenizer, build_t5_tokenizer
from audioldm2_pl.errors import UserError

TEXTS = ["a bell", "a very long prompt: rain, then thunder & 3 bells!", ""]


@pytest.fixture(scope="module")
def clap() -> CLAP:
    torch.manual_seed(0)
    return CLAP.build(CLAPConfig(pretrained=None, projection_dim=64))


@pytest.fixture(scope="module")
def t5() -> T5:
    torch.manual_seed(0)
    return T5.build(T5EncoderConfig(pretrained=None, words=["bell", "rain"]))


@torch.no_grad()
def test_clap_gives_one_unit_vector_per_clip_and_prompt(clap):
    text = clap.encode_text(TEXTS)
    audio = clap.encode_audio(torch.randn(3, 20_000), 16_000)
    for condition in (text, audio):
        assert isinstance(condition, Condition)
        assert condition.embedding.shape == (3, 1, clap.width)
        assert condition.mask.shape == (3, 1) and condition.mask.all()
        torch.testing.assert_close(condition.embedding.norm(dim=-1), torch.ones(3, 1))


@torch.no_grad()
def test_padding_does_not_change_a_text_embedding(clap, t5):
    batch, tokens = clap.encode_text(TEXTS).embedding, t5(TEXTS)
    assert tokens.embedding.shape[2] == t5.width and tokens.mask.dtype == torch.bool
    for i, text in enumerate(TEXTS):
        torch.testing.assert_close(batch[i : i + 1], clap.encode_text([text]).embedding)
        alone = t5([text])
        length = alone.embedding.shape[1]
        assert alone.mask.all() and tokens.mask[i].sum() == length
        torch.testing.assert_close(tokens.embedding[i : i + 1, :length], alone.embedding)


@torch.no_grad()
def test_long_prompts_are_cut_and_the_end_of_long_clips_does_not_count(clap, t5):
    assert t5(["bell x" * 500]).mask.shape == (1, 128)
    assert clap.encode_text(["x" * 5000]).embedding.isfinite().all()
    waveform = torch.randn(1, 60_000)
    torch.testing.assert_close(
        clap.encode_audio(waveform, 16_000).embedding,
        clap.encode_audio(waveform[:, :48_000], 16_000).embedding,
    )


def extractors() -> list[transformers.ClapFeatureExtractor]:
    laion = {"frequency_min": 50, "truncation": "rand_trunc", "max_length_s": 1}
    small = {**laion, "sampling_rate": 16_000, "hop_length": 320, "frequency_max": 8_000}
    return [
        transformers.ClapFeatureExtractor(**laion),
        transformers.ClapFeatureExtractor(**small),
        transformers.ClapFeatureExtractor(**small, padding="repeat"),
        transformers.ClapFeatureExtractor(**small, padding="pad"),
    ]


@pytest.mark.parametrize("extractor", extractors())
@pytest.mark.parametrize("share", [1.0, 0.7, 0.3])
def test_mel_is_the_feature_extractors(extractor, share):
    time = torch.arange(round(share * extractor.nb_max_samples)) / extractor.sampling_rate
    noise = 0.1 * torch.randn(len(time))
    tone = 0.5 * torch.sin(2 * torch.pi * 440 * time)
    waveform = torch.stack([noise, tone, torch.zeros_like(tone)])
    expected = extractor(list(waveform.numpy()), sampling_rate=extractor.sampling_rate)
    log_mel = CLAPMel(extractor)(waveform).numpy()
    np.testing.assert_allclose(log_mel, np.stack(expected["input_features"]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("from_rate, to_rate", [(16_000, 48_000), (48_000, 16_000), (44_100, 16_000), (16_000, 22_050)])
def test_resample_agrees_with_soxr(from_rate, to_rate):
    time = np.arange(from_rate // 2 + 1) / from_rate
    tones = sum(np.sin(2 * np.pi * hz * time + hz) for hz in (100.0, 440.5, 1333.0, 3000.0, 5900.0))
    waveform = 0.1 * tones * np.hanning(len(time))
    result = resample(torch.from_numpy(waveform)[None].float(), from_rate, to_rate)[0].numpy()
    assert len(result) == -(-len(time) * to_rate // from_rate)
    expected = soxr.resample(waveform, from_rate, to_rate, quality="VHQ")
    num_samples = min(len(result), len(expected))
    np.testing.assert_allclose(result[:num_samples], expected[:num_samples], atol=5e-5)


def test_resample_suppresses_what_would_fold_back():
    time = torch.arange(48_000, dtype=torch.float64) / 48_000
    tone = torch.sin(2 * torch.pi * 9_000 * time)[None]
    assert resample(tone, 48_000, 16_000)[:, 200:-200].abs().max() < 1e-4


def test_tokenizers_know_every_printable_character(tmp_path):
    roberta, t5 = build_roberta_tokenizer(126), build_t5_tokenizer(["bell", "bell", "rings"], 50)
    assert len(roberta) == 261 and len(t5) == 4 + 94 + 2
    text = "".join(c for c in string.printable if c not in string.whitespace)
    for tokenizer in (roberta, t5):
        tokenizer.save_pretrained(tmp_path)
        loaded = type(tokenizer).from_pretrained(tmp_path)
        assert type(transformers.AutoTokenizer.from_pretrained(tmp_path)) is type(tokenizer)
        assert loaded.model_max_length == tokenizer.model_max_length
        for sentence in (text, "A bell rings, twice; Bells!"):
            ids = tokenizer(sentence)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids, skip_special_tokens=True) == sentence
            assert loaded(sentence)["input_ids"] == ids
    assert roberta.unk_token_id not in roberta("Glöckchen, 鐘")["input_ids"]


def test_listed_words_are_one_token_where_a_word_begins():
    tokenizer = build_t5_tokenizer(["bell", "bells"])
    assert tokenizer.tokenize("bells, bell doorbell") == [
        *("▁bells", ",", "▁bell"),
        *("▁", *"doorbell"),
    ]


@torch.no_grad()
def test_saved_parts_load_as_the_same_encoders(clap, t5, tmp_path):
    for part in (clap.model, clap.tokenizer, clap.feature_extractor):
        part.save_pretrained(tmp_path / "clap")
    for part in (t5.model, t5.tokenizer):
        part.save_pretrained(tmp_path / "t5")
    assert (tmp_path / "clap/model.safetensors").is_file()
    loaded = CLAP.build(CLAPConfig(pretrained=str(tmp_path / "clap")))
    waveform = torch.randn(2, 16_000)
    for one, other in (
        (clap.encode_text(TEXTS), loaded.encode_text(TEXTS)),
        (clap.encode_audio(waveform, 16_000), loaded.encode_audio(waveform, 16_000)),
        (t5(TEXTS), T5.build(T5EncoderConfig(pretrained=str(tmp_path / "t5")))(TEXTS)),
    ):
        torch.testing.assert_close(one.embedding, other.embedding, atol=0, rtol=0)
    assert isinstance(loaded.tokenizer, transformers.RobertaTokenizer)


@torch.no_grad()
def test_stock_pipeline_can_rank_with_a_small_clap(clap):
    waveform = torch.randn(2, 48_000).numpy()
    rate = clap.feature_extractor.sampling_rate
    inputs = clap.tokenizer(TEXTS[:2], return_tensors="pt", padding=True)
    inputs["input_features"] = clap.feature_extractor(
        list(waveform), return_tensors="pt", sampling_rate=rate
    ).input_features.float()
    logits = clap.model(**inputs).logits_per_text
    text, audio = clap.encode_text(TEXTS[:2]), clap.encode_audio(torch.from_numpy(waveform), rate)
    expected = text.embedding[:, 0] @ audio.embedding[:, 0].T * clap.model.logit_scale_t.exp()
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    padded = clap.tokenizer(
        TEXTS[0],
        padding="max_length",
        max_length=clap.tokenizer.model_max_length,
        return_tensors="pt",
    )
    torch.testing.assert_close(clap.model.get_text_features(**padded).pooler_output, text.embedding[0])


@pytest.mark.parametrize("kind, config", [(CLAP, CLAPConfig), (T5, T5EncoderConfig)])
def test_a_missing_checkpoint_is_one_plain_line(kind, config, tmp_path):
    with pytest.raises(UserError, match="cannot load") as raised:
        kind.build(config(pretrained=str(tmp_path / "nowhere")))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "sizes",
    [
        {"clip_seconds": 10, "hop_length": 160},
        {"spec_size": 100},
        {"patch_size": 32},
        {"audio_heads": [4, 8]},
        {"text_heads": 5},
    ],
)
def test_sizes_that_do_not_run_are_refused(sizes):
    with pytest.raises(UserError, match=r"conditioners\.clap"):
        CLAP.build(CLAPConfig(pretrained=None, **sizes))


@pytest.mark.parametrize("patch_size", [4, 8])
def test_small_claps_of_other_sizes_run(patch_size):
    sizes = {"spec_size": 64, "num_mel_bins": 32, "clip_seconds": 2, "hop_length": 400}
    clap = CLAP.build(CLAPConfig(pretrained=None, patch_size=patch_size, **sizes))
    assert clap.encode_audio(torch.randn(1, 44_100), 44_100).embedding.shape == (1, 1, 512)


def test_fused_checkpoints_are_refused(clap):
    fused = transformers.ClapFeatureExtractor(truncation="fusion")
    with pytest.raises(UserError, match="unfused"):
        CLAP(clap.model, clap.tokenizer, fused)
