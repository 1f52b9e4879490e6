"""Random weights in the checkpoints' true layout drive the libraries' own models."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audioldm2_pl.audio import AudioConfig
from audioldm2_pl.conditioners.tokenizers import build_roberta_tokenizer
from audioldm2_pl.errors import UserError
from evaluation.clap import cosines
from evaluation.embeddings import (
    BACKENDS,
    SOURCES,
    Backend,
    Source,
    find_weights,
    numpy_seed,
    read_weights,
    without_hub,
    without_init,
)
from evaluation.hearing import listen, pair_up
from evaluation.judge import Judge, JudgeConfig
from evaluation.protocols import Protocol, load_protocol
from evaluation.score import ScoreOptions, score_folders
from evaluation.vggish import EXAMPLE_SAMPLES, VGGish, mel_filters

CLAP_FILE = "music_speech_audioset_epoch_15_esc_89.98.pt"
PASST_FILE = "passt-s-f128-p16-s10-ap.476-swa.pt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    return tmp_path_factory.mktemp("weights")


def random_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights of the model's shapes: biases and scales all at random, matrices one random row repeated, so that a
    checkpoint of 300 MB takes up a few kilobytes."""
    state = {}
    for key, value in model.state_dict().items():
        state[key] = value
        if key.endswith(("weight", "bias")) and "extractor" not in key:
            rows = value if value.dim() < 2 else value[:1]
            state[key] = (0.1 * torch.randn(rows.shape)).expand(value.shape)
    return state


@pytest.fixture(scope="module")
def clap_file(folder, eval_library) -> Path:
    return write_clap(folder / CLAP_FILE, eval_library("laion_clap"), fusion=False)


def write_clap(path: Path, laion_clap: Any, fusion: bool) -> Path:
    """LAION's layout: a training checkpoint whose names begin with "module.", numpy numbers beside; one text layer."""
    import transformers

    tokenizer = build_roberta_tokenizer(77)
    tokenizer.save_pretrained(path.parent / "roberta-base")
    config = transformers.RobertaConfig(
        vocab_size=len(tokenizer), num_hidden_layers=1, max_position_embeddings=514, type_vocab_size=1
    )
    with without_hub(tokenizer, transformers.RobertaModel(config)):
        module = laion_clap.CLAP_Module(enable_fusion=fusion, device="cpu", amodel="HTSAT-tiny")
    state = {f"module.{key}": value for key, value in module.model.state_dict().items()}
    state["module.text_branch.embeddings.position_ids"] = torch.arange(514)[None]
    torch.save({"epoch": 15, "best_acc": np.float64(0.9), "state_dict": state}, path)
    return path


@pytest.fixture(scope="module")
def clap(clap_file) -> Backend:
    return BACKENDS["clap"](clap_file, "cpu")


def test_vggish_loads_torchvggish_names(folder):
    with without_init():
        model = VGGish().eval()
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert list(shapes) == [
        f"{part}.{n}.{kind}"
        for part, numbers in (("features", (0, 3, 6, 8, 11, 13)), ("embeddings", (0, 2, 4)))
        for n in numbers
        for kind in ("weight", "bias")
    ]
    assert shapes["features.13.weight"] == (512, 512, 3, 3) and shapes["embeddings.0.weight"] == (4096, 12288)
    state = random_state(model)
    model.load_state_dict(state)
    torch.save(state, folder / "vggish-10086976.pth")
    backend = BACKENDS["vggish"](folder / "vggish-10086976.pth", "cpu")
    waveform = torch.randn(2, 32_000)
    with torch.no_grad():
        heard, logits = backend.hear(waveform)
        alone = model(waveform[1:, 96 * 160 : 96 * 160 + EXAMPLE_SAMPLES])
    assert heard.shape == (2, 2, 128) and logits is None
    torch.testing.assert_close(heard[1:, 1:], alone)  # examples lie side by side, without overlap
    digest = hashlib.sha256((folder / "vggish-10086976.pth").read_bytes()).hexdigest()
    assert backend.weights == {"vggish-10086976.pth": digest}


