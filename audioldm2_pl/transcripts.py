"""Transcripts that are longer than a window: spoken part by part, each continuing the one before.

Parts are sentences, as many as fit; of a sentence that does not fit, clauses, then words. The context of a part is the
sound of the one before: GPT-2 reads the phonemes of both and continues its LOA, the T-UNet keeps its latent (in-context
continuation, paper Figure 8).

Letters: T samples, H latent frames.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from audioldm2_pl.editing import Edit
from audioldm2_pl.generation import Generation, Sampling
from audioldm2_pl.models.diffusion import Progress, part_of
from audioldm2_pl.recording import PASTE_FADE_SECONDS, joined
from audioldm2_pl.seeds import seed_of
from audioldm2_pl.windows import Canvas, Job, SourceUse, fill, fit, window_size

BREAKS = (r"(?<=[.!?…])\s+", r"(?<=[,;:—])\s+", r"\s+")  # where transcripts are parted: sentences, clauses, words
PHONEMES_PER_SECOND = 13.0  # of a slow reader: 95 of 100 sentences of LJSpeech have more
CONTEXT_SHARE = 0.45  # of a window that a part may take, so that the one before fits beside it
SILENT_DB = 40.0  # below its loudest frame a part has ended
PAUSE_SECONDS = 0.15  # that is left after a part
LEVEL_SECONDS = 0.01  # frames whose levels are compared


def parts_of(model: Any, transcript: str, sampling: Sampling) -> list[str]:
    """A transcript in parts that a speech model can speak in one window: itself where it fits as it is."""
    encoder = next(c for c in model.conditioners.values() if c.reads == "transcript")
    seconds = window_size(model, sampling) * model.unit / model.sample_rate
    if encoder.count_phonemes(transcript) <= min(encoder.max_length - 1, seconds * PHONEMES_PER_SECOND):
        return [transcript]
    limit = min(encoder.max_length // 2 - 1, CONTEXT_SHARE * seconds * PHONEMES_PER_SECOND)
    parts: list[str] = []
    for piece in pieces_of(encoder, transcript.strip(), limit):
        if parts and encoder.count_phonemes(f"{parts[-1]} {piece}") <= limit:
            parts[-1] = f"{parts[-1]} {piece}"
        else:
            parts.append(piece)
    return parts


def pieces_of(encoder: Any, text: str, limit: float, breaks: Sequence[str] = BREAKS) -> list[str]:
    """The text at its first kind of break, pieces of more than `limit` phonemes at the next; a word stays whole."""
    if not breaks or encoder.count_phonemes(text) <= limit:
        return [text]
    pieces = [piece for piece in re.split(breaks[0], text) if piece]
    return [part for piece in pieces for part in pieces_of(encoder, piece, limit, breaks[1:])]


def transcript_for(model: Any, text: str) -> str | None:
    """A clip's transcript as a request to a model, None where there is none or the model reads none."""
    return text or None if model.reads_transcripts else None


def parts_of_all(model: Any, requests: Sequence[Generation], sampling: Sampling) -> list[list[Generation]]:
    """Requests, each in parts that continue each other; one part where a model speaks nothing, or as it is."""
    found = []
    for request in requests:
        text, parts = request.transcript or "", [request]
        if model.reads_transcripts and text.strip() and not request.prompt_at:
            parts = [replace(request, transcript=part) for part in parts_of(model, text, sampling)]
        found.append(parts)
    return found


def speak(model: Any, parts: Sequence[Generation], sampling: Sampling, progress: Progress | None = None) -> Tensor:
    """A request's parts => its sound (T,), as long as it takes, or `seconds`; warns where these cut it off."""
    rate, seconds = model.sample_rate, parts[0].seconds
    spoken: list[Tensor] = []
    for number, request in enumerate(parts):
        said = " ".join(part.transcript or "" for part in parts[max(0, number - 1) : number + 1])
        seed = seed_of(request.seed, "part", number) if number else request.seed
        asked = replace(request, transcript=said, seed=seed, seconds=None)
        before = spoken[-1] if spoken else torch.zeros(0)
        spoken.append(trimmed(continued(model, before, asked, sampling, part_of(progress, number, len(parts))), rate))
    sound = torch.cat(spoken)
    if seconds is None:
        return sound
    if round(seconds * rate) < len(sound):
        warnings.warn(f"the transcript takes {len(sound) / rate:.1f} s, cut at {seconds} s", stacklevel=2)
    return fit(sound[None], round(seconds * rate))[0]


