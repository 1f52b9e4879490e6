"""The model folder: the hub's AudioLDM 2 layout, one sub-folder a part, safetensors only.

    model_index.json  vae/  unet/  vocoder/  language_model/  projection_model/  text_encoder/  tokenizer/
    feature_extractor/  text_encoder_2/  tokenizer_2/  scheduler/  audiomae/

Stock diffusers opens the folder; `audiomae/` is ours, and model_index.json does not name it. generation_config.json
tells how the model was measured.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
import transformers
from safetensors.torch import save_file

from audioldm2_pl.atomic import is_write_error, write_reason, write_text
from audioldm2_pl.conditioners.clap import CLAP, CLAPText
from audioldm2_pl.conditioners.phonemes import PhonemeEncoder
from audioldm2_pl.conditioners.t5 import T5
from audioldm2_pl.errors import UserError
from audioldm2_pl.fields import check_fields
from audioldm2_pl.models.audiomae import AudioMAE, AudioMAEConfig
from audioldm2_pl.models.diffusion import Sampling
from audioldm2_pl.models.unet import TUNet
from audioldm2_pl.weights import loading_options, read_weights

if TYPE_CHECKING:
    from audioldm2_pl.config import ConditionersConfig

transformers.utils.logging.disable_progress_bar()  # a bar per part says nothing on parts that load in a blink

# Sub-folder -> (library, class) as model_index.json has them.
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
SPEECH_CLASSES = {  # of the parts that are others where speech is made
    "text_encoder_2": ("transformers", "VitsModel"),
    "tokenizer_2": ("transformers", "VitsTokenizer"),
}
# AudioLDM 1, whose T-UNet reads CLAP's embedding beside the timestep, and no LOA.
AUDIOLDM1_CLASSES = {part: HUB_CLASSES[part] for part in ("scheduler", "tokenizer", "vae", "vocoder")} | {
    "text_encoder": ("transformers", "ClapTextModelWithProjection"),
    "unet": ("diffusers", "UNet2DConditionModel"),
}
PARTS = (*HUB_CLASSES, "audiomae")
SAMPLING = "generation_config.json"
MAX_LAYERS = 1_000  # of anything that a part's config.json counts
MAX_SIZE = 10**7  # of any of its numbers

# What `from:` and `start_from:` call the parts -> their sub-folders.
GROUPS: dict[str, tuple[str, ...]] = {
    "clap": ("text_encoder", "tokenizer", "feature_extractor"),
    "t5": ("text_encoder_2", "tokenizer_2"),
    "phonemes": ("text_encoder_2", "tokenizer_2"),
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
    check_fields(config, "config.json: ")
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


def is_speech(folder: Path) -> bool:
    """Whether a model folder's second text encoder reads phonemes."""
    return config_of(folder, "text_encoder_2").get("model_type") == "vits"


def is_audioldm1(folder: Path) -> bool:
    """Whether a model folder's T-UNet reads CLAP's embedding beside the timestep."""
    return config_of(folder, "unet").get("class_embed_type") == "simple_projection"


def classes_of(folder: Path) -> dict[str, tuple[str, str]]:
    """Part -> (library, class), for the kind of model that a folder holds."""
    if is_audioldm1(folder):
        return AUDIOLDM1_CLASSES
    return HUB_CLASSES | SPEECH_CLASSES if is_speech(folder) else HUB_CLASSES