def test_vggish_log_mel_equals_kaldis_triangles():
    kaldi = pytest.importorskip("torchaudio.compliance.kaldi")
    filters, _ = kaldi.get_mel_banks(64, 512, 16_000, 125.0, 7500.0, 100.0, -500.0, 1.0)
    waveform = torch.randn(1, EXAMPLE_SAMPLES)
    frame = waveform[0, 160:560] * torch.hann_window(400, periodic=True)
    expected = (torch.fft.rfft(frame, 512).abs()[:256] @ filters.T + 0.01).log()
    with torch.device("meta"):
        model = VGGish()  # no weights: only the spectrogram is heard
    model.window, model.filters = torch.hann_window(400), mel_filters()
    log_mel = model.log_mel(waveform)
    assert log_mel.shape == (1, 96, 64)
    torch.testing.assert_close(log_mel[0, 1], expected, rtol=1e-4, atol=1e-4)


def test_panns_posteriors_are_the_librarys(folder, eval_library):
    pann = eval_library("frechet_audio_distance.models.pann")
    with without_init():
        model = pann.Cnn14_16k(16_000, 512, 160, mel_bins=64, fmin=50, fmax=8000, classes_num=527).eval()
    state = random_state(model)
    model.load_state_dict(state)
    torch.save({"model": state}, folder / "Cnn14_16k_mAP=0.438.pth")
    backend = BACKENDS["panns"](folder / "Cnn14_16k_mAP=0.438.pth", "cpu")
    waveform = 0.1 * torch.randn(2, 16_000)
    with torch.no_grad():
        heard, logits = backend.hear(waveform)
        expected = model(waveform)
    assert logits is not None and heard.shape == (2, 1, 2048)
    torch.testing.assert_close(heard[:, 0], expected["embedding"])
    torch.testing.assert_close(logits.sigmoid(), expected["clipwise_output"])


def test_passt_gives_embedding_and_logits(folder, eval_library):
    passt = eval_library("hear21passt.models.passt")
    net = passt.PaSST(stride=10, img_size=(128, 998), depth=1, distilled=True).eval()
    torch.save(net.state_dict(), folder / PASST_FILE)
    backend = BACKENDS["passt"](folder / PASST_FILE, "cpu")
    waveform = 0.1 * torch.randn(1, 320_000)
    with torch.no_grad():
        heard, logits = backend.hear(waveform)
        short, _ = backend.hear(waveform[:, : backend.min_samples])
    assert logits is not None and heard.shape == (1, 1, 768) and logits.shape == (1, 527)
    assert short.shape == (1, 1, 768)
    torch.testing.assert_close(net.head(heard[:, 0]), logits)


def test_encodec_gives_latents_before_quantisation(folder):
    import transformers

    config = transformers.EncodecConfig(num_filters=2, hidden_size=16, codebook_dim=16, num_lstm_layers=1)
    model = transformers.EncodecModel(config).eval()
    model.save_pretrained(folder / "encodec_24khz")
    backend = BACKENDS["encodec"](folder / "encodec_24khz", "cpu")
    assert backend.sample_rate == 24_000 and set(backend.weights) == {
        "encodec_24khz/config.json",
        "encodec_24khz/model.safetensors",
    }
    waveform = torch.randn(2, 24_000)
    with torch.no_grad():
        heard, _ = backend.hear(waveform)
        torch.testing.assert_close(heard, model.encoder(waveform[:, None]).transpose(1, 2))
    assert heard.shape == (2, 75, 16)


def test_judge_is_a_tagger_too(folder):
    config = JudgeConfig(AudioConfig(), classes=["bell", "rain"], channels=[4, 4], embedding_size=8)
    judge = Judge(config).eval()
    judge.save(folder / "report")
    backend = BACKENDS["judge"](folder / "report", "cpu")
    waveform = torch.randn(3, 16_000)
    with torch.no_grad():
        heard, logits = backend.hear(waveform)
        torch.testing.assert_close(heard[:, 0], judge.embedding(waveform))
        torch.testing.assert_close(logits, judge.logits(waveform))
    assert backend.sample_rate == 16_000


