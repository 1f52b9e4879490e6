"""Clips a second and core of the reader, beside bare decoding and the usual map-style dataset: `make bench-data`.

Everything is timed in the CPU time of this process and its children, one thread, so neighbours on the machine do not
count; what is compared runs in turns, and a ratio is the median over the pairs. Clips are 10 s of noise, its spectrum
falling and its level changing as in field recordings, in FLACs of about 230 kB; or with AUDIOLDM2_BENCH_AUDIO the
first 10 s of the files of a folder.
"""

import argparse
import io
import json
import os
import platform
import resource
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import librosa
import numpy as np
import soundfile
import torch
import torchaudio

from audioldm2_pl.audio import AudioConfig, is_silent, load_waveform
from audioldm2_pl.shards.datamodule import AudioShards, DataConfig
from audioldm2_pl.shards.reader import ShardFolder
from audioldm2_pl.shards.stream import ClipStream
from data.shards import Clip, write_shards

SEED = 0
RATE = 16_000
SECONDS = 10
BATCH_SIZE = 16
LONG_SECONDS = 68  # of the recordings that crops are taken of
LONG_CLIPS = 16
CROP_SECONDS = (10.24, 0.512)  # of most stages, and of the vocoder
LONG_EPOCHS = 4
ORIGINAL_RATE = 48_000  # of the files as they come from the net


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def noise(rng: np.random.Generator, rate: int) -> np.ndarray:
    """10 s (T,): noise whose power falls with frequency, under a level that wanders."""
    num_samples = SECONDS * rate
    spectrum = np.fft.rfft(rng.normal(size=num_samples))
    spectrum /= np.maximum(1.0, np.arange(len(spectrum)) / SECONDS / 50.0) ** 0.5  # white below 50 Hz, pink above
    level = np.interp(np.arange(num_samples) / rate, np.linspace(0, SECONDS, 20), rng.uniform(0.05, 1.0, 20))
    waveform = np.fft.irfft(spectrum, num_samples) * level
    return (waveform / np.abs(waveform).max() * rng.uniform(0.05, 0.9)).astype(np.float32)


def sounds(num_clips: int, rate: int) -> Iterator[np.ndarray]:
    folder = os.environ.get("AUDIOLDM2_BENCH_AUDIO")
    if folder is None:
        rng = np.random.default_rng(SEED)
        for _ in range(num_clips):
            yield noise(rng, rate)
        return
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix in (".wav", ".flac", ".ogg"))
    for i in range(num_clips):
        yield np.resize(load_waveform(paths[i % len(paths)], rate), SECONDS * rate)  # repeated to 10 s


class MapStyle(torch.utils.data.Dataset):
    """The usual dataset, as `AudioDataset` of haoheliu/AudioLDM-training-finetuning and its AudioMAE plug-in: one
    file an item, loaded, resampled, cut, levelled, and its log-mel and Kaldi filter bank made on the CPU.

    Loads with librosa, for torchaudio.load, which the authors call, needs another package in today's torchaudio. Their
    code builds the mel filters anew for every clip, for its cache never finds them; with `keep_filters` that is mended.
    """

    def __init__(self, paths: list[Path], keep_filters: bool):
        self.paths = paths
        self.filters = self.make_filters() if keep_filters else None
        self.window = torch.hann_window(1024)

    @staticmethod
    def make_filters() -> torch.Tensor:
        return torch.from_numpy(librosa.filters.mel(sr=RATE, n_fft=1024, n_mels=64, fmin=0, fmax=8000)).float()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        waveform, _ = librosa.load(self.paths[index], sr=RATE, mono=True)
        num_samples = round(10.24 * RATE)
        if len(waveform) > num_samples:
            start = int(torch.randint(len(waveform) - num_samples, (1,)))
            waveform = waveform[start : start + num_samples]
        waveform = waveform - np.mean(waveform)
        waveform = waveform / (np.max(np.abs(waveform)) + 1e-8) * 0.5
        waveform = torch.from_numpy(np.pad(waveform, (0, num_samples - len(waveform)))).float()
        padded = torch.nn.functional.pad(waveform[None, None], (432, 432), mode="reflect")[0]
        spectrum = torch.stft(padded, 1024, 160, 1024, self.window, center=False, return_complex=True).abs()
        filters = self.make_filters() if self.filters is None else self.filters
        log_mel = torch.log(torch.clamp(filters @ spectrum, min=1e-5))[0].T
        fbank = torchaudio.compliance.kaldi.fbank(
            waveform[None] - waveform.mean(), htk_compat=True, sample_frequency=RATE, use_energy=False,
            window_type="hanning", num_mel_bins=128, dither=0.0, frame_shift=10,
        )  # fmt: skip
        fbank = torch.nn.functional.pad(fbank, (0, 0, 0, 1024 - len(fbank)))
        return {
            "waveform": waveform, "stft": spectrum[0].T, "log_mel_spec": log_mel,
            "ta_kaldi_fbank": (fbank + 4.2677393) / (4.5689974 * 2),
        }  # fmt: skip


