"""Clips a second of `evaluation.score` beside frechet-audio-distance's own loop: `make bench-eval` prints the table.

Both sides read the same files with the same full-size random weights, opened from files in the published layouts, and
take turns at chunks of the clips, so that a busy machine slows both. Loading a model is not timed. Beside that: the
peak memory of our side after 20, 50 and 100 % of the clips, each model in a process of its own.
"""

import argparse
import contextlib
import csv
import io
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
import soundfile
import torch
from torch import nn

from audioldm2_pl.conditioners.tokenizers import build_roberta_tokenizer
from evaluation.libraries import import_library, versions
from evaluation.metrics.embeddings import BACKENDS, Backend, Embedder
from evaluation.metrics.embeddings.frechet_audio_distance import import_frechet_audio_distance
from evaluation.metrics.embeddings.laion_clap import TEXT_ENCODER, TOKENIZER, build_module, roberta
from evaluation.metrics.embeddings.vggish import VGGish
from evaluation.pairs import Inputs
from evaluation.score import ScoreOptions, score_folders

SEED = 0
RATE, SECONDS = 16_000, 10
WEIGHTS = {
    "vggish": "vggish-10086976.pth",
    "panns": "Cnn14_mAP=0.431.pth",
    "clap": "music_speech_audioset_epoch_15_esc_89.98.pt",
    "passt": "passt-s-f128-p16-s10-ap.476-swa.pt",
}
KINDS = {"vggish": "frechet", "panns": "kl", "clap": "clap", "passt": "kl"}
OURS = "score_folders: decode and resample (soxr) in 4 threads ahead, batches of 8 clips; "
THEIRS = "its load_audio_task (soundfile, resampy) in 8 threads over all files, then one clip at a time; "
WORK = {
    "vggish": {
        "ours": OURS + "both folders, FAD, FAD against n",
        "theirs": "FrechetAudioDistance.score of both folders: " + THEIRS + "FAD. Its VGGish is remote code of a hub: "
        "here it is handed ours, whose log-mel is torch instead of numpy",
    },
    "panns": {
        "ours": OURS + "both folders, KL of the tag posteriors",
        "theirs": "get_embeddings of FrechetAudioDistance('pann') on both folders: " + THEIRS + "no KL, which it lacks",
    },
    "clap": {
        "ours": OURS + "generated folder and its captions, CLAP score",
        "theirs": "CLAPScore.score: " + THEIRS + "captions in one batch, CLAP score",
    },
    "passt": {
        "ours": OURS + "both folders, KL of the tag posteriors",
        "theirs": "the package has no PaSST: its loader and its loop around hear21passt's model; no KL",
    },
}


def write_clips(folder: Path, count: int, chunk: int) -> list[Path]:
    """`count` pairs of clips in folders of `chunk`: each has generated/, reference/ and captions.csv."""
    draw, times = np.random.default_rng(SEED), np.arange(RATE * SECONDS) / RATE
    chunks = []
    for number in range(count):
        where = folder / f"chunk_{number // chunk:03}"
        for side in ("reference", "generated"):
            (where / side).mkdir(parents=True, exist_ok=True)
            tone = 0.3 * np.sin(2 * np.pi * draw.uniform(80, 4000) * times) * np.exp(-draw.uniform(0, 1) * times)
            clip = tone + draw.uniform(0.0, 0.2) * draw.standard_normal(len(times))
            soundfile.write(where / side / f"{number:05}.wav", clip / np.abs(clip).max(), RATE)
        if where not in chunks:
            chunks.append(where)
    for where in chunks:
        # In the order in which the package lists the folder, for it pairs captions and clips by that.
        names = [Path(name).stem for name in os.listdir(where / "generated")]
        with (where / "captions.csv").open("w", newline="", encoding="utf-8") as file:
            rows = [(name, f"a tone of sound number {int(name)} under noise") for name in names]
            csv.writer(file).writerows([("filename", "caption"), *rows])
    return chunks


