"""What the frozen parts make of a split's clips: shards of features beside the shards of sound.

A folder of features has a tar for each of the source's, of the same name and with the same clips in the same order,
and an index.json. A clip is `<key>.json` and `<key>.<feature>.npy` for each feature:

    mean, std    (C, H, W)     the VAE's posterior
    grid         (T', F', D)   AudioMAE's patches before they are pooled to LOA
    clap         (D,)          CLAP of the sound, where speech is trained
    clap_text    (N, D)        CLAP of each of the clip's N captions
    t5           (N, L, D)     T5's hidden states of each caption, padded with zeros to the longest
    t5_length    (N,)          how many of the L are real
    image        (D,)          the image encoder's embedding of the sound

The JSON is {"clip": the source's fields, "crc32": {feature: checksum of its member}}; of a clip that could not be used
{"bad": the reason, "lost": whether it had no name}, and no feature follows. `python -m data.encode` writes such
folders; the order of clips is the same with and without them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audioldm2_pl.atomic import update_from_folder
from audioldm2_pl.audio import AudioConfig
from audioldm2_pl.errors import UserError
from audioldm2_pl.shards.crop import Crop
from audioldm2_pl.shards.format import BadClip, captions_of, decode_array, decode_json
from audioldm2_pl.shards.members import Members
from audioldm2_pl.shards.reader import ShardFolder
from audioldm2_pl.shards.remote import RemoteFolder

FEATURES = {  # part -> its features of a clip
    "vae": ("mean", "std"),
    "audiomae": ("grid",),
    "clap": ("clap", "clap_text"),
    "t5": ("t5", "t5_length"),
    "image": ("image",),
}
FRONT_END = 2  # counts the ways in which `audio.prepare_clip` has brought clips to the networks
TEXT_FEATURES = ("clap_text", "t5", "t5_length")  # a row for each caption


class EncodedFolder(ShardFolder):
    """One split's features. `load` gives {"key", "features": {name: array}, and the JSON's fields}."""

    made_by = "python -m data.encode"

    def __init__(self, path: str | Path, wanted: Sequence[str] = (), remote: RemoteFolder | None = None):
        super().__init__(path, remote)
        self.advice = f"encode the clips again with {self.made_by}"
        held = self.index.get("features")
        if not isinstance(held, list):
            raise UserError(f"{self.path}: holds no encoded features; make them with {self.made_by}")
        self.features = [name for name in wanted if name in held]
        self.shapes: dict[str, tuple[int, ...]] = {}  # of a feature, as the first clip has it

    def check_source(self, source: ShardFolder, audio: AudioConfig) -> None:
        """UserError where the features are of other shards or of another front end."""
        own = [(shard["num_clips"], shard.get("source_sha256")) for shard in self.index["shards"]]
        if own != [(shard["num_clips"], shard.get("sha256")) for shard in source.index["shards"]]:
            raise UserError(f"{self.path}: not of the shards that {source.path} holds now; {self.advice}")
        if self.index.get("front_end") != FRONT_END:
            raise UserError(f"{self.path}: made of clips that were levelled in another way; {self.advice}")
        ours, theirs = dataclasses.asdict(audio), self.index.get("audio", {})
        for name in ours:
            if ours[name] != theirs.get(name):
                raise UserError(
                    f"{self.path}: made with audio.{name}={theirs.get(name)}, now it is {ours[name]}; {self.advice}"
                )

    def check_parts(self, model: Path, needed: Sequence[str]) -> None:
        """UserError where a needed feature is missing, or the part that made a wanted one has changed since."""
        held = self.index["features"]
        for name in needed:
            if name not in held:
                raise UserError(f"{self.path}: holds {', '.join(held)}, but {name} is needed too; {self.advice}")
        for part, features in FEATURES.items():
            used = set(features) & set(self.features)
            if used and digest_of(model, part) != self.index.get("parts", {}).get(part):
                raise UserError(f"{self.path}: not of the {part} that {model} holds now; {self.advice}")

    def missing(self, members: Members) -> str | None:
        return None if "json" in members else "no json member"

    def load(
        self, shard: int, clip: int, with_sound: bool = True, with_images: bool = False, crop: Crop | None = None
    ) -> dict[str, Any]:
        key, members = self.locate(shard, clip)
        about = self.fields(key, "json", self.content(shard, key, members["json"]))
        if "bad" in about:
            raise BadClip(None if about.get("lost") else key, str(about["bad"]))
        fields, sums = about["clip"], about["crc32"]
        features: dict[str, np.ndarray] = {}
        for name in self.features:
            if f"{name}.npy" not in members:
                raise BadClip(key, f"no {name}.npy member")
            content = self.content(shard, key, members[f"{name}.npy"])
            if zlib.crc32(content) != sums.get(name):
                raise BadClip(key, f"damaged {name}.npy (its checksum is another)")
            features |= self.fields(key, f"{name}.npy", content)
        self.check_captions(key, fields, features)
        return {**fields, "features": features, "key": key}

    def check_captions(self, key: str, fields: dict[str, Any], features: dict[str, np.ndarray]) -> None:
        """BadClip where features (N, ...) are not of the clip's N captions, or of shapes unlike the first clip's."""
        try:
            num_captions = len(captions_of(fields))
        except ValueError as error:
            raise BadClip(key, str(error)) from None
        if any(np.shape(features[name])[:1] != (num_captions,) for name in TEXT_FEATURES if name in features):
            raise BadClip(key, "not a text feature for each caption")
        for name, value in features.items():  # those of a batch are stacked
            shape = value.shape[-1:] if name == "t5" else value.shape[name in TEXT_FEATURES :]
            if self.shapes.setdefault(name, shape) != shape:
                raise BadClip(key, f"{name} of another shape ({shape}, not {self.shapes[name]})")

    def decode(self, suffix: str, content: bytes) -> dict[str, Any]:
        if suffix == "json":
            about = decode_json(content)
            if "bad" not in about and not all(isinstance(about.get(name), dict) for name in ("clip", "crc32")):
                raise ValueError("no fields of an encoded clip")
            return about
        return {suffix.removesuffix(".npy"): decode_array(content)}


def digest_of(model: Path, part: str) -> str | None:
    """sha256 of a part's files in the model folder, names and bytes; None where it is not there."""
    from audioldm2_pl.hub.parts import GROUPS

    digest = hashlib.sha256()
    for folder in GROUPS[part]:
        if not (model / folder).is_dir():
            return None
        update_from_folder(digest, model / folder, model)
    return digest.hexdigest()


