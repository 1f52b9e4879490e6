from pathlib import Path

import pytest
import torch

from audioldm2_pl.config import load_experiment, to_plain
from audioldm2_pl.describe import build_networks, describe, difference, training_memory
from audioldm2_pl.errors import UserError

EXPERIMENTS = sorted((Path(__file__).parent.parent / "experiments").rglob("*.yaml"))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_shipped_yaml_loads_and_builds(path):
    experiment = load_experiment(path)
    networks = build_networks(experiment)
    assert all(p.device.type == "meta" for network in networks.values() for p in network.parameters())
    assert experiment.description and path.read_text().startswith("# ")
    assert all(training_memory(experiment, stage, networks) > 0 for stage in experiment.stages if stage in networks)


def test_describe_of_the_full_size_names_the_published_numbers():
    text = describe(load_experiment(EXPERIMENTS[0].parent / "base_16k.yaml"))
    assert "346.94 M" in text  # T-UNet
    assert "55.38 M" in text  # VAE
    assert "55.26 M" in text or "55.2" in text  # vocoder
    assert "λ=8: 8 vectors" in text


def test_plain_config_holds_only_plain_values():
    def walk(value):
        if isinstance(value, dict):
            return all(isinstance(k, str) and walk(v) for k, v in value.items())
        if isinstance(value, list):
            return all(map(walk, value))
        return value is None or isinstance(value, (str, int, float, bool))

    assert walk(to_plain(load_experiment(EXPERIMENTS[0].parent / "demo.yaml")))


def test_base_files_are_merged_in_order(tmp_path):
    (tmp_path / "a.yaml").write_text("name: a\nseed: 1\nunet: {sample_size: 256}\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\nname: b\n")
    experiment = load_experiment(tmp_path / "b.yaml", ["data.num_workers=2"])
    assert (experiment.name, experiment.seed, experiment.data.num_workers) == ("b", 1, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nmae: x", "did you mean 'name'"),
        ("training: {vae: {discriminator: {base_chanels: 3}}}", "did you mean 'base_channels'"),
        ("seed: [1]", "seed"),
        ("a: [", "not valid YAML"),
        ("- a", "a mapping"),
        ("base: none.yaml", "no such experiment"),
        ("gpt2: {hidden_size: 10}", "audiomae.embed_dim"),
        ("audio: {clip_seconds: 10.25}", "frames"),
        ("training: {ldm: {loa_dropout: 1.5}}", r"training.ldm.loa_dropout=1.5 .*from 0 to 1"),
        ("conditioners: {t5: {words: [in, on]}}", r"conditioners.t5.words: True is no word.*quotes"),
    ],
)
def test_mistakes_are_plain_errors(tmp_path, content, message):
    path = tmp_path / "x.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        load_experiment(path)
    assert "\n" not in str(error.value)


def test_saved_bytes_counts_activations_on_meta():
    from audioldm2_pl.describe import saved_bytes

    x = torch.empty(4, 8, device="meta", requires_grad=True)
    assert saved_bytes(lambda: (x * x).sum()) == 2 * 4 * 8 * 4


def test_presets_differ_where_paper_and_code_do():
    paper, official = (load_experiment(EXPERIMENTS[0].parent / f"{name}.yaml") for name in ("paper", "official"))
    rows = {line.split()[0]: line.split()[1:] for line in difference("paper", paper, "official", official).splitlines()}
    assert rows.pop("setting") == ["paper", "official"]
    assert rows == {
        "audiomae.loa_layers": ["16", "3"],
        "diffusion.dropout_unit": ["sample", "batch"],
        "diffusion.eta": ["0.0", "1.0"],
        "diffusion.candidates": ["1", "3"],
        "training.ldm.optimizer.warmup_batches": ["10000", "5000"],
        "training.gpt2.optimizer.learning_rate": ["0.0001", "0.0002"],
        "training.gpt2.optimizer.warmup_batches": ["10000", "1000"],
        "training.gpt2.loss_weights.loa": ["1.0", "2.0"],
        "training.gpt2.loss": ["mse", "l1"],
        "training.joint.optimizer.warmup_batches": ["10000", "5000"],
        "training.joint.loss_weights.loa": ["1.0", "2.0"],
        "training.joint.loss": ["mse", "l1"],
        "training.joint.p_gt": ["0.25", "0.0"],
    }
    assert "same settings" in difference("paper", paper, "again", paper)
