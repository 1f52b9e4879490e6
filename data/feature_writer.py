"""Folders of features while `python -m data.encode` writes them: whole shards, each with a note beside it once it is
whole; the notes make the index at the end. Several ranks may write one folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np

from audioldm2_pl.atomic import write_text
from audioldm2_pl.errors import UserError
from audioldm2_pl.shards.encoded import bad_members, members_of
from audioldm2_pl.shards.format import SHARD_FORMAT
from audioldm2_pl.shards.members import pack
from audioldm2_pl.shards.reader import ShardFolder

from .writer import TarWriter, write_index, write_members

DTYPES = {"float16": np.float16, "float32": np.float32}


class FeatureFolder:
    """The features of one folder of shards; `provenance` is what they depend on beside the clips."""

    def __init__(self, path: Path, source: ShardFolder, provenance: dict[str, Any]):
        self.path = path
        self.source = source
        self.provenance = provenance
        self.entries: list[dict[str, Any]] = source.index["shards"]

    def shard_path(self, shard: int) -> Path:
        return self.path / self.entries[shard]["name"]

    def note_path(self, shard: int) -> Path:
        return self.path / f".{self.entries[shard]['name']}.json"

    def origin(self, shard: int) -> dict[str, Any]:
        """The shard of sound that features are of."""
        entry = self.entries[shard]
        return {"source_sha256": entry.get("sha256"), "num_clips": entry["num_clips"]}

    def members_path(self, shard: int) -> Path:
        """Where a shard's members lie, until all shards' do in one file."""
        return self.path / f".{self.entries[shard]['name']}.members"

    def note(self, shard: int) -> dict[str, Any] | None:
        """The note of a shard that is whole and of this provenance; None for one that has yet to be written."""
        try:
            note = json.loads(self.note_path(shard).read_text())
            is_whole = self.shard_path(shard).stat().st_size == note["bytes"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return note if is_whole and note["provenance"] == self.provenance | self.origin(shard) else None

    def missing(self) -> list[int]:
        return [shard for shard in range(len(self.entries)) if not self.note(shard)]

    def read_index(self) -> dict[str, Any]:
        return json.loads((self.path / "index.json").read_text())

    def is_current(self) -> bool:
        """Whether all features of these shards, by these parts, are here."""
        try:
            index = self.read_index()
            is_same = all(index[key] == value for key, value in self.provenance.items())
            origins = [{key: shard[key] for key in ("source_sha256", "num_clips")} for shard in index["shards"]]
            is_whole = all((self.path / shard["name"]).stat().st_size == shard["bytes"] for shard in index["shards"])
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return is_same and is_whole and origins == [self.origin(shard) for shard in range(len(self.entries))]

    def prepare(self) -> None:
        """Makes the folder; an index of other features goes first, so that nobody reads what is half replaced."""
        index = self.path / "index.json"
        has_begun = any(self.path.glob(".*.tar.json")) or not any(self.path.glob("[!.]*"))
        if not has_begun and not (index.is_file() and '"source_sha256"' in index.read_text()):
            raise UserError(
                f"{self.path}: holds something other than encoded clips; name another folder in data.encoded"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        index.unlink(missing_ok=True)

    def finish(self) -> None:
        """Writes the index out of the notes, which are then removed."""
        notes = [note for shard in range(len(self.entries)) if (note := self.note(shard))]
        if len(notes) < len(self.entries):
            raise UserError(f"{self.path}: not all shards are there; run the same command again")
        shards = [
            {key: entry[key] for key in ("name", "num_clips")}
            | {"seconds": entry.get("seconds", 0.0), "source_sha256": entry.get("sha256")}
            | {key: note[key] for key in ("sha256", "bytes", "bad")}
            | place
            for entry, note, place in zip(self.entries, notes, self.join_members())
        ]
        names = ("sample_rate", "num_clips", "seconds", "longest_seconds")
        index = {key: self.source.index[key] for key in names if key in self.source.index}
        features = sorted({name for note in notes for name in note["features"]})
        write_index(
            self.path, index | {"format": SHARD_FORMAT, **self.provenance, "features": features, "shards": shards}
        )
        for path in self.path.glob("*.tar"):
            if path.name not in {shard["name"] for shard in shards}:  # of shards that the source had before
                path.unlink()
        for shard in range(len(shards)):
            self.note_path(shard).unlink()
            self.members_path(shard).unlink(missing_ok=True)

    def join_members(self) -> list[dict[str, Any]]:
        paths = [self.members_path(shard) for shard in range(len(self.entries))]
        return write_members(self.path, [path.read_bytes() if path.is_file() else None for path in paths])

    def summary(self, is_new: bool) -> str:
        index = self.read_index()
        num_bad = sum(len(shard["bad"]) for shard in index["shards"])
        size = sum(shard["bytes"] for shard in index["shards"]) / 2**20
        left_out = f", {num_bad} of them bad" if num_bad else ""
        state = "" if is_new else " (up to date)"
        names = ", ".join(index["features"])
        return f"{self.path}: {names} of {index['num_clips']} clips{left_out}, {size:.1f} MiB, {index['dtype']}{state}"


class FeatureWriter(L.Callback):
    """Writes what an `Encoder` predicts, batch after batch of one or several shards."""

    def __init__(self, folders: Sequence[FeatureFolder], dtype: str):
        self.folders = folders
        self.dtype = DTYPES[dtype]
        self.open: dict[
            tuple[int, int], tuple[TarWriter, list[dict[str, Any]]]
        ] = {}  # of a shard its tar and bad clips
        self.features: set[str] = set()

    def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        f, shard = batch["shard"]
        if (f, shard) not in self.open:
            path = self.folders[f].shard_path(shard)
            self.open[f, shard] = TarWriter(path.with_name(f".{path.name}.part")), []
        tar, bad = self.open[f, shard]
        good = iter(zip(batch["key"], batch["fields"], outputs))
        for number in batch["numbers"]:
            if number in batch["bad"]:
                key, reason = batch["bad"][number]
                bad.append({"clip": number, "key": key, "reason": reason})
                tar.add(key or f"lost__{number}", bad_members(key, reason))
                continue
            key, fields, features = next(good)
            self.features |= features.keys()
            tar.add(key, members_of(fields, self.cast(key, features)))
        if batch["last"]:
            self.close(f, shard)

    def cast(self, key: str, features: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Features, each of any shape, as they are stored. UserError where they leave the range of the type."""
        with np.errstate(over="ignore"):
            cast = {k: v.astype(self.dtype) if v.dtype.kind == "f" else v for k, v in features.items()}
        for name, value in cast.items():
            if not np.isfinite(value).all():
                raise UserError(
                    f"clip {key}: its {name} is too large for {self.dtype.__name__} or no number; "
                    "try --dtype float32, or train the part anew"
                )
        return cast

    def close(self, f: int, shard: int) -> None:
        folder, (tar, bad) = self.folders[f], self.open.pop((f, shard))
        size, sha256 = tar.close()
        note = {
            "provenance": folder.provenance | folder.origin(shard),
            "features": sorted(self.features),
            "bytes": size,
            "sha256": sha256,
            "bad": bad,
        }
        folder.note_path(shard).unlink(missing_ok=True)  # a note never stands beside another shard's tar
        folder.members_path(shard).write_bytes(pack(tar.clips))
        tar.path.replace(folder.shard_path(shard))
        write_text(folder.note_path(shard), json.dumps(note))
