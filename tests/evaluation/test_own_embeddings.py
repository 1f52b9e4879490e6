"""YAMNet from its .npz, and AudioMAE's features from a run's own model folder."""

from pathlib import Path

import numpy as np
import pytest
import torch

from audioldm2_pl.audio import save_waveform
from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.models.audiomae import AudioMAE, AudioMAEConfig
from evaluation.features import prepare_windows
from evaluation.metrics.embeddings import BACKENDS
from evaluation.metrics.embeddings.yamnet import PATCH, PATCH_HOP, YAMNet
from evaluation.metrics.metric import ClipFeatures, Material, Outputs
from evaluation.metrics.nearest_mean import compute_nearest_mean
from evaluation.pairs import Inputs
from evaluation.protocols import AudioSettings
from evaluation.score import ScoreOptions, score_folders


def write_npz(path: Path, **changes: np.ndarray) -> Path:
    """Random weights under the names and in the shapes of the published file."""
    torch.manual_seed(0)
    arrays = {}
    for name, value in YAMNet().state_dict().items():
        first, _, rest = name.partition(".")
        if first == "layers":
            number, _, rest = rest.partition(".")
            rest = f"layer{int(number) + 2}.{rest}"
        elif first == "first":
            rest = f"layer1.conv.{rest}"
        else:
            rest = name
        if value.dim() == 4:
            value = value.permute(1, 2, 3, 0) if "depthwise" in rest else value.permute(0, 2, 3, 1)
        arrays[rest.replace(".weight", ".kernel")] = value.numpy()
    np.savez(path, **(arrays | changes))
    return path


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> tuple[Path, Path, Path]:
    """Folders of generated and real clips, twelve of two classes each, and a CSV of their labels."""
    root, lines = tmp_path_factory.mktemp("sounds"), ["filename,label"]
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(24_000) / 16_000
    for clip in range(12):
        tone = 0.4 * torch.sin(2 * torch.pi * (300 + 40 * clip) * time)
        noise = 0.2 * torch.randn(24_000, generator=generator)
        lines.append(f"{clip}.wav,{'tone' if clip % 2 else 'noise'}")
        for side, level in (("real", 1.0), ("generated", 0.8)):
            save_waveform(root / side / f"{clip}.wav", level * (tone if clip % 2 else noise), 16_000)
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root / "generated", root / "real", root / "labels.csv"


def test_yamnet_gives_a_row_a_frame_and_the_mean_of_their_tags(tmp_path):
    embedder = BACKENDS["yamnet"].load(write_npz(tmp_path / "yamnet.npz"), "cpu")
    assert embedder.encode is not None and embedder.min_samples == PATCH
    for num_samples, num_frames in [(PATCH, 1), (PATCH + PATCH_HOP - 1, 1), (PATCH + PATCH_HOP, 2), (80_000, 9)]:
        embeddings, logits = embedder.encode(torch.randn(2, num_samples))
        assert embeddings.shape == (2, num_frames, 1024) and logits is not None and logits.shape == (2, 521)


def test_yamnet_gives_what_tensorflow_gives(real_data):
    """The mean embedding and the likeliest tags of real clips, by another program's forward pass."""
    folder = real_data / "eval_models/yamnet"
    if not folder.is_dir():
        pytest.skip("no YAMNet in AUDIOLDM2_TEST_DATA")
    embedder = BACKENDS["yamnet"].load(folder / "yamnet_fused_f32.npz", "cpu")
    expected = np.load(folder / "expected_20_clips.npz", allow_pickle=False)
    assert embedder.encode is not None
    for clip, embedding, tags in list(zip(expected["clip"], expected["float_embedding"], expected["float_forward"]))[
        ::4
    ]:
        path = next((real_data / "esc10/audio").rglob(f"{Path(str(clip)).stem}.*"))
        (waveform,) = prepare_windows(path, AudioSettings(), embedder.sample_rate, embedder.min_samples)
        with torch.inference_mode():
            embeddings, logits = embedder.encode(torch.from_numpy(waveform)[None])
        found = embeddings[0].mean(0).numpy()
        cosine = (found @ embedding) / np.linalg.norm(found) / np.linalg.norm(embedding)
        assert cosine > 0.995, clip  # resamplers differ
        assert logits is not None and tags.argmax() in logits[0].topk(3).indices, clip  # those are means of scores


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no zip", "not an .npz of arrays"), (b"PK\x03\x04 cut", "not an .npz of arrays")],
)
def test_a_damaged_npz_gets_a_line(tmp_path, content, message):
    path = tmp_path / "yamnet.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        BACKENDS["yamnet"].load(path, "cpu")