def load_part(folder: Path, part: str) -> Any:
    """One part out of its own sub-folder. Raises UserError where it is missing or broken."""
    path = folder / part
    if not path.is_dir():
        raise UserError(f"{folder}: the part {part}/ is missing; train its stage, or name where it is in `from:`")
    config_of(folder, part)
    try:
        if part == "audiomae":
            return load_audiomae(path)
        if part == "unet":
            return TUNet.from_pretrained(path)
        if part == "scheduler":
            config = json.loads((path / "scheduler_config.json").read_text())
            check_sizes(config)
            kind = getattr(diffusers, config.get("_class_name", "DDIMScheduler"))
            if not issubclass(kind, diffusers.SchedulerMixin):  # type: ignore[attr-defined]
                raise ValueError(f"{kind.__name__} is no scheduler")
            return kind.from_pretrained(path)
        library, name = (HUB_CLASSES | SPEECH_CLASSES if is_speech(folder) else HUB_CLASSES)[part]
        if part == "text_encoder" and config_of(folder, part).get("model_type") == "clap_text_model":
            library, name = AUDIOLDM1_CLASSES[part]
        if library == "diffusers":
            options = loading_options(path) | {"torch_dtype": torch.float32, "low_cpu_mem_usage": False}
            return getattr(diffusers, name).from_pretrained(path, **options)
        options = loading_options(path) | {"dtype": torch.float32} if (path / "config.json").is_file() else {}
        return getattr(transformers, name).from_pretrained(str(path), **options)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if isinstance(error, UserError) and str(path) in reason:
            raise
        raise UserError(f"{path}: cannot be loaded ({reason}); save or download the part again") from None


def find_model(source: str | Path) -> Path:
    """A local model folder, or a hub id brought to a local folder."""
    path = Path(source)
    if path.is_dir():
        if not any((path / part).is_dir() for part in PARTS):
            raise UserError(f"{path}: not a model folder (no {', '.join(PARTS[:3])}, … in it)")
        return path
    if str(source).count("/") != 1 or path.is_absolute():
        raise UserError(f"{source}: no such model folder")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                str(source),
                allow_patterns=["*.json", "*.txt", "*.model", "*/*.safetensors", "*/*.json", "*/*.txt", "*/*.model"],
            )
        )
    except Exception as error:
        raise UserError(
            f"{source}: no such folder, and the hub does not give it ({type(error).__name__}); check name and network"
        ) from None


def forget_origin(config: Path) -> None:
    """Takes out of a part's config.json where diffusers had read the part from: a place on one machine."""
    content = json.loads(config.read_text()) if config.is_file() else {}
    if content.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


