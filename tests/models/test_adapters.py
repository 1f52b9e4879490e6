"""Adapters: what peft opens too, how strengths add, and what is refused."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AudioLDM2UNet2DConditionModel
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from audioldm2_pl.conditioners.condition import Condition
from audioldm2_pl.errors import UserError
from audioldm2_pl.models.adapters import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    AdapterConfig,
    load_adapter,
    new_adapter,
    parse_adapters,
    save_adapter,
)
from audioldm2_pl.models.gpt2 import LOAGenerator, LOAGPT2Config, build_gpt2
from audioldm2_pl.models.projection import ConditionProjection
from audioldm2_pl.models.unet import TUNet, TUNetConfig

LATENT = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
CONDITIONS = [Condition.of(torch.randn(2, 5, 12)), Condition.of(torch.randn(2, 3, 20))]
BOTH = AdapterConfig(rank=2, alpha=3.0, targets=["attention", "feed_forward"])


def filled(network: nn.Module) -> nn.Module:
    """The same random weights in every call, none of them zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return network.eval().requires_grad_(False)


def make_unet() -> TUNet:
    config = TUNetConfig(
        sample_size=8, block_out_channels=[8, 16], attention_levels=[1], num_heads=[1, 2], layers_per_block=1,
        norm_num_groups=4,
    )  # fmt: skip
    return filled(TUNet(config, {"loa": 12, "t5": 20}))  # type: ignore[return-value]


def make_generator() -> LOAGenerator:
    gpt2 = build_gpt2(LOAGPT2Config(hidden_size=16, num_layers=2, num_heads=2, num_positions=32, dropout=0.0), 4)
    return filled(LOAGenerator(gpt2, ConditionProjection({"clap": 12, "t5": 20}, 16)))  # type: ignore[return-value]


def make_adapter(folder: Path, network: nn.Module, name: str = "unet", config: AdapterConfig = BOTH, seed: int = 2):
    """An adapter of random weights in the folder, which is returned."""
    new_adapter(network, name, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2, generator=generator)
    folder.mkdir(parents=True)
    save_adapter(network, folder, "base", "digest")
    return folder


def predict(unet: nn.Module) -> torch.Tensor:
    return unet(LATENT, 500, CONDITIONS)


@pytest.mark.parametrize("dora", [False, True])
def test_peft_opens_what_is_saved(dora, tmp_path):
    trained = make_unet()
    folder = make_adapter(tmp_path / "unet", trained, config=AdapterConfig(rank=2, alpha=3.0, dora=dora))
    assert {path.name for path in folder.iterdir()} == {WEIGHTS_NAME, CONFIG_NAME}
    assert all("lora" in name for name in load_file(folder / WEIGHTS_NAME))
    assert json.loads((folder / CONFIG_NAME).read_text())["base_model_name_or_path"] == "base"
    ours = make_unet()
    load_adapter([ours], {}, tmp_path, 1.0)
    theirs = PeftModel.from_pretrained(make_unet(), folder)
    assert torch.equal(predict(ours), predict(theirs)) and torch.equal(predict(ours), predict(trained.eval()))
    assert (predict(ours) - predict(make_unet())).abs().max() > 0.01


@pytest.mark.parametrize("dora", [False, True])
def test_gpt2_reads_its_adapter_with_and_without_cache(dora, tmp_path):
    config = replace(BOTH, dora=dora)
    folder = make_adapter(tmp_path / "language_model", make_generator().gpt2, "gpt2", config)
    generator, base = make_generator(), make_generator()
    load_adapter([make_unet(), generator.gpt2], {}, folder, 1.0)
    loa = generator.generate(CONDITIONS)
    with torch.no_grad():
        torch.testing.assert_close(generator.generate(CONDITIONS), generator.generate(CONDITIONS, use_cache=False))
    assert (loa - base.generate(CONDITIONS)).abs().max() > 0.01
    theirs = make_generator()
    PeftModel.from_pretrained(theirs.gpt2, folder)
    torch.testing.assert_close(theirs.generate(CONDITIONS), loa)


