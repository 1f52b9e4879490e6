"""The model folder: the hub's AudioLDM 2 layout, one sub-folder a part, safetensors only.

    model_index.json  vae/  unet/  vocoder/  language_model/  projection_model/  text_encoder/  tokenizer/
    feature_extractor/  text_encoder_2/  tokenizer_2/  text_encoder_3/  tokenizer_3/  scheduler/  audiomae/

Stock diffusers opens the folder where GPT-2 reads CLAP and one text encoder, and T-UNet the LOA and T5, the LOA, or
CLAP beside the timestep, and the vocoder is HiFi-GAN. `audiomae/` is ours, and model_index.json does not name it; so
are the parts with _3, for phonemes beside T5, and an iSTFT vocoder. generation_config.json tells how the model was
measured.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers

from audioldm2_pl.atomic import is_write_error, replace_folder, restore_folders, write_reason, write_text
from audioldm2_pl.conditioners.condition import read_names
from audioldm2_pl.conditioners.config import ConditionersConfig, conditioner_class
from audioldm2_pl.conditioners.phonemes import PhonemeEncoder
from audioldm2_pl.errors import UserError
from audioldm2_pl.fields import check_fields
from audioldm2_pl.generation import Sampling, by_name
from audioldm2_pl.hub.parts import (
    AUDIOLDM1_PARTS,
    GROUPS,
    HUB_CLASSES,
    PARTS,
    TEXT_CLASSES,
    config_of,
    find_model,
    forget_origin,
    group_parts,
    is_istft_vocoder,
    is_text_part,
    load_part,
    phoneme_parts,
    save_audiomae,
    text_class,
)
from audioldm2_pl.models.projection import PUBLISHED, PUBLISHED_SPEECH
from audioldm2_pl.models.unet_hub import from_hub_config

SAMPLING = "generation_config.json"
OWN_PIPELINE = "AudioLDM2"  # the class in model_index.json where diffusers has none
MODEL_TYPES = {"clap": ("clap", "clap_text_model"), "t5": ("t5",), "phonemes": ("vits",),
               "image": ("pe_audio_video", "image_audio_pair")}  # fmt: skip


class ModelFolder:
    """A model folder under construction.

    `given` parts were taken from elsewhere and are not trained; `started` parts were taken too, and a stage goes on
    from them.
    """

    device = "cpu"  # that parts are loaded to

    def __init__(
        self,
        path: str | Path,
        given: Mapping[str, Any] | None = None,
        started: Mapping[str, Any] | None = None,
        links: bool = False,
    ):
        """`links`: parts that come from elsewhere are links to its files, not copies."""
        self.path = Path(path)
        self.copy_file: Any = os.symlink if links else shutil.copy2
        self.given = dict(given or {})
        self.started = dict(started or {})
        for name in (*self.given, *self.started):
            if name not in GROUPS:
                raise UserError(f"from: no part {name!r}; there are {', '.join(GROUPS)}")

    def take_given(self) -> None:
        """Copies the parts that come from elsewhere, unless they are here already."""
        sources = {**self.started, **self.given}
        for name in sorted(sources, key=list(GROUPS).index):  # T5 before phonemes, which make room for it
            targets = group_parts(self.path, name)
            if not all(self.has(part) for part in targets):
                self.copy_group(name, find_model(sources[name]), targets)
        self.write_index()

    def copy_group(self, name: str, origin: Path, targets: Sequence[str]) -> None:
        """Raises UserError where the model folder `origin` has no such parts."""
        sources = group_parts(origin, name)
        if not (origin / sources[0]).is_dir():
            sources = GROUPS[name][: len(targets)]
        for part, target in zip(sources, targets):
            if (origin / part).is_dir() and not self.has(target):
                shutil.copytree(origin.resolve() / part, self.path / target, copy_function=self.copy_file)
            elif not self.has(target) and part != "scheduler":
                raise UserError(f"{origin}: has no {part}/, which `from: {name}` asks for")
        kind = config_of(self.path, targets[0]).get("model_type")
        if name in MODEL_TYPES and kind not in (None, *MODEL_TYPES[name]):
            raise UserError(f"{origin}: its {targets[0]}/ is not what `from: {name}` asks for")

    def take_pretrained(self, conditioners: ConditionersConfig, names: Iterable[str]) -> None:
        """Saves those of the named conditioners that their configs take from a hub or folder, unless they are here."""
        for name in names:
            config = getattr(conditioners, name)
            if config.pretrained is not None and not self.has_conditioner(name):
                for part, content in config.build().parts().items():
                    self.save(part, content)

    def has_conditioner(self, name: str) -> bool:
        return self.has(group_parts(self.path, name)[0])

    def conditioner_config(self, name: str) -> dict[str, Any]:
        """config.json of a conditioner's encoder; empty where it is not here."""
        return config_of(self.path, group_parts(self.path, name)[0])

    def conditioner(self, name: str) -> Any:
        """One of `conditioners`, out of its sub-folders."""
        if name == "phonemes":
            return PhonemeEncoder.open(self.load, phoneme_parts(self.path))
        return conditioner_class(name).open(self.load)

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

    def sampling(self) -> Sampling:
        """How the model was measured; the authors' sampling with the folder's own scheduler where it does not tell."""
        path = self.path / SAMPLING
        try:
            values = json.loads(path.read_text()) if path.is_file() else {"sampler": None}
            sampling = Sampling(**by_name(values, Sampling)[0])
            check_fields(sampling)
        except (ValueError, TypeError, AttributeError, RecursionError, UserError) as error:
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
            self.write_part(part, content, new)
        except Exception as error:
            shutil.rmtree(new, ignore_errors=True)
            if not is_write_error(error):
                raise
            raise UserError(f"{self.path / part}: cannot be written ({write_reason(error)}); make room there") from None
        self.replace(part, new)
        self.write_index()

    def write_part(self, part: str, content: Any, folder: Path) -> None:
        if part == "audiomae":
            save_audiomae(content, folder)
        else:
            content.save_pretrained(folder)
            forget_origin(folder / "config.json")

    def replace(self, part: str, new: Path) -> None:
        """The folder `new` takes the part's place; a kill in between leaves one of the two for `restore`."""
        replace_folder(self.path / part, new)

    def restore(self) -> None:
        """Undoes what killed processes have begun."""
        restore_folders(self.path)

    def conditions(self) -> tuple[list[str], str | None, list[str]]:
        """What T-UNet reads, what joins its time embedding, and what GPT-2 reads; of published folders too."""
        unet = config_of(self.path, "unet")
        fields = from_hub_config(unet, read_names(self.path / "unet"))[0] if unet else {}
        projection = config_of(self.path, "projection_model")
        learned = bool(projection.get("use_learned_position_embedding"))
        published = list(PUBLISHED_SPEECH if learned else PUBLISHED) if projection else []
        own = read_names(self.path / "projection_model").get("conditions", published)
        return fields.get("conditions", ["loa", "t5"]), fields.get("film"), own

    def pipeline_class(self) -> str:
        """The class of diffusers that runs the model, or ours where none does."""
        unet, film, gpt2 = self.conditions()
        if is_istft_vocoder(self.path, "vocoder"):
            return OWN_PIPELINE
        if film is not None:
            return "AudioLDMPipeline" if (film, unet) == ("clap", []) else OWN_PIPELINE
        stock = unet in (["loa", "t5"], ["loa"]) and gpt2 in ([], ["clap", "t5"], ["clap", "phonemes"])
        return "AudioLDM2Pipeline" if stock else OWN_PIPELINE

    @property
    def opens_in_diffusers(self) -> bool:
        return self.pipeline_class() != OWN_PIPELINE

    def own_parts(self) -> str:
        """What of the model stock diffusers has no class for, in words."""
        if is_istft_vocoder(self.path, "vocoder"):
            return "its vocoder is of kind istft; train one with vocoder.kind=hifigan for diffusers"
        unet, film, gpt2 = self.conditions()
        return f"T-UNet reads {unet}, film {film}, GPT-2 {gpt2}"

    def class_of(self, part: str) -> tuple[str, str]:
        """(library, class) of a part for model_index.json."""
        if is_text_part(part):
            return text_class(self.path, part)
        if part == "scheduler":
            return "diffusers", json.loads((self.path / part / "scheduler_config.json").read_text())["_class_name"]
        if part == "unet":
            return "diffusers", config_of(self.path, "unet").get("_class_name", HUB_CLASSES["unet"][1])
        return HUB_CLASSES[part]

    def expected_parts(self) -> tuple[str, ...]:
        """The parts that the pipeline needs."""
        return AUDIOLDM1_PARTS if self.pipeline_class() == "AudioLDMPipeline" else tuple(HUB_CLASSES)

    def write_index(self) -> None:
        """model_index.json of the parts that are there."""
        self.path.mkdir(parents=True, exist_ok=True)
        pipeline = self.pipeline_class()
        index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": diffusers.__version__}
        present = [p for p in self.expected_parts() if self.has(p) and not is_istft_vocoder(self.path, p)]
        index |= {part: list(self.class_of(part)) for part in present}
        if pipeline == "AudioLDMPipeline" and self.has("text_encoder"):
            index["text_encoder"] = ["transformers", TEXT_CLASSES["clap_text_model"][0]]
        self.write_json("model_index.json", index)
