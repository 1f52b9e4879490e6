"""int8 layers beside those that they replace."""

import io

import pytest
import torch
from torch import nn

from audioldm2_pl.acceleration import language_networks, quantize, quantize_network
from audioldm2_pl.cli import main
from audioldm2_pl.errors import UserError
from audioldm2_pl.pipeline import AudioLDM2
from audioldm2_pl.provenance import read_provenance

PROMPTS = ["a bell rings", "a low drum, then wind"]


@pytest.fixture
def model(smoke_run):
    return AudioLDM2.from_pretrained(smoke_run.model_folder)


def test_int8_language_is_near(smoke_run, model):
    exact = AudioLDM2.from_pretrained(smoke_run.model_folder)
    quantize(model)
    linear = [m for network in language_networks(model) for m in network.modules() if isinstance(m, nn.Linear)]
    assert not linear and len(language_networks(model)) == 3
    with torch.inference_mode():
        conditions, wanted = (m.encode_conditions(PROMPTS) for m in (model, exact))
        pairs = [(conditions[name].embedding, wanted[name].embedding) for name in wanted]
        pairs.append((model.generate_loa(conditions), exact.generate_loa(wanted)))
    for made, true in pairs:
        assert torch.cosine_similarity(made, true, dim=-1).min() > 0.99 and not torch.equal(made, true)
    assert model.generate(PROMPTS, num_steps=2, seed=1).abs().max() > 0


def test_int8_layers_take_a_quarter_of_the_memory():
    def size(network: nn.Module) -> int:
        file = io.BytesIO()
        torch.save(network.state_dict(), file)
        return file.tell()

    network = nn.Sequential(nn.Linear(512, 1024), nn.GELU(), nn.Linear(1024, 512))
    before, x = size(network), torch.randn(3, 512)
    wanted = network(x)
    quantize_network(network)
    assert size(network) < 0.4 * before
    assert torch.cosine_similarity(network(x), wanted).min() > 0.999


def test_an_int8_sound_is_made_again(smoke_run, tmp_path, capsys):
    command = ["generate", str(smoke_run.model_folder), "a bell", "--steps", "2", "--output", str(tmp_path)]
    assert main([*command, "--int8", "--device", "cpu"]) == 0
    path, again = tmp_path / "0001_a_bell.wav", tmp_path / "again.wav"
    assert main(["show", str(path), "--again", str(again), "--device", "cpu"]) == 0
    assert "the same samples" in capsys.readouterr().out
    assert main(["show", str(path)]) == 0 and "int8  True" in capsys.readouterr().out
    opened = read_provenance(path).opened.open(smoke_run.model_folder, "cpu")
    assert not any(isinstance(m, nn.Linear) for network in language_networks(opened) for m in network.modules())


def test_what_int8_cannot_do_is_one_line(smoke_run, model, monkeypatch, capsys):
    assert main(["generate", str(smoke_run.model_folder), "a bell", "--int8", "--precision", "bf16"]) == 2
    assert "--int8 and --precision" in capsys.readouterr().err
    model.loa_generator.gpt2.transformer.h[0].attn.c_attn.lora_A = nn.ModuleDict()
    with pytest.raises(UserError, match="an adapter changes GPT-2's weights"):
        quantize(model)
    del model.loa_generator.gpt2.transformer.h[0].attn.c_attn.lora_A
    model.device = torch.device("meta")
    with pytest.raises(UserError, match="for CPUs"):
        quantize(model)
    monkeypatch.delattr("torch.ao.quantization.quantize_dynamic")
    with pytest.raises(UserError, match="no dynamic quantisation"):
        quantize_network(nn.Sequential(nn.Linear(2, 2)))
