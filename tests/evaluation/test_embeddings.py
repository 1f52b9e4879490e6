"""Random weights in the checkpoints' true layout drive the libraries' own models."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audioldm2_pl.audio import AudioConfig
from audioldm2_pl.conditioners.tokenizers import build_roberta_tokenizer
from audioldm2_pl.errors import UserError
from evaluation.checkpoints import CheckpointSource, SkipInit, find_checkpoint, read_state
from evaluation.features import encode_files
from evaluation.metrics.clap import cosines
from evaluation.metrics.embeddings import BACKENDS, Backend, Embedder
from evaluation.metrics.embeddings.laion_clap import build_module, numpy_seed, roberta
from evaluation.metrics.embeddings.vggish import EXAMPLE_SAMPLES, VGGish, mel_filters
from evaluation.pairs import Inputs, pair_up
from evaluation.protocols import Protocol, load_protocol
from evaluation.score import ScoreOptions, score_folders
from evaluation.sound_classifier import SoundClassifier, SoundClassifierConfig

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
    eval_library("laion_clap")
    return write_clap(folder / CLAP_FILE, fusion=False)


def write_clap(path: Path, fusion: bool) -> Path:
    """LAION's layout: a training checkpoint whose names begin with "module.", numpy numbers beside; one text layer."""
    tokenizer = build_roberta_tokenizer(77)
    tokenizer.save_pretrained(path.parent / "roberta-base")
    text_encoder = roberta(len(tokenizer), num_layers=1)
    module = build_module(tokenizer, text_encoder, enable_fusion=fusion, device="cpu", amodel="HTSAT-tiny")
    state = {f"module.{key}": value for key, value in module.model.state_dict().items()}
    state["module.text_branch.embeddings.position_ids"] = torch.arange(514)[None]
    torch.save({"epoch": 15, "best_acc": np.float64(0.9), "state_dict": state}, path)
    return path


@pytest.fixture(scope="module")
def clap(clap_file) -> Embedder:
    return BACKENDS["clap"].load(clap_file, "cpu")


def test_vggish_loads_torchvggish_names(folder):
    with SkipInit():
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
    backend = BACKENDS["vggish"].load(folder / "vggish-10086976.pth", "cpu")
    waveform = torch.randn(2, 32_000)
    with torch.no_grad():
        embedding, logits = backend.encode(waveform)
        alone = model(waveform[1:, 96 * 160 : 96 * 160 + EXAMPLE_SAMPLES])
    assert embedding.shape == (2, 2, 128) and logits is None
    torch.testing.assert_close(embedding[1:, 1:], alone)  # examples lie side by side, without overlap
    digest = hashlib.sha256((folder / "vggish-10086976.pth").read_bytes()).hexdigest()
    assert backend.weights == {"vggish-10086976.pth": digest}


