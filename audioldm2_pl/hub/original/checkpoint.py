"""An original checkpoint, opened without running code, and the account of its tensors."""

import argparse
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from audioldm2_pl.errors import UserError

Weights = dict[str, Tensor]  # by the authors' names, those of one network without its prefix
Moves = Iterator[tuple[str, str, Tensor]]  # the authors' name, the name here, the tensor
Rules = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]  # of `re.sub`

# Where training scripts keep the weights: Lightning, AudioMAE, HiFi-GAN.
WRAPPERS = ("state_dict", "model", "generator")
MAX_WRAPPERS = 10  # one inside the other
MAX_NAME = 1_000  # letters of a tensor's name
MAX_REPEATED = 2**31  # bytes of a tensor that repeats what the file holds

# What files hold beside the weights, and what runs nothing: AudioMAE's command line, LAION's numpy numbers.
VALUES: list[Any] = [
    argparse.Namespace,
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    *(np.dtype, type(np.dtype("f8")), type(np.dtype("i8"))),
]

# A network's prefix is what stands before this name. Several names: with weight norm taken off, or still on.
ANCHORS: dict[str, tuple[str, ...]] = {
    "unet": ("time_embed.0.weight",),
    "vae": ("encoder.conv_in.weight",),
    "vocoder": ("conv_pre.weight", "conv_pre.weight_v", "conv_pre.parametrizations.weight.original1"),
    "gpt2": ("start_of_sequence_tokens.weight",),
    "t5": ("encoder.block.0.layer.0.SelfAttention.q.weight",),
    "phonemes": ("text_encoder.emb.weight",),
    "clap": ("text_branch.embeddings.word_embeddings.weight",),
    "audiomae": ("cls_token",),
}

# Left behind on purpose: what they are -> which names.
IGNORED: dict[str, str] = {
    "noise schedule, computed anew": r"(betas|alphas_cumprod\w*|sqrt_\w+|log_one_minus_\w+|posterior_\w+|lvlb_weights)",
    "log-variance of the loss, never trained": r"(.*\.)?logvar",
    "losses and discriminators": r"(first_stage_model\.)?loss\..*",
    "CLAP's filters of its mel, computed anew": r".*(spectrogram_extractor|logmel_extractor|mel_transform)\..*",
    "CLAP's heads for classification": r".*audio_branch\.(tscam_conv|head)\..*",
    "CLAP's layers that give no embedding": r".*\b(text_transform|audio_transform)\..*",
    "VITS's text encoder's last layer, which LOA does not use": r".*text_encoder\.proj\.(weight|bias)",
    "masks of attention, computed anew": r".*(\.attn_mask|\.h\.\d+\.attn\.(bias|masked_bias))",
}
EMA = "EMA weights of the T-UNet, which --ema takes"


