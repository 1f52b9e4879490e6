"""How often the protocol `music` is right on renderings whose tempo and key are known: docs/results/scores.json.

    python tests/benchmarks/music_scores.py [--clips 120] [--seed 0]

These are the ceilings of generated music's scores: a perfect generator reaches no more.
"""

import argparse
import csv
import json
import tempfile
from pathlib import Path

import soundfile

from audioldm2_pl.shards.reader import ShardFolder
from data.scores import main as scores
from evaluation.pairs import Inputs
from evaluation.score import ScoreOptions, score_folders

OUTPUT = Path("docs/results/scores.json")


def write_clips(split: Path, folder: Path) -> None:
    """folder/audio/<key>.wav and folder/labels.csv, a row each for tempo and key."""
    (folder / "audio").mkdir()
    shards = ShardFolder(split)
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["filename", "label"])
        for shard, num_clips in enumerate(shards.counts):
            for number in range(num_clips):
                clip = shards.read(shard, number)
                name = f"{clip['key']}.wav"
                soundfile.write(folder / "audio" / name, clip["waveform"], clip["sample_rate"])
                known = [f"{clip['tempo_bpm']} BPM", clip["musical_key"]]
                table.writerows([name, label] for label in known if label)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=120, help="of each of test and judge, which training never sees")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    measured = {}
    with tempfile.TemporaryDirectory() as name:
        number, seed = str(arguments.clips), str(arguments.seed)
        words = ["--clips", "0", "--test-clips", number, "--judge-clips", number, "--seed", seed]
        assert scores([name, *words]) == 0
        for split in ("test", "judge"):
            folder = Path(name) / f"{split}_clips"
            folder.mkdir()
            write_clips(Path(name) / split, folder)
            inputs = Inputs(folder / "audio", labels=folder / "labels.csv")
            result, samples = score_folders(inputs, "music", ScoreOptions())
            measured[split] = {
                score: {key: round(found[key], 3) for key in ("value", "low", "high")}
                | {"clips": len(samples[f"{score}/values"])}
                for score, found in result["scores"].items()
            }
    OUTPUT.write_text(json.dumps({"clips": arguments.clips, "seed": arguments.seed, **measured}, indent=1) + "\n")
    print(OUTPUT.read_text())


if __name__ == "__main__":
    main()
