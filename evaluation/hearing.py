"""Which clips pair, and what a model hears in them.

Generated clips, reference clips and captions pair by their name relative to their folder, without the suffix.

Shapes: N clips, T samples, R rows, D embedding size, K classes.
"""

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import soxr
import torch

from audioldm2_pl.audio import choose_channel, fit_length, is_silent
from audioldm2_pl.errors import UserError

from .embeddings import Backend
from .fad import ClipFeatures
from .folders import audio_files, read_audio, read_captions
from .protocols import AudioSettings, ModelSettings, Protocol

SHORT_SECONDS = 0.1  # a clip below this is told: no model hears anything in it

Loaded = TypeVar("Loaded")


@dataclass
class Pairs:
    names: list[str]  # sorted
    generated: list[Path]
    reference: list[Path]  # empty without a reference folder
    captions: list[list[str]]  # of each clip; empty without a captions file
    missing: dict[str, list[str]]  # of generated, reference, captions: the names that others have


@dataclass
class Heard:
    embeddings: ClipFeatures
    logits: ClipFeatures | None  # a row a window


def pair_up(generated: Path, reference: Path | None, captions: Path | None, protocol: Protocol) -> Pairs:
    """The clips that all sides have; UserError where that is less than the protocol's share of all names."""
    sides: dict[str, dict[str, Any]] = {"generated": audio_files(generated)}
    if reference:
        sides["reference"] = audio_files(reference)
    if captions:
        sides["captions"] = read_captions(captions)
    everything = sorted(set().union(*sides.values()))
    names = [name for name in everything if all(name in side for side in sides.values())]
    missing = {side: [name for name in everything if name not in have] for side, have in sides.items()}
    if len(names) < max(1, protocol.min_paired * len(everything)):
        side, lacks = max(missing.items(), key=lambda item: len(item[1]))
        raise UserError(
            f"only {len(names)} of {len(everything)} names are in {', '.join(sides)} alike, the protocol asks for "
            f"{protocol.min_paired:.0%}; {side} lacks {len(lacks)}, first {lacks[0]!r}"
        )
    texts = [sides["captions"][name] for name in names] if captions else []
    return Pairs(
        names,
        [sides["generated"][name] for name in names],
        [sides["reference"][name] for name in names] if reference else [],
        [text[:1] for text in texts] if protocol.captions == "first" else texts,
        missing,
    )


def prepare(path: Path, settings: AudioSettings, sample_rate: int, min_samples: int = 1) -> list[np.ndarray]:
    """File => its windows in order at the model's `sample_rate`, float32 (T,), each of `min_samples` at least."""
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
        raise UserError(f"{path}: shorter than {settings.min_window_seconds} s; the protocol hears nothing of it")
    return [np.ascontiguousarray(piece, dtype=np.float32) for piece in pieces]


def windows(waveform: np.ndarray, settings: AudioSettings, rate: int) -> Iterator[np.ndarray]:
    """Windows of (T,) that begin every hop; none begins where the one before already reached the end."""
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
    paths: list[Path], settings: ModelSettings, backend: Backend, batch_size: int, num_workers: int
) -> Iterator[list[tuple[int, np.ndarray]]]:
    """(clip, window) in order, in batches of windows of one length."""
    load = partial(prepare, settings=settings.audio, sample_rate=backend.sample_rate, min_samples=backend.min_samples)
    batch: list[tuple[int, np.ndarray]] = []
    for clip, pieces in enumerate(load_ahead(load, paths, num_workers)):
        for piece in pieces:
            if batch and (len(batch) == batch_size or len(piece) != len(batch[0][1])):
                yield batch
                batch = []
            batch.append((clip, piece))
    if batch:
        yield batch


def oddities(side: str, names: list[str], paths: list[Path], num_workers: int = 4) -> list[str]:
    """A line for each kind of clips that say little of a system: silent, very short, all alike."""
    facts = list(load_ahead(facts_of, paths, num_workers))
    silent = [name for name, (is_silent, _, _) in zip(names, facts) if is_silent]
    short = [name for name, (_, seconds, _) in zip(names, facts) if seconds < SHORT_SECONDS]
    lines = [
        f"{side}: {len(found)} of {len(names)} clips are {kind}, first {found[0]!r}"
        for kind, found in (("silent", silent), (f"shorter than {SHORT_SECONDS} s", short))
        if found
    ]
    (_, most), *_ = Counter(digest for _, _, digest in facts).most_common(1)
    if most > 1 and 2 * most > len(names):
        lines.append(f"{side}: {most} of {len(names)} clips are the same sound")
    return lines


def facts_of(path: Path) -> tuple[bool, float, str]:
    """Whether a file is silent, its seconds, and its sound's sha256."""
    channels, rate = read_audio(path)
    waveform = choose_channel(channels)
    return is_silent(waveform), len(waveform) / rate, hashlib.sha256(waveform.tobytes()).hexdigest()


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
def listen(
    paths: list[Path], settings: ModelSettings, backend: Backend, batch_size: int = 8, num_workers: int = 4
) -> Heard:
    """What a model hears in files: embeddings in rows, logits in windows."""
    rows, logits = [], []
    row_counts, window_counts = np.zeros((2, len(paths)), dtype=int)
    for batch in window_batches(paths, settings, backend, batch_size, num_workers):
        heard, classes = backend.hear(torch.from_numpy(np.stack([piece for _, piece in batch])))
        rows.append(heard.flatten(0, 1).float().cpu().numpy())
        if classes is not None:
            logits.append(classes.float().cpu().numpy())
        for clip, _ in batch:
            row_counts[clip] += heard.shape[1]
            window_counts[clip] += 1
    embeddings = ClipFeatures(np.concatenate(rows), row_counts)
    return Heard(embeddings, ClipFeatures(np.concatenate(logits), window_counts) if logits else None)