def test_vggish_log_mel_equals_kaldis_triangles():
    kaldi = pytest.importorskip("torchaudio.compliance.kaldi")
    filters, _ = kaldi.get_mel_banks(64, 512, 16_000, 125.0, 7500.0, 100.0, -500.0, 1.0)
    waveform = torch.randn(1, EXAMPLE_SAMPLES)
    frame = waveform[0, 160:560] * torch.hann_window(400, periodic=True)
    expected = (torch.fft.rfft(frame, 512).abs()[:256] @ filters.T + 0.01).log()
    with torch.device("meta"):
        model = VGGish()  # no weights: only the spectrogram is computed
    model.window, model.filters = torch.hann_window(400), mel_filters()
    log_mel = model.log_mel(waveform)
    assert log_mel.shape == (1, 96, 64)
    torch.testing.assert_close(log_mel[0, 1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["Cnn14_16k_mAP=0.438.pth", "Cnn14_mAP=0.431.pth"])
def test_panns_equals_the_librarys(name, folder, eval_library):
    pann = eval_library("frechet_audio_distance.models.pann")
    rate, network = (16_000, pann.Cnn14_16k) if "16k" in name else (32_000, pann.Cnn14)
    with SkipInit():
        model = network(rate, rate * 32 // 1000, rate // 100, mel_bins=64, fmin=50, fmax=rate // 2, classes_num=527)
    state = random_state(model.eval())
    model.load_state_dict(state)
    torch.save({"model": state}, folder / name)
    waveform = 0.1 * torch.randn(2, rate)
    with torch.no_grad():
        expected = model(waveform)
        for backend in ("panns", "frechet_audio_distance"):
            embedder = BACKENDS[backend].load(folder / name, "cpu")
            embedding, logits = embedder.encode(waveform)
            assert embedder.sample_rate == rate and embedding.shape == (2, 1, 2048)
            torch.testing.assert_close(embedding[:, 0], expected["embedding"], atol=1e-3, rtol=1e-4)
            torch.testing.assert_close(logits.sigmoid(), expected["clipwise_output"], atol=1e-4, rtol=1e-4)


def test_passt_gives_embedding_and_logits(folder, eval_library):
    passt = eval_library("hear21passt.models.passt")
    net = passt.PaSST(stride=10, img_size=(128, 998), depth=1, distilled=True).eval()
    torch.save(net.state_dict(), folder / PASST_FILE)
    backend = BACKENDS["passt"].load(folder / PASST_FILE, "cpu")
    waveform = 0.1 * torch.randn(1, 320_000)
    with torch.no_grad():
        embedding, logits = backend.encode(waveform)
        short, _ = backend.encode(waveform[:, : backend.min_samples])
    assert logits is not None and embedding.shape == (1, 1, 768) and logits.shape == (1, 527)
    assert short.shape == (1, 1, 768)
    torch.testing.assert_close(net.head(embedding[:, 0]), logits)


def test_encodec_gives_latents_before_quantisation(folder):
    import transformers

    config = transformers.EncodecConfig(num_filters=2, hidden_size=16, codebook_dim=16, num_lstm_layers=1)
    model = transformers.EncodecModel(config).eval()
    model.save_pretrained(folder / "encodec_24khz")
    backend = BACKENDS["encodec"].load(folder / "encodec_24khz", "cpu")
    assert backend.sample_rate == 24_000 and set(backend.weights) == {
        "encodec_24khz/config.json",
        "encodec_24khz/model.safetensors",
    }
    waveform = torch.randn(2, 24_000)
    with torch.no_grad():
        embedding, _ = backend.encode(waveform)
        torch.testing.assert_close(embedding, model.encoder(waveform[:, None]).transpose(1, 2))
    assert embedding.shape == (2, 75, 16)


def test_classifier_gives_embeddings_and_logits(folder):
    config = SoundClassifierConfig(AudioConfig(), classes=["bell", "rain"], channels=[4, 4], embedding_size=8)
    classifier = SoundClassifier(config).eval()
    classifier.save(folder / "report")
    backend = BACKENDS["classifier"].load(folder / "report", "cpu")
    waveform = torch.randn(3, 16_000)
    with torch.no_grad():
        embedding, logits = backend.encode(waveform)
        torch.testing.assert_close(embedding[:, 0], classifier.embedding(waveform))
        torch.testing.assert_close(logits, classifier.logits(waveform))
    assert backend.sample_rate == 16_000


def test_clap_pairs_clips_and_captions(clap, clap_file, real_data, tmp_path, monkeypatch):
    """Four real clips of unlike lengths and their captions: every embedding is that of its own clip and caption."""
    assert set(clap.weights) == {CLAP_FILE, "roberta-base/tokenizer.json"}
    captions = real_data / "clap_pairs" / "text_matching.csv"
    pairs = pair_up(Inputs(real_data / "clap_pairs" / "audio", captions=captions), Protocol())
    assert [(path.stem, text) for path, (text,) in zip(pairs.generated, pairs.captions)] == [
        ("applause", "a small group of people clapping in a small room"),
        ("dog", "a medium-sized dog howling and barking"),
        ("train", "a fast electric train passing by"),
        ("water-stream", "a small water stream flowing"),
    ]
    settings = load_protocol("audioldm2-paper").models["clap"]
    found = encode_files(pairs.generated, settings, clap).embeddings
    assert found.rows.shape == (4, 512) and found.counts.tolist() == [1, 1, 1, 1]
    alone = encode_files(pairs.generated[2:3], settings, clap).embeddings
    np.testing.assert_allclose(alone.rows[0], found.rows[2], atol=1e-5)
    assert clap.encode_text
    with torch.no_grad():
        texts = clap.encode_text([text for (text,) in pairs.captions]).numpy()
        np.testing.assert_allclose(clap.encode_text([pairs.captions[1][0]]).numpy()[0], texts[1], atol=1e-5)
    assert len(np.unique(texts.round(5), axis=0)) == 4
    (tmp_path / "mine.yaml").write_text(
        f"mine:\n  models: {{clap: {{backend: clap, weights: {CLAP_FILE}}}}}\n"
        "  scores: {clap: {kind: clap, model: clap}, fad: {kind: frechet, model: clap}}\n"
    )
    two_each = tmp_path / "captions.csv"
    two_each.write_text(captions.read_text() + "\n" + "dog.wav,a small water stream flowing\n")
    monkeypatch.setitem(BACKENDS, "clap", Backend(lambda path, device: clap, BACKENDS["clap"].gives))
    folder, options = real_data / "clap_pairs" / "audio", ScoreOptions(clap_file.parent, resamples=4)
    result, _ = score_folders(Inputs(folder, folder, two_each), str(tmp_path / "mine.yaml"), options)
    values = cosines(found.rows, texts)
    values[1] = (values[1] + cosines(found.rows[1:2], texts[3:])[0]) / 2
    scored = result["scores"]["clap"]["per_clip"]
    assert list(scored) == ["applause", "dog", "train", "water-stream"]
    np.testing.assert_allclose(list(scored.values()), values, atol=1e-4)
    assert result["scores"]["fad"]["value"] == pytest.approx(0.0, abs=1e-9)
    assert set(result["weights"]["clap"]) == set(clap.weights)


@torch.no_grad()
def test_two_prompts_rate_clips_as_pam_does(clap, clap_file, tmp_path):
    """A window of 7 s and a rest of 2 s: the mean of their softmax over the prompts' cosines times CLAP's scale."""
    waveform = 0.1 * np.random.default_rng(0).normal(size=9 * 48_000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", waveform, 48_000, subtype="FLOAT")
    result, _ = score_folders(Inputs(tmp_path), "pam-laion", ScoreOptions(clap_file.parent, resamples=0))
    score = result["scores"]["pam_laion"]
    assert clap.encode and clap.encode_text and clap.logit_scale
    with torch.inference_mode():
        texts = clap.encode_text(score["prompts"])
        windows = [torch.from_numpy(part)[None] for part in np.split(waveform, [7 * 48_000])]
        chances = [(clap.logit_scale * clap.encode(w)[0][0] @ texts.T).softmax(1)[0, 0] for w in windows]
    assert score["value"] == pytest.approx(float(sum(chances) / 2), abs=1e-5)
    assert 0 < score["value"] < 1 and score["prompts"][0] == "the sound is clear and clean."


def test_clap_cuts_long_clips_alike_every_time(clap):
    waveform = 0.1 * torch.randn(2, 500_000, generator=torch.Generator().manual_seed(0))
    first, _ = clap.encode(waveform)
    again, _ = clap.encode(waveform[1:])
    torch.testing.assert_close(first[1:], again, rtol=0, atol=1e-6)


@torch.no_grad()
def test_clap_with_fusion_reads_all_of_a_long_clip_alike_every_time(clap_file):
    """The checkpoint of `stable-audio`: three cuts, and the whole clip shrunk to the length of one."""
    file = write_clap(clap_file.parent / "630k-audioset-fusion-best.pt", fusion=True)
    with pytest.raises(UserError, match="backend: laion_clap"):
        BACKENDS["clap"].load(file, "cpu")
    clap = BACKENDS["laion_clap"].load(file, "cpu")
    waveform = 0.1 * torch.randn(2, 960_000, generator=torch.Generator().manual_seed(0))
    first, _ = clap.encode(waveform)
    again, _ = clap.encode(waveform[1:])
    torch.testing.assert_close(first[1:], again, rtol=0, atol=1e-6)
    for second in (0, 10, 19):
        changed = waveform[:1].clone()
        changed[:, second * 48_000 : (second + 1) * 48_000] = 0
        assert (clap.encode(changed)[0] - first[:1]).abs().max() > 1e-5, second


def test_clap_refuses_a_tokenizer_that_does_not_fit(clap_file, tmp_path):
    """Without a network transformers makes up a RoBERTa tokenizer of five tokens; scores of it would mean nothing."""
    import transformers

    (tmp_path / CLAP_FILE).symlink_to(clap_file)
    with pytest.raises(UserError, match=r"roberta-base: not there; put tokenizer\.json"):
        BACKENDS["clap"].load(tmp_path / CLAP_FILE, "cpu")
    transformers.RobertaTokenizer().save_pretrained(tmp_path / "roberta-base")
    with pytest.raises(UserError, match=r"\d tokens, but"):
        BACKENDS["clap"].load(tmp_path / CLAP_FILE, "cpu")


@torch.no_grad()
def test_clap_equals_laions_own(clap, clap_file):
    """Embeddings of short, of long and of whole clips, and of captions, as the package laion_clap computes them."""
    theirs = BACKENDS["laion_clap"].load(clap_file, "cpu")
    assert theirs.weights == clap.weights
    draw = torch.Generator().manual_seed(0)
    for num_samples in (100_000, 480_000, 500_000):
        waveform = 0.1 * torch.randn(2, num_samples, generator=draw)
        torch.testing.assert_close(clap.encode(waveform)[0], theirs.encode(waveform)[0], atol=1e-4, rtol=1e-4)
    texts = ["a dog barks", "rain " * 40]
    torch.testing.assert_close(clap.encode_text(texts), theirs.encode_text(texts), atol=1e-4, rtol=1e-4)


def test_missing_weights_are_named_with_their_origin(tmp_path):
    with pytest.raises(UserError, match=r"vggish-10086976.pth: not there; put https://.*vggish-10086976.pth there, or"):
        BACKENDS["vggish"].fetch(tmp_path, "vggish-10086976.pth")
    with pytest.raises(UserError, match=r"model\.safetensors of facebook/encodec_24khz"):
        BACKENDS["encodec"].fetch(tmp_path, "encodec_24khz")
    with pytest.raises(UserError, match=r"put the checkpoint there$"):
        BACKENDS["vggish"].fetch(tmp_path, "mine.pt", download=True)
    with pytest.raises(UserError, match="no sound classifier here"):
        BACKENDS["classifier"].load(tmp_path, "cpu")
    for name in ("audioldm2-paper", "audiogen", "stable-audio", "clean", "embeddings"):
        protocol = load_protocol(name)
        assert all(model.weights in protocol.backend(key).sources for key, model in protocol.models.items())


def test_download_puts_a_file_where_it_is_looked_for(tmp_path):
    (tmp_path / "there.pt").write_bytes(b"weights")
    there, gone = (CheckpointSource((tmp_path / name).as_uri()) for name in ("there.pt", "gone.pt"))
    assert find_checkpoint(tmp_path / "weights", "mine.pt", there, download=True).read_bytes() == b"weights"
    with pytest.raises(UserError, match="cannot be downloaded"):
        find_checkpoint(tmp_path / "weights", "gone.pt", gone, download=True)


class Trap:
    def __reduce__(self):
        return (Path.touch, (Path("trapped"),))


def test_checkpoints_run_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(UserError, match="opening it would run code"):
        read_state(tmp_path / "trap.pt", "weight")
    assert not (tmp_path / "trapped").exists()
    torch.save({"model": {"bn0.weight": torch.ones(64)}}, tmp_path / "Cnn14_mAP=0.431.pth")
    (tmp_path / "Cnn14_mAP=0.431.pth").rename(tmp_path / "vggish-10086976.pth")
    with pytest.raises(UserError, match="not the weights of VGGish"):
        BACKENDS["vggish"].load(tmp_path / "vggish-10086976.pth", "cpu")


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
    expected = BACKENDS["vggish"].load(path, "cpu").encode(waveform)[0]
    torch.save(wrap(state), path)
    torch.testing.assert_close(BACKENDS["vggish"].load(path, "cpu").encode(waveform)[0], expected)


@pytest.mark.parametrize("backend", ["vggish", "panns", "passt", "clap"])
@pytest.mark.parametrize(
    ("content", "said"), [(b"", "empty, a download"), (b"<html>" * 99, "not a checkpoint|not weights alone")]
)
def test_files_that_are_no_weights(content, said, backend, tmp_path, eval_library):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        BACKENDS[backend].load(path, "cpu")
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