def npy_bytes(array: np.ndarray) -> bytes:
    """An array (...) as an .npy file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def members_of(fields: Mapping[str, Any], features: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """A clip's members by suffix, out of its features (...): what `EncodedFolder.load` reads."""
    arrays = {name: npy_bytes(array) for name, array in features.items()}
    about = {"clip": fields, "crc32": {name: zlib.crc32(array) for name, array in arrays.items()}}
    return {
        "json": json.dumps(about, sort_keys=True).encode(),
        **{f"{name}.npy": array for name, array in arrays.items()},
    }


def bad_members(key: str | None, reason: str) -> dict[str, bytes]:
    """The members of a clip that could not be used."""
    return {"json": json.dumps({"bad": reason, "lost": key is None}, sort_keys=True).encode()}


def choose_caption(features: Mapping[str, np.ndarray], caption: int) -> dict[str, Tensor]:
    """A clip's features, of the shapes above, as tensors; of the texts the features of one caption, (D,) or (L, D)."""
    chosen = {name: value[caption] if name in TEXT_FEATURES else value for name, value in features.items()}
    if "t5" in chosen:
        chosen["t5"] = chosen["t5"][: int(chosen.pop("t5_length"))]
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in chosen.items()}


def stack_features(clips: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Clips' features as a batch, each (B, ...); T5's (B, L, D) padded to the longest, with "t5_mask" (B, L)."""
    batch: dict[str, Tensor] = {}
    for name in clips[0]:
        rows = [clip[name] for clip in clips]
        if name == "t5":
            lengths = torch.tensor([len(row) for row in rows])
            batch["t5_mask"] = torch.arange(int(lengths.max())) < lengths[:, None]
            batch["t5"] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        else:
            batch[name] = torch.stack(rows)
    return batch
