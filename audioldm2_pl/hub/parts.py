"""One part of a model folder: its classes in the ecosystem, and how it is opened."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors.torch import save_file

from audioldm2_pl.conditioners.config import CONDITIONS, conditioner_class
from audioldm2_pl.conditioners.image import load_image_encoder
from audioldm2_pl.conditioners.phonemes import BESIDE_T5, SUBFOLDERS
from audioldm2_pl.errors import UserError
from audioldm2_pl.models.audiomae import AudioMAE, AudioMAEConfig
from audioldm2_pl.models.istft import CLASS_NAME, ISTFTVocoder
from audioldm2_pl.models.projection import ConditionProjection
from audioldm2_pl.models.unet import TUNet
from audioldm2_pl.weights import find_weights, load_reason, loading_options, read_weights

transformers.utils.logging.disable_progress_bar()  # a bar per part says nothing on parts that load in a blink

# Sub-folder -> (library, class) as model_index.json has them for AudioLDM2Pipeline.
HUB_CLASSES: dict[str, tuple[str, str]] = {
    "feature_extractor": ("transformers", "ClapFeatureExtractor"),
    "language_model": ("transformers", "GPT2LMHeadModel"),
    "projection_model": ("diffusers", "AudioLDM2ProjectionModel"),
    "scheduler": ("diffusers", "DDIMScheduler"),
    "text_encoder": ("transformers", "ClapModel"),
    "text_encoder_2": ("transformers", "T5EncoderModel"),
    "tokenizer": ("transformers", "RobertaTokenizer"),
    "tokenizer_2": ("transformers", "T5Tokenizer"),
    "unet": ("diffusers", "AudioLDM2UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "vocoder": ("transformers", "SpeechT5HifiGan"),
}
# model_type of a text encoder -> classes of the encoder and its tokenizer.
TEXT_CLASSES = {
    "t5": ("T5EncoderModel", "T5Tokenizer"),
    "vits": ("VitsModel", "VitsTokenizer"),
    "clap_text_model": ("ClapTextModelWithProjection", "RobertaTokenizer"),
    "clap": ("ClapModel", "RobertaTokenizer"),
}
AUDIOLDM1_PARTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae", "vocoder")
CLASSES = HUB_CLASSES | {  # those of the parts that stock pipelines do not have, too
    part: kind
    for name in CONDITIONS
    for part, kind in conditioner_class(name).hub_classes.items()
    if part not in HUB_CLASSES
}
PARTS = (*CLASSES, "audiomae")
MODEL_FILES = ["*.json", "*.txt", "*.model", "*/*.safetensors"]  # of a repository; the first three of sub-folders, too
MAX_LAYERS = 1_000  # of anything that a part's config.json counts
MAX_SIZE = 10**7  # of any of its numbers

# What `from:` and `start_from:` call the parts -> their sub-folders.
GROUPS: dict[str, tuple[str, ...]] = {
    **{name: tuple(conditioner_class(name).hub_classes) for name in CONDITIONS},
    "audiomae": ("audiomae",),
    "vae": ("vae",),
    "vocoder": ("vocoder",),
    "unet": ("unet", "scheduler"),
    "gpt2": ("language_model", "projection_model"),
}


def save_audiomae(audiomae: AudioMAE, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(audiomae.config), indent=2) + "\n")
    save_file({k: v.contiguous() for k, v in audiomae.state_dict().items()}, folder / "model.safetensors")


def load_audiomae(folder: Path) -> AudioMAE:
    config = AudioMAEConfig(**json.loads((folder / "config.json").read_text()))
    with torch.device("meta"):
        audiomae = AudioMAE(config)
    audiomae.load_state_dict(read_weights(folder), assign=True)
    return audiomae


def config_of(folder: Path, part: str) -> dict[str, Any]:
    """A part's config.json, empty where there is none. Raises UserError where it is no config, or of endless size."""
    path = folder / part / "config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        check_sizes(config)
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(
            f"{path.parent}: cannot be loaded (config.json: {error}); save or download the part again"
        ) from None
    return config


def check_sizes(config: Any) -> None:
    """ValueError where a network of this config would be built for hours, or fill any memory."""
    if not isinstance(config, dict):
        raise ValueError("is no JSON object")
    for key, value in config.items():
        values = value if isinstance(value, list) else [value]
        most = MAX_LAYERS if re.search("layer|depth|block", key) and "channel" not in key else MAX_SIZE
        if len(values) > MAX_LAYERS or any(isinstance(v, int | float) and abs(v) > most for v in values):
            raise ValueError(f"{key} is out of all bounds")
        for inner in values:
            if isinstance(inner, dict):
                check_sizes(inner)


