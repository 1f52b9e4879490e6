"""What the frozen parts say of every training clip, computed once: shards of features beside the shards of sound.

    python -m data.encode experiments/x.yaml [key=value ...]

writes for each folder of `data.train` the folder of features that `data.encoded` names, or `<folder>.encoded`; the
stages ldm, gpt2 and joint then read it with `data.encoded=[...]`. The format is `audioldm2_pl.shards.encoded`'.
Encoded is what is in runs/<name>/model and does not train any more; what will still train is left out with a line.

Runs on all devices of `trainer`, under torchrun on all ranks; whole shards are dealt to them. A broken-off run goes on
with the shards that it lacks. Features are float16 unless --dtype says otherwise: AudioMAE's grid alone is 1.6 MB a
clip in float32, and float16 keeps 11 bits where the bf16-mixed training that reads them keeps 8.
"""

import argparse
import dataclasses
import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from audioldm2_pl.audio import Fbank, LogMel
from audioldm2_pl.config import ExperimentConfig, load_experiment
from audioldm2_pl.errors import UserError, run_tool
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.shards.datamodule import AudioShards, ClipStream
from audioldm2_pl.shards.encoded import FEATURES, FRONT_END, bad_members, digest_of, members_of
from audioldm2_pl.shards.reader import SHARD_FORMAT, BadClip, ShardFolder, captions_of
from audioldm2_pl.training.ldm import encode_latent
from audioldm2_pl.training.ranks import build_trainer, first_on_rank_zero, is_rank_zero, start_ranks
from audioldm2_pl.training.run import prepare_process

from .shards import write_json

BATCH_SIZE = 16
DTYPES = {"float16": np.float16, "float32": np.float32}
TRAINED_BY = {"vae": "vae", "audiomae": "audiomae", "clap": "clap"}  # part -> its stage
SOUND = ("waveform", "sample_rate", "txt")  # fields of a clip that do not go into the features' JSON


def parts_to_encode(experiment: ExperimentConfig, folder: ModelFolder) -> tuple[dict[str, str], list[str]]:
    """The parts that can be encoded with the digest of each, and for each other one a line that says why not."""
    parts: dict[str, str] = {}
    lines = []
    for part in FEATURES:
        stage = TRAINED_BY.get(part)
        finished = (experiment.run_folder / "stages" / f"{stage}.json").is_file()
        if part == "t5" and experiment.is_speech:
            lines.append("t5: left out, speech has phonemes, whose encoder trains")
        elif part == "t5" and experiment.conditioners.t5.pretrained is None and not folder.is_given("t5"):
            lines.append("t5: left out, it trains (conditioners.t5.pretrained is null)")
        elif stage in experiment.stages and part not in folder.given and not finished:
            lines.append(f"{part}: left out, its stage has not finished")
        elif (digest := digest_of(folder.path, part)) is None:
            lines.append(f"{part}: left out, it is not in {folder.path}")
        else:
            parts[part] = digest
    return parts, lines


class Encoder(L.LightningModule):
    """Batches of whole clips => features by name, each (B, ...); of the captions a list with an entry for each clip."""

    def __init__(self, experiment: ExperimentConfig, folder: ModelFolder, parts: Iterable[str]):
        super().__init__()
        self.sample_rate = experiment.audio.sample_rate
        self.hears = experiment.is_speech or experiment.unet.film_dim is not None  # CLAP the sound, not the captions
        networks: dict[str, Any] = {"log_mel": LogMel(experiment.audio), "fbank": Fbank(experiment.audio)}
        load = {"clap": folder.clap, "t5": folder.words}
        networks |= {part: load[part]() if part in load else folder.load(part) for part in parts}
        self.networks = torch.nn.ModuleDict(networks).eval().requires_grad_(False)

    def has(self, part: str) -> bool:
        return part in self.networks

    def forward(self, waveform: Tensor) -> dict[str, Tensor]:
        """waveform (B, T) => what the parts hear in it."""
        n: Any = self.networks
        features: dict[str, Tensor] = {}
        if self.has("vae"):
            features |= encode_latent(n, waveform)
        if self.has("audiomae"):
            features["grid"] = n["audiomae"].features(n["fbank"](waveform))
        if self.has("clap") and self.hears:
            features["clap"] = n["clap"].encode_audio(waveform, self.sample_rate).embedding[:, 0]
        return features

    def read(self, captions: list[list[str]]) -> list[dict[str, np.ndarray]]:
        """Each clip's captions => what the parts read in them."""
        n: Any = self.networks
        clips: list[dict[str, np.ndarray]] = [{} for _ in captions]
        texts = [text for clip in captions for text in clip]
        ends = np.cumsum([len(clip) for clip in captions])
        rows = [slice(end - len(clip), end) for clip, end in zip(captions, ends)]
        if self.has("clap") and not self.hears:
            embedding = to_numpy(n["clap"].encode_text(texts).embedding[:, 0])
            for clip, own in zip(clips, rows):
                clip["clap_text"] = embedding[own]
        if self.has("t5"):
            condition = n["t5"](texts)
            states, mask = to_numpy(condition.embedding), condition.mask.cpu().numpy().astype(bool)
            for clip, own in zip(clips, rows):
                lengths = mask[own].sum(1)
                longest = int(lengths.max())
                clip["t5"] = np.where(mask[own, :longest, None], states[own, :longest], 0)
                clip["t5_length"] = lengths.astype(np.int32)
        return clips

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[dict[str, np.ndarray]]:
        if not batch["key"]:
            return []
        heard = {name: to_numpy(value) for name, value in self(batch["waveform"]).items()}
        read = self.read(batch["captions"])
        return [{**{name: value[i] for name, value in heard.items()}, **read[i]} for i in range(len(read))]


