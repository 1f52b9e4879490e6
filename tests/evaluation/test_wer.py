from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audioldm2_pl.errors import UserError
from evaluation.metrics.embeddings.whisper import load_whisper
from evaluation.metrics.wer import WordErrorRate, normalise_text, word_error_rate, word_errors
from evaluation.pairs import Inputs
from evaluation.score import ScoreOptions, score_folders


def test_words_ignore_case_and_punctuation():
    assert normalise_text("Don’t – STOP, “now”!") == "don't stop now"
    assert normalise_text("snake_case 3 Ähren") == "snake case 3 ähren"


@pytest.mark.parametrize(
    ("transcript", "recognised", "errors"),
    [
        ("the cat sat on the mat", "The cat sat on the mat.", (0, 0, 0)),
        ("the cat sat on the mat", "the cat sat the mat", (0, 1, 0)),
        ("the cat sat on the mat", "the big cat sat on a mat", (1, 0, 1)),
        ("one two", "", (0, 2, 0)),
        ("one", "three four one five", (0, 0, 3)),
    ],
)
def test_fewest_errors(transcript, recognised, errors):
    """errors: substitutions, deletions, insertions"""
    assert word_errors(transcript, recognised) == (sum(errors), len(transcript.split()))


def test_words_not_clips_are_averaged():
    assert word_error_rate(["a", "b c d"], ["x", "b c d"]) == 0.25
    with pytest.raises(UserError, match="has no words"):
        word_error_rate(["..."], ["a"])


def test_streaming_rate_merges():
    transcripts, recognised = ["a b c", "d", "e f", "g h i j"], ["a b", "d", "x y z", "g h i j"]
    metrics = [WordErrorRate(), WordErrorRate()]
    for clip in range(4):
        metrics[clip % 2].update(transcripts[clip : clip + 1], recognised[clip : clip + 1])
    metrics[0].merge_state(metrics[1])
    assert metrics[0].compute().item() == word_error_rate(transcripts, recognised)


@pytest.fixture
def whisper_folder(tmp_path) -> Path:
    """A Whisper of random weights in the published layout."""
    import transformers
    from tokenizers.pre_tokenizers import ByteLevel

    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|translate|>"]
    pieces = [*sorted(ByteLevel.alphabet()), *special, "<|notimestamps|>"]
    tokenizer = transformers.WhisperTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])
    sizes = {
        f"{part}_{name}": number
        for part in ("encoder", "decoder")
        for name, number in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 16))
    }
    ends = dict.fromkeys(("pad_token_id", "eos_token_id", "bos_token_id"), 256)
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer), d_model=16, max_target_positions=12, decoder_start_token_id=257, **ends, **sizes
    )
    config.suppress_tokens = config.begin_suppress_tokens = None
    torch.manual_seed(0)
    folder = tmp_path / "weights" / "whisper-base"
    transformers.WhisperForConditionalGeneration(config).save_pretrained(folder)
    transformers.WhisperProcessor(transformers.WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)
    return folder


def test_whisper_drives_the_speech_protocol(whisper_folder, tmp_path):
    for number in range(2):
        (tmp_path / "audio").mkdir(exist_ok=True)
        waveform = 0.1 * np.random.default_rng(number).normal(size=8000)
        soundfile.write(tmp_path / "audio" / f"{number}.wav", waveform, 16_000)
    recognised = load_whisper(whisper_folder, "cpu").transcribe(
        [tmp_path / "audio" / "0.wav", tmp_path / "audio" / "1.wav"]
    )
    (tmp_path / "transcripts.csv").write_text("filename,caption\n0,hello there\n1,one two three\n")
    options = ScoreOptions(tmp_path / "weights", resamples=10)
    result, _ = score_folders(Inputs(tmp_path / "audio", captions=tmp_path / "transcripts.csv"), "speech", options)
    assert list(result["scores"]["wer"]["recognised"].values()) == recognised
    assert result["scores"]["wer"]["value"] == word_error_rate(["hello there", "one two three"], recognised)
    assert "whisper-base/model.safetensors" in result["weights"]["whisper"]


def test_missing_recogniser_is_named(tmp_path):
    with pytest.raises(UserError, match="no Whisper here"):
        load_whisper(tmp_path / "whisper-base", "cpu")
