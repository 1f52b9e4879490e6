import math

import numpy as np
import pytest
import soundfile
from scipy.fft import rfft

from audioldm2_pl.errors import UserError
from evaluation.features import prepare_windows
from evaluation.metrics.embeddings import BACKENDS
from evaluation.protocols import AudioSettings, built_in, differences, load_protocol


def write(path, waveform, rate=16_000):
    soundfile.write(path, waveform, rate, subtype="FLOAT")
    return path


def test_every_named_protocol_loads_and_differs_from_the_others():
    protocols = [load_protocol(name) for name in built_in()]
    assert len(protocols) >= 4 and all(protocol.about for protocol in protocols)
    assert len({protocol.digest for protocol in protocols}) == len(protocols)


def test_the_papers_protocol():
    """audioldm_eval, branch passt_replace_panns"""
    paper = load_protocol("audioldm2-paper")
    assert {name: score.kind for name, score in paper.scores.items()} == {"fad": "frechet", "kl": "kl", "clap": "clap"}
    kl = paper.scores["kl"].choices
    assert (kl.activation, kl.epsilon, kl.direction) == ("softmax", 1e-6, "reference||generated")
    assert paper.models["passt"].audio.clip_seconds == 10 and paper.expected_clips[0] == 964
    assert paper.models["clap"].weights == "music_speech_audioset_epoch_15_esc_89.98.pt"


def test_every_embedding_gives_a_frechet_distance():
    scored = {
        protocol.models[score.model].backend
        for protocol in map(load_protocol, built_in())
        for score in protocol.scores.values()
        if score.kind == "frechet"
    }
    others = {"laion_clap", "frechet_audio_distance", "resemblyzer"}  # embeddings of another one, or of voices
    others |= {name for name, backend in BACKENDS.items() if "embeddings" not in backend.gives}
    assert scored == set(BACKENDS) - others