def random_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights of the model's shapes that keep the signal's size from layer to layer; buffers as they are."""
    generator = torch.Generator().manual_seed(SEED)
    state = dict(model.state_dict())
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and parameter.requires_grad:
            state[name] = torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5
    return state


def write_weights(folder: Path) -> None:
    """The four checkpoints, full size, in the published files' layouts, and a tokenizer of bytes."""
    torch.save(random_state(VGGish()), folder / WEIGHTS["vggish"])
    pann = import_frechet_audio_distance(".models.pann")
    cnn14 = pann.Cnn14(32_000, 1024, 320, mel_bins=64, fmin=50, fmax=16_000, classes_num=527)
    torch.save({"model": random_state(cnn14)}, folder / WEIGHTS["panns"])
    (folder / "Cnn14_mAP%3D0.431.pth").symlink_to(folder / WEIGHTS["panns"])  # the package's name for it
    with contextlib.redirect_stdout(io.StringIO()):
        passt = import_library("hear21passt.models.passt").PaSST(
            stride=10, img_size=(128, 998), depth=12, distilled=True
        )
    torch.save(random_state(passt), folder / WEIGHTS["passt"])
    tokenizer = build_roberta_tokenizer(77)
    tokenizer.save_pretrained(folder / "roberta-base")
    options = {"enable_fusion": False, "device": "cpu", "amodel": "HTSAT-base"}
    clap = build_module(tokenizer, roberta(len(tokenizer)), **options).model
    state = {f"module.{name}": value for name, value in random_state(clap).items()}
    state["module.text_branch.embeddings.position_ids"] = torch.arange(514)[None]
    torch.save({"epoch": 15, "state_dict": state}, folder / WEIGHTS["clap"])


class HubVGGish(VGGish):
    """torchvggish's interface, as the package expects it: a clip and its rate, a ReLU at the end for it to take off."""

    def __init__(self):
        super().__init__()
        self.embeddings.append(nn.ReLU())

    def forward(self, waveform: np.ndarray, rate: int) -> torch.Tensor:  # type: ignore[override]
        assert rate == RATE
        return super().forward(torch.from_numpy(waveform).float()[None])[0]


Side = Callable[[Path], float | None]  # a chunk => its score, where the side gives one


def their_vggish(weights: Path) -> Side:
    model = HubVGGish()
    model.load_state_dict(torch.load(weights / WEIGHTS["vggish"]))
    with mock.patch("torch.hub.load", return_value=model):
        fad = import_frechet_audio_distance().FrechetAudioDistance(str(weights), "vggish", sample_rate=RATE)
    return lambda chunk: float(fad.score(str(chunk / "reference"), str(chunk / "generated")))


def their_panns(weights: Path) -> Side:
    fad = import_frechet_audio_distance().FrechetAudioDistance(str(weights), "pann", sample_rate=32_000)

    def run(chunk: Path) -> None:
        for side in ("reference", "generated"):
            clips = fad._FrechetAudioDistance__load_audio_files(str(chunk / side))
            assert len(fad.get_embeddings(clips, sr=32_000)) == 2048 * len(clips)  # it strings the vectors together

    return run


def their_passt(weights: Path) -> Side:
    fad = import_frechet_audio_distance().FrechetAudioDistance
    loader = fad.__new__(fad)  # only its files are read: it knows no PaSST to be built with
    loader.sample_rate, loader.channels, loader.audio_load_worker, loader.verbose = 32_000, 1, 8, False
    embedder = BACKENDS["passt"].load(weights / WEIGHTS["passt"], "cpu")

    @torch.no_grad()
    def run(chunk: Path) -> None:
        for side in ("reference", "generated"):
            for clip in loader._FrechetAudioDistance__load_audio_files(str(chunk / side)):
                embedder.encode(torch.tensor(clip).float().unsqueeze(0))

    return run


def their_clap(weights: Path) -> Side:
    import transformers

    tokenizer = transformers.RobertaTokenizer.from_pretrained(weights / "roberta-base")
    TOKENIZER.given, TEXT_ENCODER.given = tokenizer, roberta(len(tokenizer))
    clap = import_frechet_audio_distance().CLAPScore(str(weights), "music_speech_audioset")
    return lambda chunk: float(clap.score(str(chunk / "captions.csv"), str(chunk / "generated"))[0])


THEIR_SIDE: dict[str, Callable[[Path], Side]] = {
    "vggish": their_vggish,
    "panns": their_panns,
    "clap": their_clap,
    "passt": their_passt,
}


