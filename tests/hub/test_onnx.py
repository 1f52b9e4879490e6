"""Exported parts beside the networks that they come from, and the sound that onnxruntime makes of them."""

import json
import shutil
import sys

import pytest
import torch

from audioldm2_pl.cli import main
from audioldm2_pl.errors import UserError
from audioldm2_pl.generation import Sampling
from audioldm2_pl.hub.onnx_model import ONNXModel
from audioldm2_pl.hub.onnx_parts import RealISTFT, parts_of
from audioldm2_pl.models.istft import ISTFTConfig, ISTFTVocoder
from audioldm2_pl.pipeline import AudioLDM2


@pytest.fixture(scope="module")
def exported(smoke_run, tmp_path_factory):
    """The smoke model's export."""
    folder = tmp_path_factory.mktemp("onnx") / "export"
    assert main(["export", str(smoke_run.model_folder), str(folder), "--onnx"]) == 0
    return folder


@pytest.fixture(scope="module")
def model(smoke_run):
    return AudioLDM2.from_pretrained(smoke_run.model_folder)


def resized(part, name: str, batch_size: int, more: int) -> torch.Tensor:
    """An input of another batch size, and `more` frames, tokens or vectors than the export saw."""
    example, sizes = part.inputs[name], []
    for axis, size in zip(part.axes[name], part.inputs[name].shape):
        sizes.append(batch_size if axis == "batch" else size + (8 * more if axis == "frames" else more)
                     if isinstance(axis, str) else size)  # fmt: skip
    if name.endswith("mask"):
        mask = torch.ones(sizes, dtype=example.dtype)
        mask[0, 2:] = 0
        return mask
    if example.dtype == torch.int64:
        return torch.randint(4, 90, sizes)
    return torch.randn(sizes)


@pytest.mark.parametrize(("batch_size", "more"), [(1, 0), (2, 5), (3, 1)])
def test_each_part_is_its_network_at_any_size(batch_size, more, exported, model):
    torch.manual_seed(batch_size)
    opened, parts = ONNXModel(exported), parts_of(model)
    assert set(parts) == {
        "conditioner_clap", "conditioner_t5", "gpt2", "unet", "vae_decoder", "vae_encoder", "vocoder", "audiomae",
    }  # fmt: skip
    for name, part in parts.items():
        inputs = {key: resized(part, key, batch_size, more) for key in part.inputs}
        with torch.no_grad():
            wanted = part.network(*inputs.values())
        made = opened.run(name, **inputs)
        assert made.shape == wanted.shape, name
        assert (made - wanted).abs().max() <= 1e-3 * wanted.abs().max(), name


@pytest.mark.parametrize(("prompts", "seconds", "how"), [
    (["a bell rings"], None, {"guidance_scale": 3.0}),
    (["rain", "a low drum, then wind", "a siren"], 1.28, {"guidance_scale": 1.0, "eta": 1.0}),
    (["rain", "wind"], 3.84, {"unconditional": "gpt2", "sampler": "dpm-solver++"}),
])  # fmt: skip
def test_an_export_sounds_as_the_model(prompts, seconds, how, exported, model):
    sampling = Sampling(num_steps=3, window_seconds=10.0, **how)
    wanted = model.generate(prompts, seed=5, seconds=seconds, sampling=sampling)
    made = ONNXModel(exported).generate(prompts, seed=5, seconds=seconds, sampling=sampling)
    assert made.shape == wanted.shape and wanted.abs().max() > 1e-4
    assert (made - wanted).abs().max() <= 1e-3 * wanted.abs().max()


def test_the_manifest_tells_what_another_program_needs(exported, model):
    manifest = json.loads((exported / "onnx.json").read_text())
    assert manifest["parts"]["unet"]["inputs"]["latent"]["shape"] == ["batch", 8, "latent_frames", 8]
    assert manifest["audio"]["sample_rate"] == 16_000 and manifest["scheduler"]["_class_name"] == "DDIMScheduler"
    assert manifest["latent"]["scaling_factor"] == model.vae.config["scaling_factor"]
    assert (exported / "tokenizer_t5" / "tokenizer.json").is_file()


@pytest.mark.parametrize(("num_fft", "hop", "rounds"), [(64, 16, 0), (64, 16, 3), (45, 15, 2)])
def test_the_istft_vocoder_needs_no_complex_numbers(num_fft, hop, rounds):
    torch.manual_seed(0)
    config = ISTFTConfig(hop, num_fft, hidden_size=8, intermediate_size=16, num_layers=1, griffin_lim_rounds=rounds)
    vocoder = ISTFTVocoder(config, num_mel_bins=12).eval()
    log_mel = torch.randn(2, 9, 12)
    with torch.no_grad():
        torch.testing.assert_close(RealISTFT(vocoder)(log_mel), vocoder(log_mel), rtol=1e-3, atol=1e-4)


def test_what_is_wrong_is_one_line(exported, smoke_run, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine").mkdir()
    assert main(["export", str(smoke_run.model_folder), str(tmp_path / "mine"), "--onnx"]) == 2
    assert "is no ONNX export" in capsys.readouterr().err
    broken = shutil.copytree(exported, tmp_path / "broken")
    (broken / "unet.onnx").unlink()
    with pytest.raises(UserError, match="is no whole ONNX export"):
        ONNXModel(broken)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", str(smoke_run.model_folder), str(tmp_path / "new"), "--onnx"]) == 2
    assert "audioldm2-pl[onnx]" in capsys.readouterr().err and not (tmp_path / "new").exists()