def test_clap_pairs_clips_and_captions(clap, clap_file, real_data, tmp_path, monkeypatch):
    """Four real clips of unlike lengths and their captions: every embedding is that of its own clip and caption."""
    assert set(clap.weights) == {CLAP_FILE, "roberta-base/tokenizer.json"}
    captions = real_data / "clap_pairs" / "text_matching.csv"
    pairs = pair_up(real_data / "clap_pairs" / "audio", None, captions, Protocol())
    assert [(path.stem, text) for path, (text,) in zip(pairs.generated, pairs.captions)] == [
        ("applause", "a small group of people clapping in a small room"),
        ("dog", "a medium-sized dog howling and barking"),
        ("train", "a fast electric train passing by"),
        ("water-stream", "a small water stream flowing"),
    ]
    settings = load_protocol("audioldm2-paper").models["clap"]
    heard = listen(pairs.generated, settings, clap).embeddings
    assert heard.rows.shape == (4, 512) and heard.counts.tolist() == [1, 1, 1, 1]
    alone = listen(pairs.generated[2:3], settings, clap).embeddings
    np.testing.assert_allclose(alone.rows[0], heard.rows[2], atol=1e-5)
    assert clap.embed_text
    with torch.no_grad():
        texts = clap.embed_text([text for (text,) in pairs.captions]).numpy()
        np.testing.assert_allclose(clap.embed_text([pairs.captions[1][0]]).numpy()[0], texts[1], atol=1e-5)
    assert len(np.unique(texts.round(5), axis=0)) == 4
    (tmp_path / "mine.yaml").write_text(
        f"mine:\n  models: {{clap: {{backend: clap, weights: {CLAP_FILE}}}}}\n"
        "  scores: {clap: {kind: clap, model: clap}, fad: {kind: frechet, model: clap}}\n"
    )
    two_each = tmp_path / "captions.csv"
    two_each.write_text(captions.read_text() + "\n" + "dog.wav,a small water stream flowing\n")
    monkeypatch.setitem(BACKENDS, "clap", lambda path, device: clap)
    folder, options = real_data / "clap_pairs" / "audio", ScoreOptions(clap_file.parent, resamples=4)
    result, _ = score_folders(folder, folder, two_each, str(tmp_path / "mine.yaml"), options)
    values = cosines(heard.rows, texts)
    values[1] = (values[1] + cosines(heard.rows[1:2], texts[3:])[0]) / 2
    scored = result["scores"]["clap"]["per_clip"]
    assert list(scored) == ["applause", "dog", "train", "water-stream"]
    np.testing.assert_allclose(list(scored.values()), values, atol=1e-4)
    assert result["scores"]["fad"]["value"] == pytest.approx(0.0, abs=1e-9)
    assert set(result["weights"]["clap"]) == set(clap.weights)


@torch.no_grad()
def test_clap_cuts_long_clips_alike_every_time(clap):
    waveform = 0.1 * torch.randn(2, 500_000, generator=torch.Generator().manual_seed(0))
    first, _ = clap.hear(waveform)
    again, _ = clap.hear(waveform[1:])
    torch.testing.assert_close(first[1:], again, rtol=0, atol=1e-6)


@torch.no_grad()
def test_clap_with_fusion_hears_all_of_a_long_clip_alike_every_time(clap_file, eval_library):
    """The checkpoint of `stable-audio`: three cuts, and the whole clip shrunk to the length of one."""
    file = write_clap(clap_file.parent / "630k-audioset-fusion-best.pt", eval_library("laion_clap"), fusion=True)
    clap = BACKENDS["clap"](file, "cpu")
    waveform = 0.1 * torch.randn(2, 960_000, generator=torch.Generator().manual_seed(0))
    first, _ = clap.hear(waveform)
    again, _ = clap.hear(waveform[1:])
    torch.testing.assert_close(first[1:], again, rtol=0, atol=1e-6)
    for second in (0, 10, 19):
        changed = waveform[:1].clone()
        changed[:, second * 48_000 : (second + 1) * 48_000] = 0
        assert (clap.hear(changed)[0] - first[:1]).abs().max() > 1e-5, second