@contextlib.contextmanager
def our_side(
    name: str, weights: Path, wrap: Callable[[Embedder], Embedder] = lambda embedder: embedder
) -> Iterator[Side]:
    """`score_folders` with a protocol of one score; the model stays in memory from chunk to chunk."""
    protocol = weights / f"{name}.yaml"
    protocol.write_text(
        f"{name}:\n  models: {{m: {{backend: {name}, weights: '{WEIGHTS[name]}'}}}}\n"
        f"  scores: {{score: {{kind: {KINDS[name]}, model: m}}}}\n"
    )
    embedder = wrap(BACKENDS[name].load(weights / WEIGHTS[name], "cpu"))
    options = ScoreOptions(weights, resamples=0)  # the package has no intervals

    def run(chunk: Path) -> float:
        reference = chunk / "reference" if KINDS[name] != "clap" else None
        captions = chunk / "captions.csv" if KINDS[name] == "clap" else None
        result, _ = score_folders(Inputs(chunk / "generated", reference, captions), str(protocol), options)
        return result["scores"]["score"]["value"]

    with mock.patch.dict(BACKENDS, {name: Backend(lambda path, device: embedder, BACKENDS[name].gives)}):
        yield run


def clock(side: Side, chunk: Path) -> tuple[float | None, float, float]:
    """=> score, wall seconds, CPU seconds of all threads"""
    wall, cpu = time.perf_counter(), time.process_time()
    score = side(chunk)
    return score, time.perf_counter() - wall, time.process_time() - cpu


def time_model(name: str, weights: Path, chunks: list[Path], warm_up: Path, num_clips: int) -> dict[str, Any]:
    """Both sides take turns at the chunks, the one that begins changes; the warm-up chunk does not count."""
    seconds = {side: np.zeros(2) for side in ("ours", "theirs")}
    gap = 0.0
    with our_side(name, weights) as ours, contextlib.redirect_stdout(io.StringIO()):
        sides = {"ours": ours, "theirs": THEIR_SIDE[name](weights)}
        for side in sides.values():
            side(warm_up)
        for number, chunk in enumerate(chunks):
            scores = {}
            for side in sorted(sides, reverse=bool(number % 2)):
                scores[side], *spent = clock(sides[side], chunk)
                seconds[side] += spent
            if scores["theirs"] is not None:
                gap = max(gap, abs(scores["ours"] - scores["theirs"]) / max(abs(scores["theirs"]), 1e-9))
    row: dict[str, Any] = {"model": name, "clips": num_clips}
    for side, (wall, cpu) in seconds.items():
        rate = {"seconds": wall, "cpu_seconds": cpu, "clips_per_second": num_clips / wall}
        row[side] = {**rate, "does": WORK[name][side]}
    row["times_as_fast"] = seconds["theirs"][0] / seconds["ours"][0]
    row["times_less_cpu"] = seconds["theirs"][1] / seconds["ours"][1]
    row["largest_relative_difference_of_scores"] = gap if name in ("vggish", "clap") else None
    return row


def total_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """FAD + KL + CLAP score of a clip: the sum of the models' seconds a clip."""
    total: dict[str, Any] = {"models": [row["model"] for row in rows], "target_ratio_of_seconds": 2.0}
    for key in ("seconds", "cpu_seconds"):
        ours, theirs = (sum(row[side][key] / row["clips"] for row in rows) for side in ("ours", "theirs"))
        total[f"{key}_a_clip"] = {"ours": ours, "theirs": theirs, "ratio": theirs / ours}
    return total


def peak_memory(name: str, weights: Path, folder: Path, num_windows: int) -> dict[str, float]:
    """MiB of peak memory while our side reads up to 20, 50 and 100 % of the clips, and with the score computed.

    Linux only: the kernel's high-water mark of this process, set back after each of them.
    """
    torch.set_num_threads(2)
    found: dict[str, float] = {}
    marks = {0.2: "20 %", 0.5: "50 %", 1.0: "100 %"}
    seen = 0

    def watched(embedder: Embedder) -> Embedder:
        encode = embedder.encode
        assert encode

        def run(waveforms: torch.Tensor) -> Any:
            nonlocal seen
            if not seen:
                high_water_mark()  # opening the checkpoint took more
            result = encode(waveforms)
            seen += len(waveforms)
            for share in [share for share in marks if seen >= share * num_windows]:
                found[marks.pop(share)] = high_water_mark()
            return result

        embedder.encode = run
        return embedder

    with our_side(name, weights, watched) as ours:
        ours(folder)
    return {**found, "with the score": high_water_mark()}


