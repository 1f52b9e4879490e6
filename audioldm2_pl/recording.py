"""A recording, edited by a model: to the model's rate and level, through its windows, and back.

Letters: K channels, B clips, T samples, H × W latent frames and bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from torch import Tensor
from torch.nn import functional as F

from audioldm2_pl.audio import MAX_GAIN, limit_peak, mel_centres, read_audio
from audioldm2_pl.conditioning import check_readable, encode_requests
from audioldm2_pl.editing import Edit, Grid
from audioldm2_pl.errors import UserError
from audioldm2_pl.generation import Editing, Generation, Sampling
from audioldm2_pl.models.diffusion import Progress, invert, part_of
from audioldm2_pl.models.guidance import predictor
from audioldm2_pl.seeds import seed_of
from audioldm2_pl.windows import Canvas, Job, SourceUse, fill, frames_over

PASTE_FADE_SECONDS = 0.02  # of the cross-fades between the source's samples and new ones, within what is new
MIN_SECONDS = 0.1  # of a source
OFFICIAL_DROPPED = 3  # last latent frames that the authors' style transfer leaves out


@dataclass
class Recording:
    """Sound at its own rate, every channel."""

    waveform: Tensor  # (K, T), float32
    sample_rate: int  # Hz

    def __post_init__(self) -> None:
        self.waveform = torch.atleast_2d(torch.as_tensor(self.waveform, dtype=torch.float32))
        if self.waveform.shape[1] < MIN_SECONDS * self.sample_rate or not torch.isfinite(self.waveform).all():
            raise UserError(f"the source holds no sound of {MIN_SECONDS} s or more whose samples are all finite")

    @classmethod
    def load(cls, path: str | Path) -> Recording:
        """Raises UserError where the file is missing or unreadable."""
        waveform, sample_rate = read_audio(path)  # (T, K)
        return cls(torch.from_numpy(waveform.T.copy()), sample_rate)

    def at(self, sample_rate: int) -> Recording:
        """The same at another rate."""
        if sample_rate == self.sample_rate:
            return self
        resampled = soxr.resample(
            np.ascontiguousarray(self.waveform.T.numpy()), self.sample_rate, sample_rate
        )  # (T, K)
        return Recording(torch.from_numpy(np.ascontiguousarray(resampled.T)), sample_rate)

    def level(self, peak: float | None) -> tuple[Tensor, float]:
        """Mean of each channel (K, 1), and the gain that brings the loudest one to `peak`, as training levels clips."""
        mean = self.waveform.mean(1, keepdim=True)
        if peak is None:
            return mean, 1.0
        return mean, min(MAX_GAIN, peak / (float((self.waveform - mean).abs().max()) + 1e-8))


def edit_recording(model: Any, source: Recording, request: Generation, editing: Editing, sampling: Sampling,
                   progress: Progress | None = None) -> Recording:  # fmt: skip
    """A source => the edited sound, at its rate, or of super-resolution at the model's where that is higher.

    All channels get the same noise. Of several candidates the whole edit is taken that CLAP finds nearest to the text.
    """
    levelled = source.at(model.sample_rate)
    mean, gain = levelled.level(model.audio.peak)
    waveform = (levelled.waveform - mean) * gain  # (K, T)
    made = []
    for number in range(sampling.candidates):
        seed = seed_of(request.seed, number) if number else request.seed
        requests = [replace(request, seed=seed)] * len(waveform)
        part = part_of(progress, number, sampling.candidates)
        made.append(edit_waveforms(model, waveform, requests, editing, replace(sampling, candidates=1), part))
    best = 0
    if len(made) > 1:
        best = max(range(len(made)), key=lambda i: float(model.similarity(made[i].mean(0)[None], request.prompt)))
    edited = Recording(limit_peak(made[best] / gain + mean, model.sample_rate), model.sample_rate)
    sample_rate = max(source.sample_rate, model.sample_rate) if editing.above else source.sample_rate
    return paste_back(source.at(sample_rate), edited.at(sample_rate), editing)


def check_editable(model: Any, request: Generation, editing: Editing) -> None:
    """UserError where a model cannot do what is asked for; warns of what no encoder reads of the text."""
    if request.seconds is not None or request.prompt_at:
        raise UserError("--seconds and --prompt-at are for generate; an edit has the source's length, or --extend's")
    if editing.vary is not None and (not model.uses_loa or model.audiomae is None):
        raise UserError("--vary needs a model with AudioMAE, whose LOA of the source stands for a text")
    takes_transcript = model.reads_transcripts and editing.vary is None
    transcript = " ".join(filter(None, [editing.source_transcript, request.transcript])) if takes_transcript else None
    check_readable(model, [replace(request, transcript=transcript or request.transcript)])


def edit_waveforms(model: Any, waveform: Tensor, requests: Sequence[Generation], editing: Editing, sampling: Sampling,
                   progress: Progress | None = None) -> Tensor:  # fmt: skip
    """Sources (B, T) at the model's rate and level => edited (B, T'), all of it from the vocoder where windows lay."""
    num_samples = waveform.shape[1] + round((editing.extend or 0) * model.sample_rate)
    grid = grid_of(model, num_samples)
    spans = changed_spans(editing, waveform.shape[1] / model.sample_rate, num_samples / model.sample_rate)
    keep = grid.keep_outside(spans)  # (H, W)
    if editing.above is not None:
        below = grid.keep_below(editing.above)
        keep = below if editing.between is None else keep * below
    if keep.amin() > 0:
        raise UserError(f"nothing to edit: it lies outside the source's {num_samples / model.sample_rate:.2f} s or Hz")
    canvas = Canvas.of(model, F.pad(waveform, (0, grid.num_frames * model.unit - waveform.shape[1])), keep)
    if editing.source_transcript:
        requests = [replace(r, transcript=f"{editing.source_transcript} {r.transcript or ''}") for r in requests]
    loa_of = "text" if editing.mode == "official" or not model.continues_loa else "context"
    use = SourceUse("source" if editing.vary is not None else loa_of, editing.strength, editing.mode)
    if editing.restyle_method == "inversion":
        sampling = replace(sampling, sampler="ddim", eta=1.0)
        use.invert = partial(with_inversion, model, editing, sampling)
    fill(model, canvas, [Job(keep.amin(1) < 1, list(requests))], sampling, use, progress)
    if editing.mode == "official" and editing.restyle is not None:
        num_samples -= OFFICIAL_DROPPED * model.unit
    return canvas.waveform[:, :num_samples]


def grid_of(model: Any, num_samples: int) -> Grid:
    """The latent grid that covers a sound."""
    centres, size = mel_centres(model.audio), model.downsampling
    return Grid(frames_over(model, num_samples), model.sample_rate / model.unit, centres[size - 1 :: size])


def changed_spans(editing: Editing, source_seconds: float, seconds: float) -> list[tuple[float, float]]:
    """What an edit samples anew at all frequencies, as spans of seconds."""
    if editing.between is not None:
        return editing.between
    if editing.extend is not None:
        return [(source_seconds, seconds)]
    return [] if editing.above is not None else [(0.0, seconds)]


def with_inversion(
    model: Any, editing: Editing, sampling: Sampling, edit: Edit, requests: Sequence[Generation]
) -> Edit:
    """The Edit of a window with the DDPM inversion of its source, under what the source is said to be."""
    told = replace(sampling, guidance_scale=editing.source_guidance)
    said = [Generation(editing.source_prompt, transcript=r.transcript, seed=r.seed) for r in requests]
    predict = predictor(model.unet, encode_requests(model, said, told), editing.source_guidance)
    generators = [torch.Generator().manual_seed(seed_of(request.seed, "inversion")) for request in requests]
    latent, start = edit.latent.to(model.device), edit.start_timestep or 1  # type: ignore[union-attr]
    return replace(edit, inversion=invert(predict, model.scheduler, latent, generators, sampling.num_steps, start))


def paste_back(source: Recording, edited: Recording, editing: Editing) -> Recording:
    """The edited sound with the source's own samples outside spans of time, and its own frequencies below the cut."""
    rate, num_source = source.sample_rate, source.waveform.shape[1]
    num_samples = num_source + round((editing.extend or 0) * rate)
    if editing.mode == "official" or not editing.paste_back or editing.strength is not None:
        return Recording(edited.waveform[:, :num_samples], rate)
    new = F.pad(edited.waveform, (0, max(0, num_samples - edited.waveform.shape[1])))[:, :num_samples]
    old = F.pad(source.waveform, (0, num_samples - num_source))  # (K, T)
    if editing.above is not None:
        new = cross_over(old, new, editing.above, rate)
        if editing.between is None:
            return Recording(new, rate)
    result = old.clone()
    for start, stop in changed_spans(editing, num_source / rate, num_samples / rate):
        first, last = round(start * rate), min(round(stop * rate), num_samples)
        result[:, first:last] = joined(old, new, first, last, round(PASTE_FADE_SECONDS * rate))
    return Recording(result, rate)


