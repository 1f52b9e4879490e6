"""LoRA adapters: low-rank changes of the attention, and of the feed-forward layers, of T-UNet and GPT-2.

peft makes, stores and runs them. An adapter is a folder that `PeftModel.from_pretrained` opens for one network,
adapter_model.safetensors beside adapter_config.json; the adapter of a model holds such folders under the names of the
model folder's parts, unet/ and language_model/.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from audioldm2_pl.errors import UserError, reason_of
from audioldm2_pl.fields import bounded, check_fields

WEIGHTS_NAME, CONFIG_NAME = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."  # of the names in peft's files
PARTS = {"unet": "unet", "gpt2": "language_model"}  # network -> its sub-folder in a model folder
LAYERS = {  # network -> kind -> the ends of its layers' names
    "unet": {
        "attention": ("to_q", "to_k", "to_v", "to_out.0"),
        "feed_forward": ("ff.net.0.proj", "ff.net.2"),
    },
    "gpt2": {"attention": ("attn.c_attn", "attn.c_proj"), "feed_forward": ("mlp.c_fc", "mlp.c_proj")},
}
MAX_STRENGTH = 10.0
READ = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora")  # keys of adapter_config.json that decide the result
NOTES = (  # keys that have no effect on weights that are there
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "init_lora_weights", "lora_dropout", "peft_version", "revision", "target_modules", "task_type",
)  # fmt: skip


@dataclass
class AdapterConfig:
    """LoRA (Hu et al. 2021, arXiv:2106.09685): base weights stay as they are, a low-rank change of each is trained."""

    rank: int = bounded(16, ge=1, le=1_024)  # of each change; at most the network's narrowest width
    alpha: float | None = bounded(None, gt=0, le=10_000)  # changes are multiplied by alpha / rank; null is the rank
    dropout: float = bounded(0.0, ge=0, lt=1)  # on what the changes read, in training
    targets: list[Literal["attention", "feed_forward"]] = bounded(lambda: ["attention"], min_length=1)  # layers
    networks: list[Literal["unet", "gpt2"]] = bounded(lambda: ["unet", "gpt2"], min_length=1)  # of the stage's
    dora: bool = False  # DoRA (Liu et al. 2024, arXiv:2402.09353): learn the weights' norms apart; slower


@dataclass
class Adapter:
    """One network's adapter out of its file; weights by layer and name: lora_A (r, in), lora_B (out, r)."""

    path: Path
    config: AdapterConfig
    layers: dict[str, dict[str, Tensor]]


def import_peft() -> Any:
    """Raises UserError where peft is not installed."""
    try:
        import peft
    except ImportError as error:
        raise UserError(f"adapters need peft ({error}); install the extra audioldm2-pl[adapters]") from None
    return peft


def inject(network: nn.Module, config: AdapterConfig, layers: Iterable[str], name: str, trains: bool) -> None:
    """Freezes a network and puts low-rank layers, which change nothing yet, beside those of the given names or ends."""
    peft = import_peft()
    layers = list(layers)
    linear = linear_layers(network)
    first = next(base for key, base in linear.items() if f".{key}".endswith(f".{layers[0]}"))
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha or config.rank,
        lora_dropout=config.dropout,
        use_dora=config.dora,
        target_modules=layers,
        fan_in_fan_out=isinstance(first, Conv1D),
        inference_mode=not trains,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a second adapter is meant
        peft.inject_adapter_in_model(settings, network, name)


def new_adapter(network: nn.Module, name: str, config: AdapterConfig) -> None:
    """Freezes a network, "unet" or "gpt2", and gives it low-rank layers that train."""
    inject(network, config, [end for target in config.targets for end in LAYERS[name][target]], "default", True)


def save_adapter(network: Any, folder: Path, base: str, digest: str) -> None:
    """Writes a network's low-rank weights as peft does, with the base's name and the sha256 of its weights."""
    weights = import_peft().get_peft_model_state_dict(network)
    tensors = {PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    # one entry alone: safetensors writes several in an order that differs from run to run
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"base_sha256": digest})
    config = network.peft_config["default"].to_dict() | {"base_model_name_or_path": base, "inference_mode": True}
    plain = {key: sorted(value) if isinstance(value, set | list) else value for key, value in config.items()}
    (folder / CONFIG_NAME).write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_adapter(networks: Sequence[Any], loaded: dict[str, float], path: str | Path, strength: float) -> None:
    """Adds the adapter at `path` to networks, or gives it another strength where it is loaded.

    `loaded` is path -> strength of their adapters, and takes this one. Raises UserError, and changes nothing, where it
    is damaged or does not fit.
    """
    if not 0 <= strength <= MAX_STRENGTH:
        raise UserError(f"adapter {path}: strength {strength} has to be from 0 to {MAX_STRENGTH:g}")
    key = str(Path(path))
    if key not in loaded:
        adapters = [read_adapter(file) for file in find_adapters(Path(path))]
        changed = [network_of(adapter, networks) for adapter in adapters]
        for adapter, network in zip(adapters, changed):
            add_adapter(network, adapter, f"adapter_{len(loaded)}")
    loaded[key] = strength
    for network in networks:
        set_strengths(network, list(loaded.values()))


def parse_adapters(words: Iterable[str]) -> dict[str, float]:
    """PATH or PATH:STRENGTH of each word => path -> strength, 1 where none is given."""
    adapters = {}
    for word in words:
        found = re.fullmatch(r"(.+):(-?\d*\.?\d+)", word)
        adapters[found[1] if found else word] = float(found[2]) if found else 1.0
    return adapters