def test_what_does_not_decide_a_score_does_not_decide_the_hash(tmp_path):
    def digest(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return load_protocol(str(path)).digest

    text = (
        "mine:\n  about: one\n  models: {j: {backend: classifier, weights: w}}\n"
        "  scores: {kl: {kind: kl, model: j, epsilon: 1.0e-6}}\n"
    )
    assert digest(text) == digest(text.replace("one", "two")) == digest(text.replace("mine", "yours"))
    assert digest(text) != digest(text.replace("1.0e-6", "1.0e-7"))


def test_differences_are_named():
    first, second = (load_protocol(name).settings() for name in ("audioldm2-paper", "audiogen"))
    found = differences(first, second)
    assert "scores.kl.sample: clip / window" in found
    assert "models.passt.audio.clip_seconds: 10.0 / None" in found
    assert differences(first, first) == []
    assert differences(first, load_protocol("stable-audio").settings())[2] == "models.vggish: only in the first"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mine: {scores: {kl: {kind: kl, model: x, epsilom: 1}}}", "epsilom"),
        ("mine: {scores: {kl: {kind: kl, model: x}}}", "scores.kl.model='x'"),
        (
            "mine: {models: {x: {backend: mert, weights: y}}, scores: {}}",
            "choose from audiobox_aesthetics, audiomae, clap, classifier, encodec",
        ),
        ("mine: {models: {x: {backend: classifier, weights: y, audio: {bits: 8}}}}", "audio.bits"),
        ("mine: {models: {x: {backend: classifier, weights: y}}}", "names no scores"),
        (
            "mine: {models: {x: {backend: classifier, weights: y}}, scores: {a: {kind: fid, model: x}}}",
            "choose from class_accuracy, order_accuracy, aesthetics, clap",
        ),
        (
            "mine: {models: {x: {backend: classifier, weights: y}}, scores: {a: {kind: wer, model: x}}}",
            "classifier gives no wer",
        ),
        ("mine: {models: {x: {backend: judge, weights: y}}}", "it is called 'classifier' now"),
        ("mine: {models: {x: {backend: whisper, weights: y}}, scores: {a: {kind: kl, model: x}}}", "gives no kl"),
        ("mine: {scores: [1]}", "mine.yaml"),
        ("about: x\nmodels: {}\nscores: {}", "about: is no mapping; the file is NAME: {models"),
        ("", "mine.yaml"),
    ],
)
def test_bad_protocols_are_told_in_one_line(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_protocol(str(tmp_path / "mine.yaml"))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_unknown_names_list_the_known_ones(tmp_path):
    with pytest.raises(UserError, match="no protocol 'paper'; there are audioldm2-paper, audiogen"):
        load_protocol("paper")
    with pytest.raises(UserError, match="no such protocol file"):
        load_protocol(str(tmp_path / "none.yaml"))


def test_channel_mean_peak_and_bits(tmp_path):
    stereo = np.array([[0.5, 0.1], [0.3, -0.1], [0.1, 0.3]])
    path = write(tmp_path / "a.wav", stereo)
    (mean,) = prepare_windows(path, AudioSettings(), 16_000)
    np.testing.assert_allclose(mean, [0.3, 0.1, 0.2], atol=1e-6)
    (first,) = prepare_windows(path, AudioSettings(channel="first", remove_mean=True), 16_000)
    np.testing.assert_allclose(first, [0.2, 0.0, -0.2], atol=1e-6)
    (loud,) = prepare_windows(path, AudioSettings(peak_db=-1.0), 16_000)
    assert loud.max() == pytest.approx(10 ** (-1 / 20)) and loud.dtype == np.float32
    (coarse,) = prepare_windows(path, AudioSettings(bits=16), 16_000)
    np.testing.assert_allclose(coarse * 32767, np.trunc(mean * 32767), atol=1e-2)


def test_lengths_and_windows(tmp_path):
    path = write(tmp_path / "a.wav", np.arange(1, 12 * 1000 + 1) / 12_000, 1000)  # 12 s

    def lengths(**settings) -> list[int]:
        return [len(piece) for piece in prepare_windows(path, AudioSettings(**settings), 1000)]

    assert lengths() == [12_000]
    assert lengths(clip_seconds=10.0) == [10_000] and lengths(clip_seconds=15.0) == [15_000]
    assert lengths(min_seconds=14.0) == [14_000] and lengths(min_seconds=2.0) == [12_000]
    assert lengths(window_seconds=10.0) == [10_000, 10_000]
    assert lengths(window_seconds=10.0, pad_window=False) == [10_000, 2000]
    assert lengths(window_seconds=10.0, pad_window=False, min_window_seconds=2.0) == [10_000]
    assert lengths(window_seconds=10.0, hop_seconds=5.0) == [10_000, 10_000]  # from 0 and 5 s
    assert lengths(window_seconds=8.0, hop_seconds=4.0) == [8000, 8000]  # the third would hold nothing new
    second = prepare_windows(path, AudioSettings(window_seconds=10.0, hop_seconds=5.0), 1000)[1]
    assert second[0] == pytest.approx(5001 / 12_000) and second[-1] == 0
    assert [len(piece) for piece in prepare_windows(path, AudioSettings(), 1000, min_samples=13_000)] == [13_000]
    with pytest.raises(UserError, match="shorter than"):
        lengths(window_seconds=20.0, min_window_seconds=13.0)


def test_load_rate_cuts_the_high_frequencies(tmp_path):
    """The paper's CLAP path: 32 kHz on the way to 48 kHz."""
    path = write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 48_000), 48_000)

    def share_above_16_khz(settings: AudioSettings) -> float:
        (waveform,) = prepare_windows(path, settings, 48_000)
        power = np.square(np.abs(rfft(waveform)))
        return power[17_000:].sum() / power.sum()

    assert share_above_16_khz(AudioSettings()) > 0.2
    assert share_above_16_khz(AudioSettings(load_rate=32_000)) < 1e-6


def test_unusable_audio_is_named(tmp_path):
    (tmp_path / "text.wav").write_text("no audio")
    with pytest.raises(UserError, match=r"text\.wav: cannot be read"):
        prepare_windows(tmp_path / "text.wav", AudioSettings(), 16_000)
    with pytest.raises(UserError, match="no finite samples"):
        prepare_windows(write(tmp_path / "nan.wav", np.array([0.1, math.nan])), AudioSettings(), 16_000)