def joined(old: Tensor, new: Tensor, first: int, last: int, num_fade: int) -> Tensor:
    """Samples `first` to `last` of `new` (K, T), faded in and out of what `old` leads to, (K, last - first).

    That is `old` outside the span mirrored at its edge in time and level: it goes on without a jump, and says nothing
    of what was replaced.
    """
    span = new[:, first:last].clone()
    for at_end, edge in ((False, old[:, :first]), (True, old[:, last:].flip(1))):
        num_samples = min(num_fade, span.shape[1] // 2, edge.shape[1] - 1)
        if num_samples < 1:
            continue
        mirrored = 2 * edge[:, -1:] - edge[:, -1 - num_samples : -1].flip(1)  # (K, num_samples)
        weight = 0.5 + 0.5 * torch.cos(torch.linspace(0, torch.pi, num_samples))
        here = span.flip(1) if at_end else span
        here[:, :num_samples] = weight * mirrored + (1 - weight) * here[:, :num_samples]
        span = here.flip(1) if at_end else here
    return span


def cross_over(old: Tensor, new: Tensor, hz: float, sample_rate: int) -> Tensor:
    """`old` (K, T) below a frequency and `new` above it; they cross between 0.9 of it and itself."""
    spectrum = torch.fft.rfft(old - new)
    frequency = torch.fft.rfftfreq(old.shape[1], 1 / sample_rate)
    weight = 0.5 + 0.5 * torch.cos(torch.pi * ((frequency / hz - 0.9) / 0.1).clamp(0, 1))
    return new + torch.fft.irfft(spectrum * weight, old.shape[1])