def to_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


class ShardBatches(IterableDataset):
    """A rank's shards in batches that end with their shard: a clip's number in it goes along, bad ones too."""

    def __init__(self, stream: ClipStream, shards: Sequence[tuple[int, int]], batch_size: int):
        self.stream = stream  # prepares the clips
        self.shards = shards  # (folder, shard)
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        for f, shard in self.shards[worker.id :: worker.num_workers] if worker else self.shards:
            count = self.stream.folders[f].counts[shard]
            for start in range(0, max(1, count), self.batch_size):
                yield self.batch(f, shard, range(start, min(count, start + self.batch_size)))

    def batch(self, f: int, shard: int, numbers: range) -> dict[str, Any]:
        batch: dict[str, Any] = {"key": [], "captions": [], "fields": [], "bad": {}, "numbers": list(numbers)}
        waveforms = []
        for number in numbers:
            try:
                clip = self.stream.folders[f].load_audible(shard, number)
                waveform = self.stream.prepare(clip, number)["waveform"]
            except BadClip as bad:
                batch["bad"][number] = (bad.key, bad.reason)
                continue
            waveforms.append(waveform)
            batch["key"].append(clip["key"])
            batch["captions"].append(captions_of(clip))
            batch["fields"].append(
                {k: v for k, v in clip.items() if k not in (*SOUND, "key") and not isinstance(v, np.ndarray)}
            )
        waveform = torch.stack(waveforms) if waveforms else torch.zeros(0, self.stream.num_samples)
        last = numbers.stop >= self.stream.folders[f].counts[shard]
        return {**batch, "waveform": waveform, "place": (f, shard), "last": last}