def read_checkpoint(path: Path) -> tuple[Weights, list[str]]:
    """The tensors of a .pth, .ckpt or .safetensors file, and the names of what else stands beside them.

    Raises UserError for a file that is none, or that only running its code would open.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file")
    if not path.stat().st_size:
        raise UserError(f"{path}: empty, a download that broke off; fetch it again")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            with torch.serialization.safe_globals(VALUES):
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|[Uu]nsupported (?:global|class)):? ([\w.]+)", str(error))
        what = f" {found[1]}" if found else ""
        raise UserError(
            f"{path}: not weights alone, opening it would run code{what}; ask for a file that holds the state_dict only"
        ) from None
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: not a checkpoint of torch or safetensors ({reason})") from None
    others: list[str] = []
    for _ in range(MAX_WRAPPERS):  # a dict may hold itself
        if not isinstance(content, dict) or not (inner := [k for k in WRAPPERS if isinstance(content.get(k), dict)]):
            break
        others += [str(name) for name in content if name != inner[0]]
        content = content[inner[0]]
    tensors = content if isinstance(content, dict) else {}
    others += [str(name) for name, value in tensors.items() if not isinstance(value, Tensor)]
    weights = {str(name): value for name, value in tensors.items() if isinstance(value, Tensor)}
    check_tensors(path, weights)
    return weights, others


def check_tensors(path: Path, weights: Weights) -> None:
    """UserError for tensors far larger than the file, which repeat what it holds, and for names that no network has."""
    most = max(MAX_REPEATED, path.stat().st_size)
    for name, tensor in weights.items():
        if len(name) > MAX_NAME:
            raise UserError(f"{path}: a tensor's name has {len(name)} letters; not a checkpoint of weights")
        if tensor.layout != torch.strided or tensor.is_meta or tensor.numel() * tensor.element_size() > most:
            raise UserError(
                f"{path}: {name} of shape {list(tensor.shape)} is not in the file; not a checkpoint of weights"
            )


class Checkpoint:
    """All tensors of a file: which were taken, which were left on purpose, which nobody knows."""

    def __init__(self, path: Path, ema: bool = False):
        self.path = path
        self.tensors, others = read_checkpoint(path)
        self.taken: set[str] = set()
        self.ignored: dict[str, list[str]] = {"stands beside the weights": others} if others else {}
        self.prefixes = {name: self.find(anchors) for name, anchors in ANCHORS.items()}
        self.ema = self.use_ema() if ema else 0

    def find(self, anchors: Iterable[str]) -> list[str]:
        """The prefixes under which a network stands, the outermost first."""
        ends = [key[: -len(anchor)] for key in self.tensors for anchor in anchors if ("." + key).endswith("." + anchor)]
        return sorted(ends, key=lambda prefix: prefix.count("."))

    def below(self, prefix: str) -> Weights:
        """The tensors under a prefix, named without it."""
        return {key.removeprefix(prefix): tensor for key, tensor in self.tensors.items() if key.startswith(prefix)}

    def use_ema(self) -> int:
        """Replaces the last weights of the T-UNet by the averaged ones; how many.

        Their names are those below `model.`, without dots.
        """
        averaged = [key for key in self.tensors if key.startswith("model_ema.")]
        if not averaged or not self.prefixes["unet"]:
            raise UserError(f"{self.path}: has no EMA weights (model_ema.*); import it without --ema")
        prefix = self.prefixes["unet"][0]
        names = [key for key in self.tensors if key.startswith(prefix)]
        sources = {key: "model_ema." + key.removeprefix("model.").replace(".", "") for key in names}
        missing = [key for key, source in sources.items() if source not in self.tensors]
        if missing:
            raise UserError(f"{self.path}: no EMA weights of {listing(missing)}; import it without --ema")
        for key, source in sources.items():
            self.tensors[key] = self.tensors.pop(source)
        return len(sources)

    def convert(
        self,
        name: str,
        build: Callable[[Weights], tuple[Any, Moves]],
        optional: Callable[[str], bool] = lambda name: False,
    ) -> Any:
        """The network `name`, filled; its tensors count as taken, second copies of it as ignored.

        Raises UserError where a tensor is missing, but for the `optional`, or has another shape than the network.
        """
        first, *further = self.prefixes[name]
        try:
            network, moves = build(self.below(first))
            used = fill(network, moves, optional)
        except UserError as error:
            raise UserError(f"{self.path}: {name}: {error}") from None
        except KeyError as error:
            raise UserError(f"{self.path}: {name}: has no {error.args[0]}; a network of another kind") from None
        except Exception as error:  # shapes that go with no network fail wherever they are first used
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"{self.path}: {name}: shapes of no network known here ({reason})") from None
        self.taken |= {first + key for key in used}
        for prefix in further:
            copies = [key for key in used if prefix + key in self.tensors]
            equal = [key for key in copies if torch.equal(self.tensors[prefix + key], self.tensors[first + key])]
            same = f"second copy of {name}" if len(equal) == len(copies) else f"second {name}, with OTHER values"
            self.ignored[f"{same}, under {prefix}"] = [prefix + key for key in copies]
        return network

    def unmatched(self) -> list[str]:
        """Sorts what is left: names of `IGNORED` into `ignored`, the others are returned."""
        passed = self.taken.union(*self.ignored.values())
        rest = []
        for key in self.tensors:
            if key in passed:
                continue
            reason = next((why for why, pattern in IGNORED.items() if re.fullmatch(pattern, key)), None)
            if key.startswith("model_ema."):
                reason = "EMA's counters" if self.ema else EMA
            if reason:
                self.ignored.setdefault(reason, []).append(key)
            else:
                rest.append(key)
        return rest


def fill(network: nn.Module, moves: Moves, optional: Callable[[str], bool]) -> set[str]:
    """Copies the tensors that the network has; the authors' names of them.

    Raises UserError where one has another shape, or one of the network's own is missing but for the `optional`.
    """
    own = network.state_dict()
    found: Weights = {}
    used: set[str] = set()
    for old, name, tensor in moves:
        if name not in own:
            continue
        if own[name].ndim == 2:  # a linear layer here, a 1×1 convolution in the authors' code
            tensor = tensor.flatten(1)
        if own[name].shape != tensor.shape:
            sizes = f"{list(tensor.shape)}, not {list(own[name].shape)}"
            raise UserError(f"{old} is {sizes}; a network of this kind is not known here")
        found[name] = tensor
        used.add(old)
    missing = [name for name in own if name not in found and not optional(name)]
    if missing:
        raise UserError(f"nothing for {listing(missing)}; the file is cut short, or of a kind not known here")
    network.load_state_dict(found, strict=False)
    return used


def renamed(weights: Weights, rules: Rules) -> Moves:
    """Every tensor with the name that the rules, one after the other, make of its own."""
    for key, tensor in weights.items():
        name = key
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        yield key, name, tensor


def listing(names: list[str], shown: int = 3) -> str:
    """The first few names and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def count(weights: Weights, pattern: str) -> int:
    """How many items a list of layers has: how many numbers there are at the one group of `pattern`.

    Raises UserError where they do not count on from 0.
    """
    numbers = {found[1] for key in weights if (found := re.match(pattern, key))}
    if numbers != {str(number) for number in range(len(numbers))}:
        raise UserError(f"the numbers of {pattern} are {listing(sorted(numbers))}, which leave some out")
    return len(numbers)