def continued(model: Any, before: Tensor, request: Generation, sampling: Sampling, progress: Progress | None) -> Tensor:
    """What a window holds after the last of a sound (T,), which fills half of it at most, (T',)."""
    size = window_size(model, sampling)
    num_kept = min(len(before) // model.unit, size // 2)
    context = before[len(before) - num_kept * model.unit :][None]  # (1, T)
    keep = torch.zeros(size, model.num_latent_bins)
    keep[:num_kept] = 1
    canvas = Canvas.of(model, fit(context, size * model.unit), keep)
    use = SourceUse("context" if model.continues_loa else "text")
    fill(model, canvas, [Job(keep.amin(1) < 1, [request])], sampling, use, progress)
    old, stop = fit(context, size * model.unit), size * model.unit
    num_fade = round(PASTE_FADE_SECONDS * model.sample_rate)
    return joined(old, canvas.waveform, num_kept * model.unit, stop, num_fade)[0] if num_kept else canvas.waveform[0]


def trimmed(sound: Tensor, sample_rate: int) -> Tensor:
    """A sound (T,) without the silence after it, but for a pause."""
    size = round(LEVEL_SECONDS * sample_rate)
    levels = F.pad(sound, (0, -len(sound) % size)).view(-1, size).square().mean(1)  # (frames,)
    loud = (levels > levels.max() * 10 ** (-SILENT_DB / 10)).nonzero()
    last = int(loud[-1]) + 1 if len(loud) else len(levels)
    return sound[: last * size + round(PAUSE_SECONDS * sample_rate)]


def speak_all(model: Any, parts: Sequence[Sequence[Generation]], sampling: Sampling,
              progress: Progress | None = None) -> Tensor:  # fmt: skip
    """The parts of each request => sounds (B, T), padded with zeros to the longest."""
    sounds = [
        speak(model, requests, sampling, part_of(progress, number, len(parts))) for number, requests in enumerate(parts)
    ]
    return pad_sequence(sounds, batch_first=True)


def as_long_as_spoken(waveform: Tensor, request: Generation) -> Tensor:
    """A waveform (T,) of speech without the zeros that make it as long as others of its batch; others as they are."""
    if not request.transcript or request.seconds is not None:
        return waveform
    return waveform[: int(waveform.nonzero().max()) + 1] if waveform.any() else waveform


def same_length(model: Any, requests: Sequence[Generation]) -> list[list[int]]:
    """The requests in groups whose LOA has one length: without and with a transcript, or all of them."""
    generator = model.loa_generator
    if generator is None or generator.num_vectors(True) == generator.num_vectors(False):
        return [list(range(len(requests)))]
    groups = [[i for i, request in enumerate(requests) if bool(request.transcript) == said] for said in (False, True)]
    return [group for group in groups if group]


def generate_apart(model: Any, requests: Sequence[Generation], groups: Sequence[list[int]], sampling: Sampling,
                   edit: Edit, progress: Progress | None) -> Tensor:  # fmt: skip
    """Each group of requests alone => all waveforms (B, T) in the requests' order, padded with zeros to the longest."""
    found: dict[int, Tensor] = {}
    for number, rows in enumerate(groups):
        part = part_of(progress, number, len(groups))
        made = model.generate([requests[i] for i in rows], sampling=sampling, edit=edit.rows(rows), progress=part)
        found |= dict(zip(rows, made))
    return pad_sequence([found[row] for row in sorted(found)], batch_first=True)
