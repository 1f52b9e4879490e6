"""T-UNet against diffusers' class with the same weights, and its own properties."""

import json
from dataclasses import replace

import diffusers
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from audioldm2_pl.conditioners.condition import Condition
from audioldm2_pl.describe import saved_bytes
from audioldm2_pl.errors import UserError
from audioldm2_pl.models import unet as presets
from audioldm2_pl.models.unet import WIDTHS, TUNet, TUNetConfig
from audioldm2_pl.models.unet_hub import SELF, from_hub_config, to_hub_config
from audioldm2_pl.models.unet_layers import FeedForward, convolve, norm_silu

LATENT = dict(in_channels=4, out_channels=4, sample_size=8, norm_num_groups=4)
DIMS = {"loa": 20, "t5": 12, "clap": 10}
SMALL = {
    "base": TUNetConfig(
        block_out_channels=[16, 24, 32],
        attention_levels=[1, 2],
        num_heads=[2, 3, 4],
        **LATENT,
    ),
    "large": TUNetConfig(
        block_out_channels=[16, 24],
        attention_levels=[0, 1],
        num_heads=[8, 8],
        layout=[SELF, "loa", "t5", SELF],
        transformer_layers_per_block=2,
        layers_per_block=1,
        **LATENT,
    ),
    "speech": TUNetConfig(
        block_out_channels=[16, 16, 24, 32],
        attention_levels=[1, 2, 3],
        num_heads=[1, 2, 2, 4],
        conditions=["loa"],
        **LATENT,
    ),
    "audioldm1": TUNetConfig(
        block_out_channels=[16, 24, 32],
        attention_levels=[1, 2],
        num_heads=[2, 3, 4],
        conditions=[],
        film="clap",
        **LATENT,
    ),
}
FULL = {
    "base": (presets.base, 346.94),
    "large": (presets.large, 718.01),
    "speech": (presets.speech, 261.93),
    "audioldm1": (presets.audioldm1, 185.04),
}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def randomised(net: nn.Module) -> nn.Module:
    """Draws every weight, so that the layers which start at zero have something to do."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in net.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=generator)
        elif "norm" not in name:
            nn.init.normal_(parameter, std=0.2, generator=generator)
    return net.eval()


def inputs(config: TUNetConfig, size: tuple[int, int] = (16, 8), seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    widths = [DIMS[name] for name in config.conditions]
    film = torch.randn(2, DIMS[config.film], generator=generator) if config.film else None
    masks = [torch.ones(2, 5), torch.tensor([[1, 1, 0], [1, 0, 0]]), torch.ones(2, 1)]
    return dict(
        latent=torch.randn(2, config.in_channels, *size, generator=generator),
        timestep=torch.tensor([3, 981]),
        conditions=[
            Condition(torch.randn(*mask.shape, width, generator=generator), mask) for width, mask in zip(widths, masks)
        ],
        film=film,
    )


def stock(config: TUNetConfig, widths: dict[str, int] = DIMS) -> nn.Module:
    hub = to_hub_config(config, widths)
    return getattr(diffusers, hub["_class_name"]).from_config(hub).eval()


def stock_output(net: nn.Module, given: dict, masked: bool = True) -> Tensor:
    conditions = given["conditions"]
    arguments: dict = dict(encoder_hidden_states=None, class_labels=given["film"])
    for condition, suffix in zip(conditions, ("", "_1")):
        arguments["encoder_hidden_states" + suffix] = condition.embedding
        if masked:
            arguments["encoder_attention_mask" + suffix] = condition.mask
    with torch.no_grad():
        return net(given["latent"], given["timestep"], **arguments).sample


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("size", [(16, 8), (19, 7)])
def test_equals_diffusers(name, masked, size):
    config = SMALL[name]
    ours, theirs = randomised(TUNet(config, DIMS)), stock(config)
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    given = inputs(config, size)
    expected = stock_output(theirs, given, masked)
    if not masked:
        given["conditions"] = [Condition(c.embedding, None) for c in given["conditions"]]
    with torch.no_grad():
        result = ours(**given)
    assert result.shape == expected.shape == given["latent"].shape
    assert expected.std() > 0.1
    print(f"{name} {size} masked={masked}: {(result - expected).abs().max():.1e}")
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FULL)
def test_full_size(name):
    preset, millions = FULL[name]
    with torch.device("meta"):
        ours, theirs = TUNet(preset()), stock(preset(), WIDTHS)
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    assert shapes == {key: value.shape for key, value in theirs.state_dict().items()}
    assert round(sum(p.numel() for p in ours.parameters()) / 1e6, 2) == millions


def test_fresh_net_predicts_zero():
    assert not TUNet(SMALL["base"], DIMS)(**inputs(SMALL["base"])).any()


@pytest.mark.parametrize("name", ["base", "large"])
def test_cache_changes_nothing(name):
    net, given = randomised(TUNet(SMALL[name], DIMS)), inputs(SMALL[name])
    with torch.no_grad():
        expected = net(**given)
        cache = net.precompute(given.pop("conditions"))
        for _ in range(2):
            assert torch.equal(net(**given, kv_cache=cache), expected)


def test_checkpointing_keeps_gradients():
    given = inputs(SMALL["large"])
    gradients = []
    for options in ({}, {"gradient_checkpointing": True}, {"gradient_checkpointing": True, "checkpointed_levels": [1]}):
        config = replace(SMALL["large"], **options)
        net = randomised(TUNet(config, DIMS))
        net(**given).square().mean().backward()
        gradients.append({name: p.grad for name, p in net.named_parameters()})
    assert all(gradient is not None for gradient in gradients[0].values())
    for others in gradients[1:]:
        torch.testing.assert_close(others, gradients[0], rtol=0, atol=1e-6)


def test_levels_are_checkpointed_by_choice():
    config = replace(SMALL["large"], gradient_checkpointing=True)
    kept = []
    for levels in (None, [0], [1]):
        net, given = TUNet(replace(config, checkpointed_levels=levels), DIMS), inputs(config)
        kept.append(saved_bytes(lambda net=net, given=given: net(**given)))
    assert kept[0] < min(kept[1:])
    with pytest.raises(UserError, match=r"unet.checkpointed_levels: level 3 has no transformers; .*=\[0, 1\]"):
        replace(config, checkpointed_levels=[3])


def test_a_condition_without_padding_is_read_without_a_mask():
    net, given = randomised(TUNet(SMALL["base"], DIMS)), inputs(SMALL["base"])
    full = [Condition.of(condition.embedding) for condition in given["conditions"]]
    masked = [Condition(condition.embedding, condition.mask) for condition in full]
    with torch.no_grad():
        assert all(cache[0] is None or cache[0][2] is None for cache in net.precompute(full))
        torch.testing.assert_close(
            net(**{**given, "conditions": full}), net(**{**given, "conditions": masked}), rtol=0, atol=1e-5
        )
    assert full[0][:1].is_full and full[0].repeat(2).is_full and Condition.cat(full[:1] * 2).is_full
    assert not Condition.cat([full[0], full[0][:1], masked[0]]).is_full
    longer = Condition.of(torch.randn(1, full[0].embedding.shape[1] + 1, full[0].embedding.shape[2]))
    assert not Condition.cat([full[0], longer]).is_full


def test_masked_positions_do_not_matter():
    net, given = randomised(TUNet(SMALL["base"], DIMS)), inputs(SMALL["base"])
    with torch.no_grad():
        expected = net(**given)
        text = given["conditions"][1]
        text.embedding = torch.where(text.mask[..., None] == 1, text.embedding, 100.0)
        assert torch.equal(net(**given), expected)
        text.embedding = text.embedding + 1
        assert not torch.allclose(net(**given), expected)


def test_empty_mask_is_read_whole():
    net, given = randomised(TUNet(SMALL["base"], DIMS)), inputs(SMALL["base"])
    with torch.no_grad():
        given["conditions"][1].mask = torch.ones(2, 3)
        expected = net(**given)
        given["conditions"][1].mask = torch.zeros(2, 3)
        assert torch.equal(net(**given), expected)


def test_scalar_timestep_and_channels_last():
    net, given = randomised(TUNet(SMALL["base"], DIMS)), inputs(SMALL["base"])
    with torch.no_grad():
        given["timestep"] = torch.tensor([40, 40])
        expected = net(**given)
        for timestep in (40, 40.0, torch.tensor(40)):
            torch.testing.assert_close(net(**{**given, "timestep": timestep}), expected)
        net.to(memory_format=torch.channels_last)
        torch.testing.assert_close(net(**given), expected, rtol=0, atol=1e-5)


def read_back(config: TUNetConfig, widths: dict[str, int], **other) -> tuple[TUNetConfig, dict[str, int]]:
    fields, found = from_hub_config({**json.loads(json.dumps(to_hub_config(config, widths))), **other}, {})
    return TUNetConfig(**fields), found


@pytest.mark.parametrize("config", [*SMALL.values(), *(preset() for preset, _ in FULL.values())])
def test_hub_config_round_trip(config):
    read = {*config.conditions, *filter(None, [config.film])}
    assert read_back(config, WIDTHS) == (config, {name: WIDTHS[name] for name in read})


def test_published_hub_configs():
    config, _ = read_back(presets.base(), WIDTHS, attention_head_dim=8)
    assert config == replace(presets.base(), num_heads=[8, 8, 8, 8])
    assert to_hub_config(presets.audioldm1(), WIDTHS)["cross_attention_dim"] == [128, 256, 384, 640]
    config, _ = read_back(presets.audioldm1(), WIDTHS, _class_name="UNet2DConditionModel")
    assert config == presets.audioldm1()
    with pytest.raises(UserError, match="use_linear_projection"):
        read_back(presets.audioldm1(), WIDTHS, use_linear_projection=True)


@pytest.mark.parametrize(
    "named",
    [
        {"conditions": ["t5"]},
        {"conditions": ["clap"]},
        {"conditions": ["loa", "t5", "clap"]},
        {"conditions": ["clap", "loa"], "layout": [SELF, "loa", "clap", "loa"], "film": "clap"},
    ],
)
def test_any_list_of_conditions_is_saved_and_opened(named, tmp_path):
    config = replace(SMALL["base"], **named)
    net, given = randomised(TUNet(config, DIMS)), inputs(config)
    net.save_pretrained(tmp_path)
    opened = TUNet.from_pretrained(tmp_path)
    assert opened.config == config and opened.condition_widths == net.condition_widths
    with torch.no_grad():
        expected = net(**given)
        assert torch.equal(opened(**given), expected)
        for condition in given["conditions"]:
            condition.embedding += 1.0
            assert not torch.allclose(opened(**given), expected)
            condition.embedding -= 1.0


@pytest.mark.parametrize("name", SMALL)
def test_folder_opens_here_and_in_diffusers(name, tmp_path):
    config = SMALL[name]
    net, given = randomised(TUNet(config, DIMS)), inputs(config)
    net.to(memory_format=torch.channels_last)
    net.save_pretrained(tmp_path / "unet")
    opened = TUNet.from_pretrained(tmp_path / "unet")
    assert opened.config == config
    classes = [diffusers.AudioLDM2UNet2DConditionModel]
    if config.film:
        classes.append(diffusers.UNet2DConditionModel)
    with torch.no_grad():
        expected = opened(**given)
        torch.testing.assert_close(net(**given), expected, rtol=0, atol=1e-5)
    for stock_class in classes:
        theirs = stock_class.from_pretrained(tmp_path / "unet").eval()
        torch.testing.assert_close(stock_output(theirs, given), expected, rtol=0, atol=1e-5)
        theirs.save_pretrained(tmp_path / "stock")
        again = TUNet.from_pretrained(tmp_path / "stock")
        assert again.config == config
        with torch.no_grad():
            assert torch.equal(again(**given), expected)


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        TUNet.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_heads": [1, 2]},
        {"num_heads": [3, 8, 12, 20]},
        {"attention_levels": [4]},
        {"conditions": ["loa", "loa"]},
        {"layout": ["self", "loa"]},
        {"layout": ["self", "loa", "t5", "clap"]},
        {"conditions": [], "layout": []},
    ],
)
def test_wrong_config(wrong):
    with pytest.raises(UserError, match=r"^unet\."):
        TUNetConfig(**wrong)


def test_wrong_inputs():
    net, given = TUNet(SMALL["base"], DIMS), inputs(SMALL["base"])
    with pytest.raises(ValueError, match="2 conditions, got 1"):
        net(**{**given, "conditions": given["conditions"][:1]})
    with pytest.raises(ValueError, match="film"):
        net(**{**given, "film": torch.zeros(2, 10)})


def test_config_is_structured():
    merged = OmegaConf.merge(
        OmegaConf.structured(TUNetConfig),
        {
            "block_out_channels": [48, 96, 144],
            "num_heads": [2, 3, 6],
            "attention_levels": [1, 2],
            "conditions": ["loa", "clap"],
            "norm_num_groups": 16,
        },
    )
    config = OmegaConf.to_object(merged)
    assert isinstance(config, TUNetConfig)
    assert config.transformers == [SELF, "loa", "clap"]
    TUNet(config, DIMS)


def test_conditions_join_select_and_repeat():
    short = Condition(torch.ones(1, 2, 3), torch.ones(1, 2, dtype=torch.bool))
    long = Condition(torch.full((2, 4, 3), 2.0), torch.ones(2, 4, dtype=torch.bool))
    both = Condition.cat([short.expand(2), long])
    assert both.embedding.shape == (4, 4, 3) and len(both) == 4
    assert both.mask.dtype == torch.bool
    assert both.mask.sum(1).tolist() == [2, 2, 4, 4]
    assert not both.embedding[0, 2:].any()
    assert len(both[1]) == 1 and len(both[1:3]) == 2
    assert both[torch.tensor([2, 0])].mask.sum(1).tolist() == [4, 2]
    assert both[[1, 2]].repeat(2).mask.sum(1).tolist() == [2, 2, 4, 4]
    half = both.to("cpu", torch.float16)
    assert half.embedding.dtype == torch.float16 and half.mask.dtype == torch.bool


def test_other_heads_are_those_of_a_net_built_with_them():
    config = SMALL["base"]
    net = randomised(TUNet(config, DIMS))
    other = TUNet(replace(config, num_heads=[1, 1, 2]), DIMS).eval()
    other.load_state_dict(net.state_dict())
    given = inputs(config)
    with torch.no_grad():
        before = net(**given)
        net.set_heads([1, 1, 2])
        assert torch.equal(net(**given), other(**given)) and not torch.allclose(before, net(**given), atol=1e-4)
    assert to_hub_config(net.config, DIMS)["attention_head_dim"] == [1, 1, 2]
    with pytest.raises(UserError, match="heads"):
        net.set_heads([5, 5, 5])
    assert presets.official_heads(presets.base()) == [4, 8, 12, 20]


def test_lean_layers_equal_plain_ones():
    """What forgets activations and computes them anew has the plain layers' values and gradients."""
    torch.manual_seed(0)
    x = torch.randn(2, 16, 5, 2, dtype=torch.float64, requires_grad=True)
    norm, conv = nn.GroupNorm(4, 16).double(), nn.Conv2d(16, 8, 3, padding=1).double()
    nn.init.normal_(norm.weight)
    inputs = (x, *norm.parameters(), *conv.parameters())
    lean = convolve(conv, norm_silu(norm, x))
    plain = conv(F.silu(norm(x)))
    assert_same_gradients(lean, plain, inputs)

    tokens = torch.randn(2, 7, 16, dtype=torch.float64, requires_grad=True)
    feed_forward = FeedForward(16).double()
    value, gate = feed_forward.net[0].proj(tokens).chunk(2, -1)
    plain = feed_forward.net[2](value * F.gelu(gate))
    assert_same_gradients(feed_forward(tokens), plain, (tokens, *feed_forward.parameters()))


def assert_same_gradients(ours: Tensor, expected: Tensor, inputs: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(ours, expected)
    weights = torch.randn_like(expected)
    for grad, other in zip(torch.autograd.grad(ours, inputs, weights), torch.autograd.grad(expected, inputs, weights)):
        torch.testing.assert_close(grad, other)


def test_autocast_and_compiled_graphs_train():
    """Few layers, for compiling them is slow; every kind of layer is among them."""
    config = replace(
        SMALL["base"], block_out_channels=[16, 24], attention_levels=[1], num_heads=[2, 3], layers_per_block=1
    )
    net, given = randomised(TUNet(config, DIMS)), inputs(config)
    expected = net(**given)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = net(**given)
    mixed.float().square().mean().backward()
    assert torch.nn.functional.cosine_similarity(mixed.float().flatten(), expected.flatten(), dim=0) > 0.99
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    compiled = torch.compile(net, backend="aot_eager")
    torch.testing.assert_close(compiled(**given), expected, rtol=0, atol=1e-5)