def high_water_mark() -> float:
    """MiB since the last call."""
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(line.split()[1] for line in lines if line.startswith("VmHWM:"))
    Path("/proc/self/clear_refs").write_text("5")
    return int(peak) / 1024


def measure_memory(weights: Path, folder: Path, num_clips: int) -> list[dict[str, Any]]:
    rows = []
    for name in ("vggish", "panns", "clap"):
        num_windows = num_clips if KINDS[name] == "clap" else 2 * num_clips
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            peaks = fresh.submit(peak_memory, name, weights, folder, num_windows).result()
        growth = 1024 * (peaks["100 %"] - peaks["20 %"]) / (0.8 * num_clips)
        rows.append({"model": name, "clips": num_clips, "peak_mib": peaks, "growth_kib_a_clip": growth})
    return rows


def gather(chunks: list[Path], folder: Path) -> Path:
    """One folder of links to the clips of all chunks."""
    rows = [("filename", "caption")]
    for chunk in chunks:
        for side in ("reference", "generated"):
            (folder / side).mkdir(parents=True, exist_ok=True)
            for path in (chunk / side).iterdir():
                (folder / side / path.name).symlink_to(path)
        with (chunk / "captions.csv").open(newline="", encoding="utf-8") as file:
            rows += [tuple(row) for row in csv.reader(file)][1:]
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return folder


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with TemporaryDirectory() as temporary:
        weights, folder = Path(temporary) / "weights", Path(temporary) / "clips"
        weights.mkdir()
        write_weights(weights)
        chunks = write_clips(folder, options.clips, options.chunk)
        (warm_up,) = write_clips(Path(temporary) / "warm-up", 2, 2)
        rows = []
        for name in WEIGHTS:
            few = name == "passt"
            used = chunks[: -(-options.passt_clips // options.chunk)] if few else chunks
            num_clips = sum(len(os.listdir(chunk / "generated")) for chunk in used)
            rows.append(time_model(name, weights, used, warm_up, num_clips))
            print_row(rows[-1])
        memory = measure_memory(weights, gather(chunks, Path(temporary) / "all"), options.clips)
    packaged = [row for row in rows if row["model"] != "passt"]
    with_passt = [row for row in rows if row["model"] != "panns"]
    return {"rows": rows, "totals": [total_of(packaged), total_of(with_passt)], "memory": memory}


def print_row(row: dict[str, Any]) -> None:
    rates = "  ".join(f"{row[side]['clips_per_second']:8.3f}" for side in ("ours", "theirs"))
    print(f"{row['model']:8} {row['clips']:6}  {rates}  {row['times_as_fast']:8.2f}  {row['times_less_cpu']:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=500, help="pairs of clips of 10 s (default 500)")
    parser.add_argument("--passt-clips", type=int, default=32, help="of these through PaSST, whole chunks (default 32)")
    parser.add_argument("--chunk", type=int, default=32, help="clips at which the sides take turns (default 32)")
    parser.add_argument("--output", type=Path, default=Path("docs/results/bench_eval.json"))
    options = parser.parse_args()
    torch.set_num_threads(2)
    print(f"{'model':8} {'clips':>6}  {'ours/s':>8}  {'theirs/s':>8}  {'times':>8}  {'CPU':>8}")
    found = measure(options)
    for total in found["totals"]:
        ratios = [total[f"{key}_a_clip"]["ratio"] for key in ("seconds", "cpu_seconds")]
        print(f"FAD + KL + CLAP ({', '.join(total['models'])}): {ratios[0]:.2f} times as fast, CPU {ratios[1]:.2f}")
    for row in found["memory"]:
        peaks = ", ".join(f"{share} {peak:.0f}" for share, peak in row["peak_mib"].items())
        print(f"memory {row['model']}: {peaks} MiB; {row['growth_kib_a_clip']:.1f} KiB a clip")
    about = {
        "command": f"make bench-eval; {options.clips} pairs of clips of {SECONDS} s at {RATE} Hz, seed {SEED}",
        "machine": f"{platform.machine()}, CPU, fp32, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}",
        "weights": "random, full size, in the published files' layouts; loading them is not timed on either side",
        "versions": versions(),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(about | found, indent=1) + "\n", encoding="utf-8")
    print(options.output)


if __name__ == "__main__":
    main()