class ModelFolder:
    """A model folder under construction.

    `given` parts were taken from elsewhere and are not trained; `started` parts were taken too, and a stage goes on
    from them.
    """

    def __init__(
        self, path: str | Path, given: Mapping[str, Any] | None = None, started: Mapping[str, Any] | None = None
    ):
        self.path = Path(path)
        self.given = dict(given or {})
        self.started = dict(started or {})
        for name in (*self.given, *self.started):
            if name not in GROUPS:
                raise UserError(f"from: no part {name!r}; there are {', '.join(GROUPS)}")

    def take_given(self) -> None:
        """Copies the parts that come from elsewhere, unless they are here already."""
        for name, source in {**self.started, **self.given}.items():
            missing = [part for part in GROUPS[name] if not self.has(part)]
            origin = find_model(source) if missing else None
            for part in missing:
                if origin is not None and (origin / part).is_dir():
                    shutil.copytree(origin / part, self.path / part)
                elif part != "scheduler":
                    raise UserError(f"{source}: has no {part}/, which `from: {name}` asks for")
            if (name == "phonemes") != is_speech(self.path) and name in ("t5", "phonemes"):
                raise UserError(f"{source}: its text_encoder_2/ is not what `from: {name}` asks for")
        self.write_index()

    def take_pretrained(self, conditioners: ConditionersConfig) -> None:
        """Saves the conditioners that the config names by hub id or folder, unless they are here already."""
        if conditioners.clap.pretrained is not None and not self.has("text_encoder"):
            clap = CLAP.build(conditioners.clap)
            for part, content in zip(GROUPS["clap"], (clap.model, clap.tokenizer, clap.feature_extractor)):
                self.save(part, content)
        wants_t5 = conditioners.phonemes is None and conditioners.t5.pretrained is not None
        if wants_t5 and not self.has("text_encoder_2"):
            t5 = T5.build(conditioners.t5)
            for part, content in zip(GROUPS["t5"], (t5.model, t5.tokenizer)):
                self.save(part, content)

    def is_given(self, name: str) -> bool:
        return name in self.given or name in self.started

    def has(self, part: str) -> bool:
        return (self.path / part).is_dir()

    def parts(self) -> set[str]:
        """The parts that are there."""
        return {part for part in PARTS if self.has(part)}

    def load(self, part: str) -> Any:
        return load_part(self.path, part)

    def start(self, part: str) -> Any | None:
        """The weights that a stage goes on from, None where it starts afresh."""
        groups = {name for name, parts in GROUPS.items() if part in parts}
        return self.load(part) if groups & set(self.started) else None

    def clap(self) -> CLAP | CLAPText:
        model, tokenizer = self.load("text_encoder"), self.load("tokenizer")
        if isinstance(model, transformers.ClapTextModelWithProjection):
            return CLAPText(model, tokenizer)
        return CLAP.from_parts(model, tokenizer, self.load("feature_extractor"))

    def words(self) -> T5 | PhonemeEncoder:
        """What reads GPT-2's second condition: T5 a prompt, the phoneme encoder a transcript."""
        model = self.load("text_encoder_2")
        kind = PhonemeEncoder if model.config.model_type == "vits" else T5
        return kind(model, self.load("tokenizer_2"))

    def sampling(self) -> Sampling:
        """How the model was measured; the authors' sampling where the folder does not tell."""
        path = self.path / SAMPLING
        try:
            sampling = Sampling(**json.loads(path.read_text())) if path.is_file() else Sampling()
            check_fields(sampling)
        except (ValueError, TypeError, RecursionError, UserError) as error:
            raise UserError(f"{path}: is no sampling ({error}); mend it or delete it") from None
        return sampling

    def note_sampling(self, sampling: Sampling) -> None:
        """Writes beside a T-UNet how it is measured."""
        if self.has("unet"):
            self.write_json(SAMPLING, dataclasses.asdict(sampling))

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        write_text(self.path / name, json.dumps(content, indent=2) + "\n")

    def save(self, part: str, content: Any) -> None:
        """Writes a part whole: a broken-off write leaves the part as it was.

        Raises UserError where the disk is full or read-only.
        """
        new = self.path / f".{part}.part"
        shutil.rmtree(new, ignore_errors=True)
        try:
            new.mkdir(parents=True)
            if part == "audiomae":
                save_audiomae(content, new)
            else:
                content.save_pretrained(new)
                forget_origin(new / "config.json")
        except Exception as error:
            shutil.rmtree(new, ignore_errors=True)
            if not is_write_error(error):
                raise
            raise UserError(f"{self.path / part}: cannot be written ({write_reason(error)}); make room there") from None
        self.replace(part, new)
        self.write_index()

    def replace(self, part: str, new: Path) -> None:
        """The folder `new` takes the part's place; a kill in between leaves one of the two for `restore`."""
        old = self.path / f".{part}.old"
        if self.has(part):
            (self.path / part).rename(old)
        new.rename(self.path / part)
        shutil.rmtree(old, ignore_errors=True)

    def restore(self) -> None:
        """Undoes what killed processes have begun."""
        for old in self.path.glob(".*.old"):
            part = old.name.removeprefix(".").removesuffix(".old")
            shutil.rmtree(old) if self.has(part) else old.rename(self.path / part)
        for new in self.path.glob(".*.part"):
            shutil.rmtree(new) if new.is_dir() else new.unlink()

    def write_index(self) -> None:
        """model_index.json of the parts that are there."""
        self.path.mkdir(parents=True, exist_ok=True)
        pipeline = "AudioLDMPipeline" if is_audioldm1(self.path) else "AudioLDM2Pipeline"
        index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": diffusers.__version__}
        index |= {part: list(cls) for part, cls in classes_of(self.path).items() if self.has(part)}
        if is_audioldm1(self.path):  # one with LOA or text beside the embedding is of the newer class
            index["unet"] = ["diffusers", config_of(self.path, "unet")["_class_name"]]
        if self.has("scheduler"):
            config = json.loads((self.path / "scheduler" / "scheduler_config.json").read_text())
            index["scheduler"] = ["diffusers", config["_class_name"]]
        self.write_json("model_index.json", index)
