"""Precomputes what the frozen parts make of every training clip: shards of features beside the shards of sound.

    python -m data.encode experiments/x.yaml [key=value ...]

writes for each folder of `data.train` the folder of features that `data.encoded` names, or `<folder>.encoded`; the
stages ldm, gpt2 and joint then read it with `data.encoded=[...]`. The format is `audioldm2_pl.shards.encoded`'.
Encoded is what is in runs/<name>/model and does not train any more; what will still train is left out with a line.

Runs on all devices of `trainer`, under torchrun on all ranks; whole shards are assigned to them. An interrupted run
resumes with the shards that are missing. Features are float16 unless --dtype says otherwise: AudioMAE's grid alone is
1.6 MB a clip in float32, and float16 keeps 11 bits where the bf16-mixed training that reads them keeps 8.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from audioldm2_pl.conditioners.config import CONDITIONS
from audioldm2_pl.config import ExperimentConfig, load_experiment
from audioldm2_pl.errors import UserError, run_tool
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.shards.datamodule import AudioShards
from audioldm2_pl.shards.encoded import FEATURES, FRONT_END, digest_of
from audioldm2_pl.shards.format import BadClip, captions_of
from audioldm2_pl.shards.stream import ClipStream
from audioldm2_pl.training.audio_encoder import AudioEncoder
from audioldm2_pl.training.conditions import is_frozen, open_conditioners, sound_features
from audioldm2_pl.training.ranks import build_trainer, is_rank_zero, rank_zero_first, start_ranks
from audioldm2_pl.training.run import prepare_process

from .feature_writer import DTYPES, FeatureFolder, FeatureWriter

BATCH_SIZE = 16
SOUND = ("waveform", "sample_rate", "txt")  # fields of a clip that do not go into the features' JSON


def parts_to_encode(experiment: ExperimentConfig, folder: ModelFolder) -> tuple[dict[str, str], list[str]]:
    """The parts that can be encoded with the digest of each, and for each other one a line that says why not."""
    parts: dict[str, str] = {}
    lines = []
    for part in ("vae", *(("audiomae",) if experiment.uses_loa else ()), *experiment.condition_names):
        finished = (experiment.run_folder / "stages" / f"{part}.json").is_file()
        trains = part in CONDITIONS and not is_frozen(experiment.conditioners, folder, part)
        if trains:
            lines.append(f"{part}: left out, it trains (conditioners.{part} has no pretrained weights)")
        elif part in experiment.stages and part not in folder.given and not finished:
            lines.append(f"{part}: left out, its stage has not finished")
        elif part not in FEATURES:
            lines.append(f"{part}: left out, its outputs are not stored")
        elif (digest := digest_of(folder.path, part)) is None:
            lines.append(f"{part}: left out, it is not in {folder.path}")
        else:
            parts[part] = digest
    return parts, lines


class Encoder(L.LightningModule):
    """Batches of whole clips => features by name, each (B, ...); of the captions a list with an entry for each clip."""

    def __init__(self, experiment: ExperimentConfig, folder: ModelFolder, parts: Iterable[str]):
        super().__init__()
        parts = list(parts)
        vae, audiomae = (folder.load(name) if name in parts else None for name in ("vae", "audiomae"))
        self.audio_encoder = AudioEncoder(experiment.audio, vae, audiomae)
        names = [name for name in parts if name in CONDITIONS]
        self.conditioners = torch.nn.ModuleDict(open_conditioners(experiment, folder, names))  # type: ignore[arg-type]
        self.conditioners.eval().requires_grad_(False)

    def forward(self, waveform: Tensor) -> dict[str, Tensor]:
        """waveform (B, T) => the features of the sound by name, (B, ...)."""
        inputs = {"waveform": waveform, "sample_rate": self.audio_encoder.audio.sample_rate}
        return self.audio_encoder.features(waveform) | sound_features(dict(self.conditioners.items()), inputs)

    def encode_captions(self, captions: list[list[str]]) -> list[dict[str, np.ndarray]]:
        """Each clip's captions => their features by name, (captions, ...)."""
        clips: list[dict[str, np.ndarray]] = [{} for _ in captions]
        texts = [text for clip in captions for text in clip]
        ends = np.cumsum([len(clip) for clip in captions])
        rows = [slice(end - len(clip), end) for clip, end in zip(captions, ends)]
        conditioners: Any = self.conditioners.values()
        for conditioner in conditioners:
            if conditioner.reads != "text":
                continue
            condition = conditioner.encode({"text": texts})
            states, mask = to_numpy(condition.embedding), condition.mask.cpu().numpy().astype(bool)
            name, *length = conditioner.stored
            for clip, own in zip(clips, rows):
                if not length:  # one vector a caption
                    clip[name] = states[own, 0]
                    continue
                lengths = mask[own].sum(1)
                longest = int(lengths.max())
                clip[name] = np.where(mask[own, :longest, None], states[own, :longest], 0)
                clip[length[0]] = lengths.astype(np.int32)
        return clips

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[dict[str, np.ndarray]]:
        if not batch["key"]:
            return []
        sound = {name: to_numpy(value) for name, value in self(batch["waveform"]).items()}
        texts = self.encode_captions(batch["captions"])
        return [{**{name: value[i] for name, value in sound.items()}, **text} for i, text in enumerate(texts)]


def to_numpy(tensor: Tensor) -> np.ndarray:
    """(...) => float32 (...) in memory."""
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
                waveform = self.stream.prepare(clip, self.stream.rng(number))["waveform"]
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
        return {**batch, "waveform": waveform, "shard": (f, shard), "last": last}


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
    links = experiment.adapter is not None
    model = ModelFolder(experiment.model_folder, experiment.from_, experiment.start_from, links)
    rank_zero_first(model.take_given)
    rank_zero_first(lambda: model.take_pretrained(experiment.conditioners, experiment.condition_names))
    parts, lines = parts_to_encode(experiment, model)
    if is_rank_zero():
        print(*lines, sep="\n", end="\n" if lines else "")
    if not {"vae", "audiomae"} & parts.keys():
        raise UserError(f"{model.path}: neither vae nor audiomae is ready; train their stages first")
    audio = json.loads(json.dumps(dataclasses.asdict(experiment.audio)))
    provenance = {"dtype": dtype, "front_end": FRONT_END, "audio": audio, "parts": parts}
    folders = [FeatureFolder(path, source, provenance) for path, source in zip(outputs, data.train)]
    todo = [folder for folder in folders if not folder.is_current()]
    rank_zero_first(lambda: [folder.prepare() for folder in todo])
    shards = [(f, shard) for f, folder in enumerate(folders) if folder in todo for shard in folder.missing()]
    if shards:
        trainer = build_trainer(experiment.trainer, callbacks=[FeatureWriter(folders, dtype)], logger=False)
        own = ShardBatches(data.clip_stream(), shards[trainer.global_rank :: trainer.world_size], batch_size)
        loader = DataLoader(own, batch_size=None, num_workers=experiment.data.num_workers)
        trainer.predict(Encoder(experiment, model, parts), loader, return_predictions=False)
        trainer.strategy.barrier()
    if is_rank_zero():
        for folder in todo:
            folder.finish()
        print(*(folder.summary(folder in todo) for folder in folders), sep="\n")
        print(f"read them with data.encoded=[{','.join(map(str, outputs))}]")
    return outputs


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