def test_strength_0_is_the_base_bit_for_bit(tmp_path):
    unet, loaded = make_unet(), {}
    load_adapter([unet], loaded, make_adapter(tmp_path / "a", make_unet()), 0.0)
    assert torch.equal(predict(unet), predict(make_unet()))
    load_adapter([unet], loaded, tmp_path / "a", 2.0)
    assert loaded == {str(tmp_path / "a"): 2.0} and not torch.equal(predict(unet), predict(make_unet()))
    load_adapter([unet], loaded, tmp_path / "a", 0.0)
    assert torch.equal(predict(unet), predict(make_unet()))


def test_changes_of_two_adapters_add(tmp_path):
    a = make_adapter(tmp_path / "a", make_unet(), seed=3)
    b = make_adapter(tmp_path / "b", make_unet(), config=AdapterConfig(rank=4), seed=4)
    x, name = torch.randn(5, 16), "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"

    def change(strengths: dict[Path, float]) -> torch.Tensor:
        """What the adapters add to the layer's output."""
        unet, loaded = make_unet(), {}
        base = unet.get_submodule(name)(x)
        for path, strength in strengths.items():
            load_adapter([unet], loaded, path, strength)
        return unet.get_submodule(name)(x) - base

    alone_a, alone_b = change({a: 1.0}), change({b: 1.0})
    assert alone_a.abs().max() > 0.01 and alone_b.abs().max() > 0.01
    torch.testing.assert_close(change({a: 0.5, b: 3.0}), 0.5 * alone_a + 3.0 * alone_b, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(change({a: 0.0, b: 1.0}), alone_b)
    weights = load_file(a / WEIGHTS_NAME)
    down, up = (weights[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    torch.testing.assert_close(alone_a, x @ down.T @ up.T * 3.0 / 2, atol=1e-5, rtol=1e-4)  # alpha / rank


def test_stock_diffusers_gives_the_same(tmp_path):
    """Also where the T-UNet runs a layer by a function of its own: the feed-forward's last."""
    folder = make_adapter(tmp_path / "adapter", make_unet())
    weights = load_file(folder / WEIGHTS_NAME)
    ours = make_unet()
    ours.save_pretrained(tmp_path / "unet")
    stock = AudioLDM2UNet2DConditionModel.from_pretrained(tmp_path / "unet").eval()
    theirs = PeftModel.from_pretrained(stock, folder)
    load_adapter([ours], {}, folder, 1.0)
    with torch.no_grad():
        expected = theirs(
            LATENT, 500, encoder_hidden_states=CONDITIONS[0].embedding, encoder_hidden_states_1=CONDITIONS[1].embedding
        ).sample
    torch.testing.assert_close(predict(ours), expected, atol=1e-5, rtol=1e-4)
    last = {name: tensor for name, tensor in weights.items() if ".ff.net.2." in name}
    assert 0 < len(last) < len(weights)
    save_file(last, folder / WEIGHTS_NAME)
    unet = make_unet()
    load_adapter([unet], {}, folder, 1.0)
    assert (predict(unet) - predict(make_unet())).abs().max() > 1e-3


def test_kv_cache_and_heads_go_with_an_adapter(tmp_path):
    unet = make_unet()
    load_adapter([unet], {}, make_adapter(tmp_path / "a", make_unet()), 1.0)
    torch.testing.assert_close(unet(LATENT, 500, kv_cache=unet.precompute(CONDITIONS)), predict(unet))
    before = predict(unet)
    unet.set_heads([1, 4])
    assert not torch.equal(predict(unet), before)


def test_the_adapter_takes_the_networks_precision(tmp_path):
    unet = make_unet().to(torch.bfloat16)
    load_adapter([unet], {}, make_adapter(tmp_path / "a", make_unet()), 1.0)
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in unet.parameters())


def test_gradients_over_a_frozen_base_are_the_full_ones():
    """Custom backward functions leave out what a frozen base does not need, and nothing else."""

    def gradients(freeze: bool) -> dict[str, torch.Tensor | None]:
        torch.manual_seed(0)
        unet = make_unet()
        new_adapter(unet, "unet", BOTH)
        with torch.no_grad():
            for name, parameter in unet.named_parameters():
                if "lora_B" in name:
                    parameter.normal_()
        if not freeze:
            unet.requires_grad_(True)
        predict(unet).square().mean().backward()
        return {name: parameter.grad for name, parameter in unet.named_parameters()}

    frozen, full = gradients(True), gradients(False)
    lora = [name for name in full if "lora_" in name]
    assert all(frozen[name] is None for name in full if name not in lora)
    for name in lora:
        torch.testing.assert_close(frozen[name], full[name])


def test_rank_stabilised_adapters_are_scaled_by_the_root(tmp_path):
    folder = make_adapter(tmp_path / "a", make_unet())
    config = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps(config | {"use_rslora": True}))
    ours = make_unet()
    load_adapter([ours], {}, folder, 1.0)
    torch.testing.assert_close(predict(ours), predict(PeftModel.from_pretrained(make_unet(), folder)))


@pytest.mark.parametrize(
    ("word", "path", "strength"),
    [("a", "a", 1.0), ("a:0.8", "a", 0.8), ("a:b:2", "a:b", 2.0), ("a:b", "a:b", 1.0), ("3", "3", 1.0)],
)
def test_the_strength_stands_behind_a_colon(word, path, strength):
    assert parse_adapters([word]) == {path: strength}


def refusal(path: Path, strength: float = 1.0) -> str:
    """The one line with which a UNet refuses an adapter, of which nothing stays in it."""
    unet, loaded = make_unet(), {}
    with pytest.raises(UserError) as error:
        load_adapter([unet], loaded, path, strength)
    assert not loaded and torch.equal(predict(unet), predict(make_unet()))
    assert "\n" not in str(error.value) and str(path).removesuffix(WEIGHTS_NAME) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"megatron_core": "os"}, "megatron_core"),
        ({"rank_pattern": {"(a+)+$": 4}}, "rank_pattern"),
        ({"layer_replication": [[0, 10_000]]}, "layer_replication"),
        ({"something_new": 1}, "something_new"),
        ({"bias": "all"}, "bias"),
        ({"peft_type": "IA3"}, "not LORA"),
        ({"r": 10**9}, "rank"),
        ({"r": "2"}, "rank"),
        ({"lora_alpha": float("nan")}, "alpha"),
        ({"r": 3}, "ask for"),
        ({"use_dora": True}, "lora_magnitude_vector"),
    ],
)
def test_a_foreign_config_is_refused(change, message, tmp_path):
    folder = make_adapter(tmp_path / "a", make_unet())
    config = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps(config | change))
    assert message in refusal(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {k.replace("to_q", "to_p"): v for k, v in w.items()}, "no linear layer"),
        (lambda w: {k.replace("to_q", "to_q.base_layer"): v for k, v in w.items()}, "no linear layer"),
        (lambda w: {k: v[:, :1] if "lora_A" in k else v for k, v in w.items()}, "ask for"),
        (lambda w: {k: v for k, v in w.items() if "lora_A" in k}, "ask for"),
        (lambda w: {k: v * float("nan") for k, v in w.items()}, "no finite weight"),
        (lambda w: {k: v.int() for k, v in w.items()}, "no finite weight"),
        (lambda w: {**w, "conv_in.weight": torch.zeros(1)}, "'conv_in.weight'"),
        (lambda w: {}, "no weights"),
    ],
)
def test_foreign_weights_are_refused(change, message, tmp_path):
    folder = make_adapter(tmp_path / "a", make_unet())
    weights = change(load_file(folder / WEIGHTS_NAME))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS_NAME)
    assert message in refusal(folder)


def test_damaged_and_missing_files_are_refused(tmp_path):
    folder = make_adapter(tmp_path / "a", make_unet())
    for strength in (-1.0, 10.5, float("nan")):
        assert "from 0 to 10" in refusal(folder, strength)
    (folder / CONFIG_NAME).write_text("[" * 100_000)
    assert CONFIG_NAME in refusal(folder)
    (folder / CONFIG_NAME).unlink()
    assert CONFIG_NAME in refusal(folder)
    assert CONFIG_NAME in refusal(folder / WEIGHTS_NAME)
    (folder / WEIGHTS_NAME).write_bytes(pickle.dumps({"a": 1}))
    assert "cannot be read" in refusal(folder)
    (folder / WEIGHTS_NAME).rename(folder / "adapter_model.bin")
    assert "no adapter" in refusal(folder)
    assert "no adapter" in refusal(folder / "adapter_model.bin")
    assert "no adapter" in refusal(tmp_path / "nowhere")


def test_an_adapter_of_a_network_that_is_not_there_is_refused(tmp_path):
    make_adapter(tmp_path / "a/language_model", make_generator().gpt2, "gpt2")
    assert "no linear layer" in refusal(tmp_path / "a")
