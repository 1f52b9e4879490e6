"""Sounds of any length: windows that overlap are sampled one after another and joined.

A window keeps what is there already, of a source or of earlier windows, and samples the rest of its latent. GPT-2
continues the LOA of the part that the window begins with (in-context continuation, paper Figure 8).

Letters: B clips, T samples, C × H × W latent, L vectors of LOA, D their width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from audioldm2_pl.editing import NO_EDIT, Edit, start_of
from audioldm2_pl.errors import UserError
from audioldm2_pl.generation import Generation, Mode, Sampling
from audioldm2_pl.models.diffusion import Progress, part_of
from audioldm2_pl.seeds import seed_of

KEPT_SHARE = 0.9  # of the time under a row of LOA that has to be kept for AudioMAE to give it
MIN_CONTEXT_SECONDS = 0.1  # shorter ones say nothing: GPT-2 starts anew
FADE_SECONDS = 0.04  # of the cross-fade between two windows

Frames = tuple[int, int]  # first latent frame, and the one after the last


@dataclass
class Job:
    """What is sampled in some latent frames."""

    frames: Tensor  # (H,), True where
    requests: list[Generation]  # one a clip


def spans_of(changed: Tensor) -> list[Frames]:
    """The runs of True in (H,)."""
    edges = F.pad(changed.int(), (1, 1)).diff().nonzero()[:, 0].tolist()
    return list(zip(edges[::2], edges[1::2]))


def windows_over(span: Frames, num_frames: int, size: int) -> list[Frames]:
    """Windows of `size` latent frames whose sum covers a span of `num_frames`, each with context before what is new.

    One lies around the middle of a short span. Of several, each begins a quarter before the end of the one before, so
    that it has as much context as in Figure 8, and the last reaches a quarter beyond the span, if the sound does.
    """
    start, stop = span
    if num_frames <= size:
        return [(0, num_frames)]
    overlap = size // 4
    if stop - start <= size - overlap:
        first = min(max(0, (start + stop - size) // 2), num_frames - size)
        return [(first, first + size)]
    windows, first, last = [], max(0, start - overlap), min(num_frames, stop + overlap) - size
    while True:
        first = min(first, last)
        windows.append((first, first + size))
        if first == last:
            return windows
        first += size - overlap


@dataclass
class Canvas:
    """A batch of sounds that are filled in window by window."""

    waveform: Tensor  # (B, T), T = H · unit: a source at the model's rate and level, or zeros; then what was sampled
    latent: Tensor  # (B, C, H, W), of what was sampled
    keep: Tensor  # (H, W): 1 where the source stays, or an earlier window's latent
    sampled: Tensor  # (H,): True where `latent` holds a window's

    @classmethod
    def of(cls, model: Any, waveform: Tensor, keep: Tensor) -> Canvas:
        """The canvas of waveforms (B, T), with a mask (H, W) of what stays."""
        latent = torch.zeros(len(waveform), model.unet.config.in_channels, *keep.shape)
        return cls(waveform.clone(), latent, keep.clone(), torch.zeros(len(keep), dtype=torch.bool))

    def write(self, window: Frames, frames: Tensor, latent: Tensor, waveform: Tensor, sample_rate: int) -> None:
        """Takes a window's latent (B, C, h, W) and waveform (B, h · unit), which are settled in `frames` (h,) of it.

        The waveform is cross-faded in what the window kept at its edges.
        """
        start, stop = window
        unit = waveform.shape[1] // (stop - start)
        kept = self.keep[start:stop].amin(1) > 0  # (h,)
        weight = torch.ones(waveform.shape[1])
        num_fade = round(FADE_SECONDS * sample_rate)
        for at_end, more in ((False, start > 0), (True, stop < len(self.keep))):
            run = int((kept.flip(0) if at_end else kept).int().cumprod(0).sum()) * unit  # samples kept at this edge
            if (more or self.sampled[stop - 1 if at_end else start]) and run > num_fade:
                ramp = F.pad(torch.linspace(0, 1, num_fade), ((run - num_fade) // 2, 0))
                edge = slice(len(weight) - len(ramp), None) if at_end else slice(0, len(ramp))
                weight[edge] = ramp.flip(0) if at_end else ramp
        here = self.waveform[:, start * unit : stop * unit]
        here.copy_(here + weight * (waveform - here))
        self.latent[:, :, start:stop] = latent
        self.keep[start:stop][frames] = 1
        self.sampled[start:stop] |= frames


@dataclass
class SourceUse:
    """How what is there already enters a window."""

    # GPT-2 continues the LOA of what the window keeps, or knows the text alone, or the source's own LOA replaces it
    loa: Literal["context", "text", "source"] = "context"
    strength: float | None = None  # the source is noised so far and sampled from there; None: sampled from noise
    mode: Mode = "exact"  # see `Edit`
    invert: Callable[[Edit, Sequence[Generation]], Edit] | None = None  # adds an inversion to a window's Edit


def fill(model: Any, canvas: Canvas, jobs: Sequence[Job], sampling: Sampling, use: SourceUse,
         progress: Progress | None = None) -> None:  # fmt: skip
    """Samples what the canvas does not keep in the frames of jobs, in their order, with an AudioLDM2."""
    size, num_timesteps = window_size(model, sampling), model.scheduler.config.num_train_timesteps
    todo = [
        (window, job)
        for job in jobs
        for span in spans_of(job.frames)
        for window in windows_over(span, len(canvas.keep), size)
    ]
    for number, ((start, stop), job) in enumerate(todo):
        frames = job.frames[start:stop] & (canvas.keep[start:stop].amin(1) < 1)
        if not frames.any():
            continue
        waveform = canvas.waveform[:, start * model.unit : stop * model.unit]
        source = model.encode_latent(waveform, sample=use.mode == "official").cpu()
        source = torch.where(canvas.sampled[start:stop, None], canvas.latent[:, :, start:stop], source)
        keep = canvas.keep[start:stop]
        edit = Edit(source, keep[None, None] if keep.any() else None, mode=use.mode)
        if use.strength is not None:
            edit.start_timestep = start_of(use.strength, sampling.num_steps, num_timesteps, use.mode)
        speaks = bool(job.requests[0].transcript)
        loa = model.loa_of(fit(waveform, model.audio.num_samples), speaks) if use.loa == "source" else None
        if use.loa == "context":
            edit = replace(edit, **loa_of_kept(model, waveform, keep.amin(1) > 0, speaks))
        requests = [replace(r, seed=seed_of(r.seed, number) if number else r.seed, seconds=None) for r in job.requests]
        edit = edit if use.invert is None else use.invert(edit, requests)
        latent, sound = model.render(requests, sampling, edit, loa, part_of(progress, number, len(todo)))
        canvas.write((start, stop), frames, latent, sound, model.sample_rate)


def fit(waveform: Tensor, num_samples: int) -> Tensor:
    """Waveforms (B, T) cut, or padded with zeros, to `num_samples`."""
    return F.pad(waveform[:, :num_samples], (0, max(0, num_samples - waveform.shape[1])))


def loa_of_kept(model: Any, waveform: Tensor, kept: Tensor, speaks: bool = False) -> dict[str, Tensor]:
    """The LOA of what is kept at the start and the end of a window, as fields of `Edit`.

    AudioMAE encodes what is kept of the waveforms (B, T) alone, `kept` (h,) says of which latent frames, repeated where
    something else will be: silence there would be encoded too, and continued.
    """
    samples = kept.repeat_interleave(waveform.shape[1] // len(kept))  # (T,)
    if int(samples.sum()) < MIN_CONTEXT_SECONDS * model.sample_rate or bool(kept.all()):
        return {}
    num_samples = model.audio.num_samples
    samples = fit(samples[None].float(), num_samples)[0].bool()  # of a whole clip
    context = fit(waveform, num_samples)[:, samples]  # (B, number kept)
    hole = num_samples - context.shape[1]
    heard = torch.empty(len(waveform), num_samples)
    heard[:, samples] = context
    heard[:, ~samples] = context.repeat(1, -(-hole // context.shape[1]))[:, :hole]
    loa = model.loa_of(heard, speaks)  # (B, L, D), time-major
    pooling = model.pooling(speaks)
    rows, columns = (max(1, size // pooling) for size in model.audiomae.grid)
    shares = samples.float()[: num_samples // rows * rows].view(rows, -1).mean(1)  # kept of each row
    known = (shares >= KEPT_SHARE).int()
    before, after = (int(run.cumprod(0).sum()) * columns for run in (known, known.flip(0)))
    found = {"loa_prefix": loa[:, :before], "loa_suffix": loa[:, loa.shape[1] - after :]}
    return {name: vectors for name, vectors in found.items() if vectors.shape[1]}


def lengths(model: Any, requests: Sequence[Generation], edit: Edit = NO_EDIT) -> tuple[int, int]:
    """Latent frames and samples of the clips: the latent covers them, the waveforms are cut to them.

    Raises UserError where requests, or they and the source of an edit, are not of one length.
    """
    seconds = {request.seconds for request in requests}
    if len(seconds) > 1:
        raise UserError(f"seconds={', '.join(map(str, seconds))}: the clips of one call have one length")
    source = None if edit.latent is None else edit.latent.shape[2]
    default = model.audio.clip_seconds if source is None else source * model.unit / model.sample_rate
    num_samples = round((seconds.pop() or default) * model.sample_rate)
    num_frames = frames_over(model, num_samples)
    if source not in (None, num_frames):
        raise UserError(f"the clip is {num_frames} latent frames long, but the edit's source has {source}")
    return num_frames, num_samples


def frames_over(model: Any, num_samples: int) -> int:
    """Latent frames that cover so many samples, as many as the T-UNet needs."""
    return max(model.smallest_latent, ceil(num_samples / model.unit))


def window_size(model: Any, sampling: Sampling) -> int:
    """Latent frames of the longest sound that is sampled at once."""
    if sampling.window_seconds is None:
        return model.unet.config.sample_size
    return frames_over(model, round(sampling.window_seconds * model.sample_rate))


def needs_windows(model: Any, requests: Sequence[Generation], sampling: Sampling, num_frames: int) -> bool:
    """Whether sounds are longer than a window, or their prompt changes."""
    return num_frames > window_size(model, sampling) or any(request.prompt_at for request in requests)


def generate_by_windows(model: Any, requests: Sequence[Generation], sampling: Sampling, num_frames: int,
                        progress: Progress | None = None) -> Tensor:  # fmt: skip
    """Requests => waveforms (B, num_frames · unit); between two times of `prompt_at` one prompt holds."""
    keep = torch.zeros(num_frames, model.num_latent_bins)
    canvas = Canvas.of(model, torch.zeros(len(requests), num_frames * model.unit), keep)
    starts = sorted({0.0, *(start for request in requests for start, _ in request.prompt_at or ())})
    jobs = []
    for start, stop in zip(starts, [*starts[1:], float("inf")]):
        first, last = (round(min(num_frames, t * model.sample_rate / model.unit)) for t in (start, stop))
        frames = torch.zeros(num_frames, dtype=torch.bool)
        frames[first:last] = True
        jobs.append(Job(frames, [request.at(start) for request in requests]))
    fill(model, canvas, jobs, sampling, SourceUse("context" if model.continues_loa else "text"), progress)
    return canvas.waveform