class ShardWriter(L.Callback):
    """Batches => tars, each with a note beside it once it is whole; the notes make the index at the end."""

    def __init__(self, outputs: Sequence[Path], sources: Sequence[ShardFolder], provenance: dict[str, Any]):
        self.outputs = outputs
        self.sources = sources
        self.provenance = provenance
        self.dtype = DTYPES[provenance["dtype"]]
        self.open: dict[tuple[int, int], tarfile.TarFile] = {}
        self.bad: dict[tuple[int, int], list[dict[str, Any]]] = {}
        self.features: set[str] = set()

    def path(self, place: tuple[int, int]) -> Path:
        f, shard = place
        return self.outputs[f] / self.sources[f].index["shards"][shard]["name"]

    def note(self, place: tuple[int, int]) -> dict[str, Any] | None:
        """What was noted of a shard that is there, whole and of this provenance; None if it has to be made."""
        path = self.path(place)
        try:
            note = json.loads(note_path(path).read_text())
            whole = path.stat().st_size == note["bytes"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return note if whole and note["provenance"] == self.provenance | self.source(place) else None

    def source(self, place: tuple[int, int]) -> dict[str, Any]:
        entry = self.sources[place[0]].index["shards"][place[1]]
        return {"source_sha256": entry.get("sha256"), "num_clips": entry["num_clips"]}

    def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        place = tuple(batch["place"])
        if place not in self.open:
            self.open[place] = tarfile.open(part_path(self.path(place)), "w")  # noqa: SIM115
            self.bad[place] = []
        good = iter(zip(batch["key"], batch["fields"], outputs))
        for number in batch["numbers"]:
            if number in batch["bad"]:
                key, reason = batch["bad"][number]
                self.bad[place].append({"clip": number, "key": key, "reason": reason})
                self.add(place, key or f"lost__{number}", bad_members(key, reason))
                continue
            key, fields, features = next(good)
            self.features |= features.keys()
            self.add(place, key, members_of(fields, self.cast(key, features)))
        if batch["last"]:
            self.close(place)

    def cast(self, key: str, features: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Features as they are stored. UserError where they leave the range of the type."""
        with np.errstate(over="ignore"):
            cast = {k: v.astype(self.dtype) if v.dtype.kind == "f" else v for k, v in features.items()}
        for name, value in cast.items():
            if not np.isfinite(value).all():
                raise UserError(f"clip {key}: its {name} is too large for {self.dtype.__name__} or no number; "
                                "try --dtype float32, or train the part anew")  # fmt: skip
        return cast

    def add(self, place: tuple[int, int], key: str, members: dict[str, bytes]) -> None:
        for suffix, content in members.items():
            member = tarfile.TarInfo(f"{key}.{suffix}")
            member.size = len(content)
            self.open[place].addfile(member, io.BytesIO(content))
        self.open[place].members.clear()  # type: ignore[attr-defined]  # tarfile would keep a name for every member

    def close(self, place: tuple[int, int]) -> None:
        self.open.pop(place).close()
        part, path = part_path(self.path(place)), self.path(place)
        digest = hashlib.sha256()
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
            os.fsync(file.fileno())
        note = {
            "provenance": self.provenance | self.source(place),
            "features": sorted(self.features),
            "bytes": part.stat().st_size,
            "sha256": digest.hexdigest(),
            "bad": self.bad.pop(place),
        }
        note_path(path).unlink(missing_ok=True)  # a note never stands beside another shard's tar
        part.replace(path)
        write_json(note_path(path), note)

    def finish(self, f: int) -> dict[str, Any]:
        """The folder's index, out of the notes, which are then removed."""
        source = self.sources[f].index
        notes = [self.note((f, shard)) for shard in range(len(source["shards"]))]
        if not all(notes):
            raise UserError(f"{self.outputs[f]}: not all shards are there; run the same command again")
        shards = [
            {"name": entry["name"], "num_clips": entry["num_clips"], "seconds": entry.get("seconds", 0.0),
             "sha256": note["sha256"], "source_sha256": entry.get("sha256"), "bytes": note["bytes"], "bad": note["bad"]}
            for entry, note in zip(source["shards"], notes) if note
        ]  # fmt: skip
        index = {
            key: source[key] for key in ("sample_rate", "num_clips", "seconds", "longest_seconds") if key in source
        }
        features = sorted({name for note in notes if note for name in note["features"]})
        index |= {"format": SHARD_FORMAT, **self.provenance, "features": features, "shards": shards}
        write_json(self.outputs[f] / "index.json", index)
        for path in self.outputs[f].glob("*.tar"):
            if path.name not in {shard["name"] for shard in shards}:  # of shards that the source had before
                path.unlink()
        for shard in range(len(shards)):
            note_path(self.path((f, shard))).unlink()
        return index


def part_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def note_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.json")


def is_current(writer: ShardWriter, f: int) -> bool:
    """Whether a folder has been encoded to its end from these shards by these parts."""
    try:
        index = json.loads((writer.outputs[f] / "index.json").read_text())
        same = all(index[key] == value for key, value in writer.provenance.items())
        made = [{key: shard[key] for key in ("source_sha256", "num_clips")} for shard in index["shards"]]
        whole = all((writer.outputs[f] / s["name"]).stat().st_size == s["bytes"] for s in index["shards"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return same and whole and made == [writer.source((f, s)) for s in range(len(writer.sources[f].counts))]


def output_folders(experiment: ExperimentConfig) -> list[Path]:
    """`data.encoded`, or for each train folder one beside it. UserError for a URL."""
    names = experiment.data.encoded or [f"{path.rstrip('/')}.encoded" for path in experiment.data.train]
    for name in names:
        if "://" in name or name.startswith("pipe:"):
            raise UserError(f"{name}: features are written to local folders; name them with data.encoded=[FOLDER]")
    return [Path(name) for name in names]


def encode_experiment(experiment: ExperimentConfig, batch_size: int = BATCH_SIZE, dtype: str = "float16") -> list[Path]:
    """Encodes the experiment's training clips and returns the folders of features.

    Raises UserError where no part is ready, or clips are longer than a training clip.
    """
    prepare_process(experiment)
    start_ranks(experiment.trainer)
    outputs = output_folders(experiment)
    data = AudioShards(experiment.data, experiment.audio, 0, batch_size)
    data.check_whole("cropped clips have other features at every draw, so they cannot be encoded")
    folder = ModelFolder(experiment.model_folder, experiment.from_, experiment.start_from)
    first_on_rank_zero(folder.take_given)
    first_on_rank_zero(lambda: folder.take_pretrained(experiment.conditioners))
    parts, lines = parts_to_encode(experiment, folder)
    if is_rank_zero():
        print(*lines, sep="\n", end="\n" if lines else "")
    if not {"vae", "audiomae"} & parts.keys():
        raise UserError(f"{folder.path}: neither vae nor audiomae is ready; train their stages first")
    provenance = {
        "dtype": dtype,
        "front_end": FRONT_END,
        "audio": json.loads(json.dumps(dataclasses.asdict(experiment.audio))),
        "parts": parts,
    }
    writer = ShardWriter(outputs, data.train, provenance)
    todo = [f for f in range(len(outputs)) if not is_current(writer, f)]
    first_on_rank_zero(lambda: prepare_outputs([outputs[f] for f in todo]))
    places = [(f, s) for f in todo for s in range(len(data.train[f].counts)) if not writer.note((f, s))]
    if places:
        predict(experiment, Encoder(experiment, folder, parts), data, places, batch_size, writer)
    if is_rank_zero():
        for f, output in enumerate(outputs):
            index = writer.finish(f) if f in todo else json.loads((output / "index.json").read_text())
            print(summary(output, index, f in todo))
        print(f"read them with data.encoded=[{','.join(map(str, outputs))}]")
    return outputs


def prepare_outputs(outputs: Sequence[Path]) -> None:
    """Makes the folders; an index of other features goes first, so that nobody reads what is half replaced."""
    for output in outputs:
        index = output / "index.json"
        begun = any(output.glob(".*.tar.json")) or not any(output.glob("[!.]*"))
        if not begun and not (index.is_file() and '"source_sha256"' in index.read_text()):
            raise UserError(f"{output}: holds something other than encoded clips; name another folder in data.encoded")
        output.mkdir(parents=True, exist_ok=True)
        index.unlink(missing_ok=True)


def predict(
    experiment: ExperimentConfig,
    encoder: Encoder,
    data: AudioShards,
    places: list[tuple[int, int]],
    batch_size: int,
    writer: ShardWriter,
) -> None:
    """Encodes the shards at `places`, on each rank every world_size-th, and waits for all ranks."""
    trainer = build_trainer(experiment.trainer, callbacks=[writer], logger=False)
    own = places[trainer.global_rank :: trainer.world_size]
    stream = data.stream(data.train, data.quarantine, None)
    loader = DataLoader(ShardBatches(stream, own, batch_size), batch_size=None, num_workers=experiment.data.num_workers)
    trainer.predict(encoder, loader, return_predictions=False)
    trainer.strategy.barrier()


def summary(output: Path, index: dict[str, Any], new: bool) -> str:
    num_bad = sum(len(shard["bad"]) for shard in index["shards"])
    size = sum(shard["bytes"] for shard in index["shards"]) / 2**20
    left_out = f", {num_bad} of them bad" if num_bad else ""
    state = "" if new else " (up to date)"
    names = ", ".join(index["features"])
    return f"{output}: {names} of {index['num_clips']} clips{left_out}, {size:.1f} MiB, {index['dtype']}{state}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path, metavar="EXPERIMENT.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the experiment")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, metavar="N", help="clips at a time")
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="of the stored features")
    arguments = parser.parse_intermixed_args(argv)

    def body() -> None:
        if arguments.batch_size < 1:
            raise UserError("--batch-size is at least 1")
        encode_experiment(
            load_experiment(arguments.experiment, arguments.overrides), arguments.batch_size, arguments.dtype
        )

    return run_tool(body)


if __name__ == "__main__":
    sys.exit(main())