def test_another_network_and_pickles_are_refused(tmp_path):
    with pytest.raises(UserError, match="not the weights of YAMNet"):
        BACKENDS["yamnet"].load(write_npz(tmp_path / "a.npz", **{"dense.bias": np.zeros(7, np.float32)}), "cpu")
    with pytest.raises(UserError, match=r"not an \.npz of arrays"):
        objects = np.array([{"a": 1}], dtype=object)
        BACKENDS["yamnet"].load(write_npz(tmp_path / "b.npz", **{"dense.bias": objects}), "cpu")


@pytest.fixture(scope="module")
def audiomae_folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    config = AudioMAEConfig(
        num_frames=64, embed_dim=32, depth=2, num_heads=2, decoder_dim=16, decoder_depth=1, decoder_heads=2
    )
    ModelFolder(path).save("audiomae", AudioMAE(config))
    return path


def test_audiomae_reads_pieces_of_its_own_length(audiomae_folder):
    embedder = BACKENDS["audiomae"].load(audiomae_folder / "audiomae", "cpu")
    assert embedder.encode is not None and {Path(name).name for name in embedder.weights} == {
        "config.json", "model.safetensors"
    }  # fmt: skip
    waveform = torch.randn(3, 25_000)  # 64 frames are 10,240 samples
    embeddings, logits = embedder.encode(waveform)
    assert embeddings.shape == (3, 3, 32) and logits is None
    torch.testing.assert_close(embedder.encode(waveform[1:2, :10_240])[0], embeddings[1:2, :1])
    with pytest.raises(UserError, match="has to be called audiomae"):
        BACKENDS["audiomae"].load(audiomae_folder, "cpu")


def test_the_protocols_score_folders(sounds, audiomae_folder, tmp_path):
    generated, real, labels = sounds
    write_npz(tmp_path / "yamnet_fused_f32.npz")
    inputs = Inputs(generated, real, None, labels)
    for protocol, weights, names in [
        ("audiomae", audiomae_folder, {"fd_audiomae", "kad_audiomae"}),
        ("yamnet", tmp_path, {"fd", "kad", "kad_as_kadtk", "kl", "is"}),
        ("yamnet-classes", tmp_path, {"accuracy", "kl"}),
    ]:
        result, _ = score_folders(inputs, protocol, ScoreOptions(weights=weights, resamples=20, num_workers=1))
        assert set(result["scores"]) == names
        assert all(np.isfinite(score["value"]) for score in result["scores"].values())


def test_the_nearest_class_mean():
    """By cosine, of clips with one label: level does not count, and a clip with two labels has no score."""
    rng = np.random.default_rng(0)
    centres = {"a": np.array([1.0, 0.0, 0.0]), "b": np.array([0.0, 2.0, 0.0]), "c": np.array([0.0, 0.0, 5.0])}
    labels = [["a"], ["b"], ["c"], ["a"], ["b"], ["a", "b"]]
    real = np.stack([centres[names[0]] + 0.1 * rng.standard_normal(3) for names in labels])
    heard = ["a", "b", "c", "a", "c", "a"]  # the fifth clip sounds like another label
    made = np.stack([7.0 * centres[name] + 0.1 * rng.standard_normal(3) for name in heard])
    one = np.ones(6, dtype=int)
    names = [f"{clip}.wav" for clip in range(6)]
    sides = Outputs(ClipFeatures(made, one)), Outputs(ClipFeatures(real, one))
    measured = compute_nearest_mean(Material(names, *sides, labels=labels), None)
    assert measured.samples["values"].tolist() == [1, 1, 1, 1, 0]
    assert measured.per_clip is not None and np.isnan(measured.per_clip[5])
    assert measured.details["predictions"]["4.wav"] == "c" and "5.wav" not in measured.details["predictions"]
    with pytest.raises(UserError, match="two labels or more"):
        compute_nearest_mean(Material(names, *sides, labels=[["a"]] * 6), None)


def test_the_nearest_class_mean_asks_for_real_clips(sounds, tmp_path):
    generated, _, labels = sounds
    write_npz(tmp_path / "yamnet_fused_f32.npz")
    protocol = tmp_path / "mine.yaml"
    protocol.write_text(
        "mine:\n  models: {y: {backend: yamnet, weights: yamnet_fused_f32.npz}}\n"
        "  scores: {accuracy: {kind: nearest_mean_accuracy, model: y}}\n"
    )
    options = ScoreOptions(weights=tmp_path, resamples=20, num_workers=1)
    with pytest.raises(UserError, match="needs real clips; add --reference"):
        score_folders(Inputs(generated, None, None, labels), str(protocol), options)
