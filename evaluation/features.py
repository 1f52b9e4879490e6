"""Files => what a network makes of them: windows of audio under a protocol, in batches, and their embeddings.

Shapes: N clips, T samples, R rows, D embedding size, K classes.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import soxr
import torch

from audioldm2_pl.audio import choose_channel, fit_length, read_audio
from audioldm2_pl.errors import UserError

from .metrics.embeddings import Embedder
from .metrics.metric import ClipFeatures, Outputs
from .protocols import AudioSettings, ModelSettings

Loaded = TypeVar("Loaded")


def prepare_windows(path: Path, settings: AudioSettings, sample_rate: int, min_samples: int = 1) -> list[np.ndarray]:
    """File => its windows in order at the network's `sample_rate`, float32 (T,), each of `min_samples` at least."""
    channels, rate = read_audio(path)
    waveform = choose_channel(channels) if settings.channel == "first" else channels.mean(axis=1)
    for target in (settings.load_rate, sample_rate):
        if target and rate != target:
            waveform, rate = soxr.resample(waveform, rate, target), target
    if settings.remove_mean:
        waveform = waveform - waveform.mean()
    peak = np.abs(waveform).max() if len(waveform) else 0.0
    if settings.peak_db is not None and peak > 0:
        waveform = waveform * (10 ** (settings.peak_db / 20) / peak)
    if settings.bits == 16:
        waveform = (np.clip(waveform, -1, 1) * 32767).astype(np.int16) / 32767
    if settings.clip_seconds:
        waveform = fit_length(waveform, round(settings.clip_seconds * rate))
    waveform = fit_length(waveform, max(len(waveform), round(settings.min_seconds * rate)))
    pieces = [fit_length(piece, max(len(piece), min_samples)) for piece in windows(waveform, settings, rate)]
    if not pieces:
        raise UserError(f"{path}: shorter than {settings.min_window_seconds} s; the protocol reads nothing of it")
    return [np.ascontiguousarray(piece, dtype=np.float32) for piece in pieces]


def windows(waveform: np.ndarray, settings: AudioSettings, rate: int) -> Iterator[np.ndarray]:
    """Windows of (T,) that begin every hop; none begins where the one before already reached the end."""
    if settings.num_windows:
        edges = [i * len(waveform) // settings.num_windows for i in range(settings.num_windows + 1)]
        yield from (waveform[begin:end] for begin, end in pairwise(edges))
        return
    if not settings.window_seconds:
        yield waveform
        return
    length = round(settings.window_seconds * rate)
    hop = round((settings.hop_seconds or settings.window_seconds) * rate)
    for begin in range(0, max(1, len(waveform) - (length - hop)), hop):
        piece = waveform[begin : begin + length]
        if len(piece) < length and len(piece) <= settings.min_window_seconds * rate:
            continue
        yield fit_length(piece, length) if settings.pad_window else piece


def window_batches(
    paths: list[Path], settings: ModelSettings, embedder: Embedder, batch_size: int, num_workers: int
) -> Iterator[list[tuple[int, np.ndarray]]]:
    """(clip, window) in order, in batches of windows of one length."""
    load = partial(
        prepare_windows, settings=settings.audio, sample_rate=embedder.sample_rate, min_samples=embedder.min_samples
    )
    batch: list[tuple[int, np.ndarray]] = []
    for clip, pieces in enumerate(load_ahead(load, paths, num_workers)):
        for piece in pieces:
            if batch and (len(batch) == batch_size or len(piece) != len(batch[0][1])):
                yield batch
                batch = []
            batch.append((clip, piece))
    if batch:
        yield batch


def load_ahead(load: Callable[[Path], Loaded], paths: list[Path], num_workers: int) -> Iterator[Loaded]:
    """load(path) of each path in order; threads stay a few files ahead, so that memory does not grow with the files."""
    rest = iter(paths)
    with ThreadPoolExecutor(num_workers) as pool:
        waiting = deque(pool.submit(load, path) for path in islice(rest, 4 * num_workers))
        while waiting:
            pieces = waiting.popleft().result()
            waiting.extend(pool.submit(load, path) for path in islice(rest, 1))
            yield pieces


@torch.inference_mode()
def encode_files(
    paths: list[Path], settings: ModelSettings, embedder: Embedder, batch_size: int = 8, num_workers: int = 4
) -> Outputs:
    """Embeddings of files in rows (R, D), logits of their windows (R, K)."""
    assert embedder.encode is not None
    rows, logits = [], []
    row_counts, window_counts = np.zeros((2, len(paths)), dtype=int)
    for batch in window_batches(paths, settings, embedder, batch_size, num_workers):
        embeddings, classes = embedder.encode(torch.from_numpy(np.stack([piece for _, piece in batch])))
        rows.append(embeddings.flatten(0, 1).float().cpu().numpy())
        if classes is not None:
            logits.append(classes.float().cpu().numpy())
        for clip, _ in batch:
            row_counts[clip] += embeddings.shape[1]
            window_counts[clip] += 1
    features = ClipFeatures(np.concatenate(rows), row_counts)
    return Outputs(features, ClipFeatures(np.concatenate(logits), window_counts) if logits else None)