def reader(folder: Path) -> Callable[[], None]:
    """An epoch in batches by the training's own path, the headers of the tars included."""
    num_batches = len(ShardFolder(folder)) // BATCH_SIZE

    def run() -> None:
        data = AudioShards(DataConfig(train=[str(folder)]), AudioConfig(), SEED, BATCH_SIZE)
        for _, _batch in zip(range(num_batches), data.train_dataloader()):
            pass

    return run


def bare(folder: Path) -> Callable[[], None]:
    """The same number of FLACs decoded by soundfile out of the tars, and thrown away."""
    shards = ShardFolder(folder)
    places = [(s, members["flac"]) for s in range(len(shards.counts)) for _, members in shards.table(s)]
    places = places[: len(places) // BATCH_SIZE * BATCH_SIZE]

    def run() -> None:
        for shard, (offset, size) in places:
            soundfile.read(io.BytesIO(os.pread(shards.open(shard).fileno(), size, offset)), dtype="float32")

    return run


def map_style(paths: list[Path], keep_filters: bool = False) -> Callable[[], None]:
    paths = paths[: len(paths) // BATCH_SIZE * BATCH_SIZE]

    def run() -> None:
        for _ in torch.utils.data.DataLoader(MapStyle(paths, keep_filters), BATCH_SIZE, shuffle=True):
            pass

    return run


def long_files(num_clips: int, folder: Path) -> Path:
    """A shard of recordings of LONG_SECONDS."""
    parts = list(sounds(8, RATE))
    clips = [
        Clip(f"long{i}", text="a sound", waveform=np.resize(np.concatenate(parts[i:] + parts[:i]), LONG_SECONDS * RATE))
        for i in range(num_clips)
    ]
    write_shards(clips, folder, num_workers=1)
    return folder


def crops(folder: Path, seconds: float, by_seeking: bool) -> Callable[[], None]:
    """Four epochs of crops as training draws them; or each recording decoded whole, then cut, as before."""
    shards = ShardFolder(folder)
    if not by_seeking:
        shards.load = partial(load_whole, shards, round(seconds * RATE))  # type: ignore[method-assign]
    stream = ClipStream([shards], AudioConfig(), round(seconds * RATE), SEED, BATCH_SIZE, 0)

    def run() -> None:
        for _ in islice(stream, LONG_EPOCHS * len(shards)):
            pass

    return run


def load_whole(shards: ShardFolder, num_samples: int, shard: int, clip: int, *_: Any) -> dict[str, Any]:
    """A clip decoded and looked through whole, as it was before crops were read by seeking, then cut."""
    fields = ShardFolder.load(shards, shard, clip)
    waveform = fields["waveform"]
    assert not is_silent(waveform)
    start = int(np.random.default_rng(clip).integers(len(waveform) - num_samples + 1))
    return {**fields, "waveform": waveform[start : start + num_samples]}


def in_turns(runs: dict[str, tuple[Callable[[], None], int]], num_pairs: int) -> dict[str, dict[str, Any]]:
    """Name -> (run, clips in it): clips a CPU second, medians, and the ratio of the reader to each, by pairs."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for pair in range(num_pairs + 1):
        for name, (run, num_clips) in runs.items():
            before = cpu_seconds()
            run()
            if pair:  # the first warms up
                seconds[name].append((cpu_seconds() - before) / num_clips)
    return {
        name: {
            "clips_per_cpu_second": round(1 / statistics.median(own), 1),
            "reader_ratio": round(statistics.median(a / b for a, b in zip(own, seconds["reader"])), 3),
            "ratio_of_each_pair": [round(a / b, 3) for a, b in zip(own, seconds["reader"])],
        }
        for name, own in seconds.items()
    }


def writer_throughput(files: list[Path], folder: Path) -> float:
    """Hours of audio a core-hour: files at ORIGINAL_RATE read, resampled, encoded and written."""
    before = cpu_seconds()
    clips = [Clip(f"clip{i}", text="a sound", path=path) for i, path in enumerate(files)]
    write_shards(clips, folder, num_workers=1)
    return len(files) * SECONDS / (cpu_seconds() - before)


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if flag in flags]
    return f"{platform.machine()}, {os.cpu_count()} cores, {' '.join(known) or 'no vector flags known'}"


def measure(num_clips: int, num_pairs: int, folder: Path) -> dict[str, Any]:
    clips = [
        Clip(f"clip{i}", captions=[f"noise number {i}, some of it louder"] * 3, labels=["noise"], waveform=waveform)
        for i, waveform in enumerate(sounds(num_clips, RATE))
    ]
    write_shards(clips, folder / "shards", num_workers=1)
    shards = ShardFolder(folder / "shards")
    sizes, files, originals = [], [], []
    for shard in range(len(shards.counts)):
        for key, members in shards.table(shard):
            offset, size = members["flac"]
            files.append(folder / f"{key}.flac")
            files[-1].write_bytes(os.pread(shards.open(shard).fileno(), size, offset))
            sizes.append(size)
    few = max(BATCH_SIZE, num_clips // 6 // BATCH_SIZE * BATCH_SIZE)  # of what is many times slower
    for i, waveform in enumerate(sounds(few, ORIGINAL_RATE)):
        originals.append(folder / f"original{i}.wav")
        soundfile.write(originals[-1], waveform, ORIGINAL_RATE, subtype="PCM_16")
    whole = num_clips // BATCH_SIZE * BATCH_SIZE
    runs = {
        "reader": (reader(folder / "shards"), whole),
        "bare_soundfile": (bare(folder / "shards"), whole),
        "map_style": (map_style(files[:few]), few),
        "map_style_filters_kept": (map_style(files[:few], keep_filters=True), few),
        "map_style_48_khz_files": (map_style(originals), few),
    }
    results = in_turns(runs, num_pairs)
    long = long_files(LONG_CLIPS, folder / "long")
    cropping = {
        f"{seconds}_s": in_turns(
            {
                "reader": (crops(long, seconds, by_seeking=True), LONG_CLIPS * LONG_EPOCHS),
                "decoding_everything": (crops(long, seconds, by_seeking=False), LONG_CLIPS * LONG_EPOCHS),
            },
            num_pairs,
        )
        for seconds in CROP_SECONDS
    }
    hours = [writer_throughput(originals, folder / f"written{i}") for i in range(3)]
    source = "first 10 s of files" if "AUDIOLDM2_BENCH_AUDIO" in os.environ else "noise"
    return {
        "clips": {"number": num_clips, "seconds": SECONDS, "sample_rate": RATE, "sound": source,
                  "mean_flac_bytes": round(statistics.mean(sizes))},
        "results": results,
        "crops_of_68_s": cropping,
        "writer_hours_per_core_hour": round(statistics.median(hours), 1),
        "targets": {"bare_soundfile": 0.7, "map_style": 8.0, "decoding_everything": 5.0},
        "how": "CPU time of the process and its children, one thread; medians of runs in turns",
        "machine": cpu_name(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "librosa": librosa.__version__,
                     "soundfile": soundfile.__version__, "libsndfile": soundfile.__libsndfile_version__},
        "seed": SEED,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=304, metavar="N")
    parser.add_argument("--pairs", type=int, default=9, metavar="N")
    parser.add_argument("--output", type=Path, default=Path("docs/results/bench_data.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    with TemporaryDirectory() as folder:
        found = measure(arguments.clips, arguments.pairs, Path(folder))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{'':32} clips / CPU s   reader is faster by")
    rows = [(f"{name}_{length}", row) for length, rows in found["crops_of_68_s"].items() for name, row in rows.items()]
    for name, row in [*found["results"].items(), *rows]:
        print(f"{name:32} {row['clips_per_cpu_second']:13.1f} {row['reader_ratio']:21.2f}")
    print(f"writer: {found['writer_hours_per_core_hour']:.0f} hours of audio a core-hour; {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