def test_clap_refuses_a_tokenizer_that_does_not_fit(clap_file, tmp_path):
    """Without a network transformers makes up a RoBERTa tokenizer of five tokens; scores of it would mean nothing."""
    import transformers

    (tmp_path / CLAP_FILE).symlink_to(clap_file)
    with pytest.raises(UserError, match=r"roberta-base: not there; put tokenizer\.json"):
        BACKENDS["clap"](tmp_path / CLAP_FILE, "cpu")
    transformers.RobertaTokenizer().save_pretrained(tmp_path / "roberta-base")
    with pytest.raises(UserError, match=r"\d tokens, but"):
        BACKENDS["clap"](tmp_path / CLAP_FILE, "cpu")


def test_missing_weights_are_named_with_their_origin(tmp_path):
    with pytest.raises(UserError, match=r"vggish-10086976.pth: not there; put https://.*vggish-10086976.pth there, or"):
        find_weights(tmp_path, "vggish-10086976.pth")
    with pytest.raises(UserError, match=r"model\.safetensors of facebook/encodec_24khz"):
        find_weights(tmp_path, "encodec_24khz")
    with pytest.raises(UserError, match=r"put the checkpoint there$"):
        find_weights(tmp_path, "mine.pt", download=True)
    with pytest.raises(UserError, match="no judge here"):
        BACKENDS["judge"](tmp_path, "cpu")
    for protocol in ("audioldm2-paper", "audiogen", "stable-audio", "clean", "embeddings"):
        assert all(model.weights in SOURCES for model in load_protocol(protocol).models.values())


def test_download_puts_a_file_where_it_is_looked_for(tmp_path, monkeypatch):
    (tmp_path / "there.pt").write_bytes(b"weights")
    monkeypatch.setitem(SOURCES, "mine.pt", Source((tmp_path / "there.pt").as_uri()))
    assert find_weights(tmp_path / "weights", "mine.pt", download=True).read_bytes() == b"weights"
    monkeypatch.setitem(SOURCES, "gone.pt", Source((tmp_path / "gone.pt").as_uri()))
    with pytest.raises(UserError, match="cannot be downloaded"):
        find_weights(tmp_path / "weights", "gone.pt", download=True)


class Trap:
    def __reduce__(self):
        return (Path.touch, (Path("trapped"),))


def test_checkpoints_run_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(UserError, match="opening it would run code"):
        read_weights(tmp_path / "trap.pt", "weight")
    assert not (tmp_path / "trapped").exists()
    torch.save({"model": {"bn0.weight": torch.ones(64)}}, tmp_path / "Cnn14_mAP=0.431.pth")
    (tmp_path / "Cnn14_mAP=0.431.pth").rename(tmp_path / "vggish-10086976.pth")
    with pytest.raises(UserError, match="not the weights of VGGish"):
        BACKENDS["vggish"](tmp_path / "vggish-10086976.pth", "cpu")


@pytest.mark.parametrize("wrap", [
    lambda state: {"state_dict": state, "epoch": 3},
    lambda state: {f"module.{name}": value for name, value in state.items()},
    lambda state: {"model": {f"net.module.{name}": value for name, value in state.items()}},
])  # fmt: skip
def test_weights_in_known_wrappers(wrap, tmp_path):
    state = random_state(VGGish())
    path = tmp_path / "vggish-10086976.pth"
    waveform = torch.randn(1, 16_000)
    torch.save(state, path)
    expected = BACKENDS["vggish"](path, "cpu").hear(waveform)[0]
    torch.save(wrap(state), path)
    torch.testing.assert_close(BACKENDS["vggish"](path, "cpu").hear(waveform)[0], expected)


@pytest.mark.parametrize("backend", ["vggish", "panns", "passt", "clap"])
@pytest.mark.parametrize(
    ("content", "said"), [(b"", "empty, a download"), (b"<html>" * 99, "not a checkpoint|not weights alone")]
)
def test_files_that_are_no_weights(content, said, backend, tmp_path, eval_library):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        BACKENDS[backend](path, "cpu")
    assert "\n" not in str(error.value)


def test_numpy_seed_leaves_no_trace():
    np.random.seed(3)
    expected = np.random.rand(2)
    np.random.seed(3)
    first = np.random.rand()
    with numpy_seed(0):
        inside = np.random.rand()
    assert [first, np.random.rand()] == expected.tolist()
    with numpy_seed(0):
        assert np.random.rand() == inside