def find_adapters(path: Path) -> list[Path]:
    """The files of an adapter: itself, the one in a network's folder, or those in the folders of several networks."""
    folders = [path, *(path / part for part in PARTS.values())]
    files = [path] if path.suffix == ".safetensors" else [folder / WEIGHTS_NAME for folder in folders]
    if found := [file for file in files if file.is_file()]:
        return found
    raise UserError(
        f"{path}: no adapter; give a .safetensors file beside its {CONFIG_NAME}, or a folder of them that training "
        "with `adapter:` has written"
    )


def read_adapter(path: Path) -> Adapter:
    """Raises UserError where a file is damaged, or asks for more than LoRA and DoRA."""
    try:
        weights = load_file(path)
    except Exception as error:
        raise UserError(f"{path}: cannot be read as safetensors ({reason_of(error)}); fetch it again") from None
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        found = re.fullmatch(r"(.+)\.(lora_A|lora_B|lora_magnitude_vector)(\.weight)?", name.removeprefix(PREFIX))
        if not found or not tensor.is_floating_point() or not tensor.float().isfinite().all():
            raise UserError(f"{path}: {name!r} is no finite weight of LoRA; give an adapter of T-UNet or GPT-2")
        layers.setdefault(found[1], {})[found[2]] = tensor.float()
    if not layers:
        raise UserError(f"{path}: holds no weights; give an adapter of T-UNet or GPT-2")
    return Adapter(path, read_config(path.with_name(CONFIG_NAME)), layers)


def read_config(path: Path) -> AdapterConfig:
    """What an adapter_config.json asks for. Raises UserError where it asks for more than LoRA and DoRA."""
    known = import_peft().LoraConfig().to_dict()
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict) or config.get("peft_type") != "LORA":
            raise ValueError("peft_type is not LORA")
        for key, value in config.items():
            if key not in (*READ, *NOTES) and value and value != known.get(key):
                raise ValueError(f"{key}={value!r} is not supported")
        given = {**known, **config}
        adapter = AdapterConfig(rank=given["r"], alpha=given["lora_alpha"], dora=given["use_dora"])
        check_fields(adapter)
    except (OSError, ValueError, RecursionError, UserError) as error:
        raise UserError(f"{path}: {reason_of(error)}; give an adapter with a config of peft's LoRA") from None
    if given["use_rslora"] and adapter.alpha:  # scaled by alpha / sqrt(rank)
        adapter.alpha *= math.sqrt(adapter.rank)
    return adapter


def linear_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Name -> layer of those that an adapter can change, without the low-rank ones of other adapters."""
    bases = {name: getattr(module, "base_layer", module) for name, module in network.named_modules()}
    own = {name: base for name, base in bases.items() if ".lora_" not in name and not name.endswith(".base_layer")}
    return {name: base for name, base in own.items() if isinstance(base, nn.Linear | Conv1D)}


def network_of(adapter: Adapter, networks: Sequence[Any]) -> Any:
    """The network that has all layers of an adapter. Raises UserError where none has, or their sizes are others."""
    first = next(iter(adapter.layers))
    known = ((network, linear_layers(network)) for network in networks)
    network, linear = next((pair for pair in known if first in pair[1]), (None, {}))
    for layer, weights in adapter.layers.items():
        if layer not in linear:
            raise UserError(f"{adapter.path}: the model has no linear layer {layer!r}; take the adapter's base model")
        given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        if given != (wanted := shapes_of(linear[layer], adapter.config)):
            raise UserError(f"{adapter.path}: {layer} has {given}, but the model and the config ask for {wanted}")
    return network


def shapes_of(base: Any, config: AdapterConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights with which an adapter changes a layer, by name."""
    width_in, width_out = base.weight.shape if isinstance(base, Conv1D) else reversed(base.weight.shape)
    shapes: dict[str, tuple[int, ...]] = {"lora_A": (config.rank, width_in), "lora_B": (width_out, config.rank)}
    return shapes | ({"lora_magnitude_vector": (width_out,)} if config.dora else {})


def add_adapter(network: Any, adapter: Adapter, name: str) -> None:
    """Puts an adapter's layers beside those that the network has."""
    weight = next(network.parameters())
    inject(network, adapter.config, adapter.layers, name, trains=False)
    set_weights(network, adapter, name)
    nn.Module.to(network, weight.device, weight.dtype)


def set_weights(network: Any, adapter: Adapter, name: str = "default") -> None:
    """Gives the low-rank layers of a name an adapter's weights."""
    ends = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}
    weights = {f"{layer}.{ends.get(k, k)}": v for layer, named in adapter.layers.items() for k, v in named.items()}
    import_peft().set_peft_model_state_dict(network, weights, name)


def set_strengths(network: nn.Module, strengths: Sequence[float]) -> None:
    """The strength of each adapter, in the order of loading; at 0 it is left out, and the base is as it was."""
    named = {f"adapter_{number}": strength for number, strength in enumerate(strengths)}
    active = [name for name, strength in named.items() if strength > 0]
    for layer in network.modules():
        if hasattr(layer, "lora_A"):
            for name, strength in named.items():
                layer.set_scale(name, strength)  # type: ignore[operator]
            layer.set_adapter(active, inference_mode=True)  # type: ignore[operator]