def is_text_part(part: str) -> bool:
    """Whether a text encoder or a tokenizer is there, of which kind the encoder's config.json tells."""
    return part.startswith(("text_encoder", "tokenizer"))


def text_class(folder: Path, part: str) -> tuple[str, str]:
    """(library, class) of a text encoder's or its tokenizer's sub-folder, as the encoder's config.json tells."""
    encoder = part.replace("tokenizer", "text_encoder")
    model, tokenizer = TEXT_CLASSES.get(config_of(folder, encoder).get("model_type", ""), (None, None))
    if model is None or tokenizer is None:
        return CLASSES[part]
    return "transformers", model if part.startswith("text") else tokenizer


def is_istft_vocoder(folder: Path, part: str) -> bool:
    """Whether a part is the vocoder that transformers has no class for."""
    return part == "vocoder" and config_of(folder, part).get("_class_name") == CLASS_NAME


def phoneme_parts(folder: Path) -> tuple[str, str]:
    """Sub-folders of the phonemes' encoder and tokenizer: T5's published ones, where it does not stand there itself."""
    return BESIDE_T5 if config_of(folder, SUBFOLDERS[0]).get("model_type") == "t5" else SUBFOLDERS


def group_parts(folder: Path, group: str) -> tuple[str, ...]:
    """The sub-folders of a group in this folder."""
    return phoneme_parts(folder) if group == "phonemes" else GROUPS[group]


def load_part(folder: Path, part: str) -> Any:
    """One part out of its own sub-folder. Raises UserError where it is missing or broken."""
    path = folder / part
    if not path.is_dir():
        raise UserError(f"{folder}: the part {part}/ is missing; train its stage, or name where it is in `from:`")
    config_of(folder, part)
    try:
        if part == "audiomae":
            return load_audiomae(path)
        if part == "image_encoder":
            return load_image_encoder(path)
        if is_istft_vocoder(folder, part):
            return ISTFTVocoder.from_pretrained(path)
        if part == "unet":
            return TUNet.from_pretrained(path)
        if part == "projection_model":
            return ConditionProjection.from_pretrained(path)
        if part == "scheduler":
            config = json.loads((path / "scheduler_config.json").read_text())
            check_sizes(config)
            kind = getattr(diffusers, config.get("_class_name", "DDIMScheduler"))
            if not issubclass(kind, diffusers.SchedulerMixin):  # type: ignore[attr-defined]
                raise ValueError(f"{kind.__name__} is no scheduler")
            return kind.from_pretrained(path)
        library, name = text_class(folder, part) if is_text_part(part) else CLASSES[part]
        if library == "diffusers":
            options = loading_options(path) | {"torch_dtype": torch.float32, "low_cpu_mem_usage": False}
            return getattr(diffusers, name).from_pretrained(path, **options)
        options = loading_options(path) | {"dtype": torch.float32} if (path / "config.json").is_file() else {}
        return getattr(transformers, name).from_pretrained(str(path), **options)
    except Exception as error:
        reason = load_reason(error)
        if isinstance(error, UserError) and str(path) in reason:
            raise
        raise UserError(f"{path}: cannot be loaded ({reason}); save or download the part again") from None


def find_model(source: str | Path) -> Path:
    """A local model folder, or a hub id brought to a local folder."""
    path = Path(source)
    if not path.is_dir():
        if str(source).count("/") != 1 or path.is_absolute():
            raise UserError(f"{source}: no such model folder")
        path = download(str(source), MODEL_FILES)
        networks = [part for part in PARTS if (path / part / "config.json").is_file()]
        if pickled := [part for part in networks if find_weights(path / part) is None]:
            path = download(str(source), [f"{part}/*.bin" for part in pickled])
    if not any((path / part).is_dir() for part in PARTS):
        raise UserError(f"{path}: not a model folder (no {', '.join(PARTS[:3])}, … in it)")
    return path


def download(source: str, patterns: list[str]) -> Path:
    """The hub's cache of a repository, with the files that match, as far as there is a network."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=patterns))
    except Exception as error:
        cached = getattr(error, "snapshot_path", None)  # offline: what other programs have fetched of it
        if cached is None:
            raise UserError(
                f"{source}: no such folder, and the hub does not give it ({type(error).__name__}); check name and "
                "network"
            ) from None
        return Path(cached)


def forget_origin(config: Path) -> None:
    """Takes out of a part's config.json where diffusers had read the part from: a place on one machine."""
    content = json.loads(config.read_text()) if config.is_file() else {}
    if content.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
