"""What editing does to real clips: inpainting, extension, super-resolution, restyling and sounds of several windows.

The classifier of the report says what it hears in the edited part; chance is one class of all.
Shapes: B clips, T samples, F frames, M mel bins.
"""

import math
import resource
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audioldm2_pl.audio import LogMel
from audioldm2_pl.errors import UserError
from audioldm2_pl.generation import Editing
from audioldm2_pl.recording import Recording, cross_over, paste_back

from ..sound_classifier import SoundClassifier
from ..uncertainty import Interval, mean_interval, share_interval
from .audio import TestClip, select_clips
from .bench import Bench
from .charts import Row, interval_chart
from .classification import derangement
from .figures import Figure, sounds_of
from .page import Chart

STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
CUT_HZ = 2_000.0  # of the low-passed clips
NUM_WINDOWS = 4  # clips' lengths of a long sound
SEAM_FRAMES = 2  # log-mel frames either side of a joint
EDGE_SECONDS = 0.1  # at the border of the edited part that is left out of what was kept
STFT = 1024  # samples of the log-spectral distance's transform
TOP_PITCH_HZ = 4_000.0  # highest that is looked for

Part = tuple[float, float]  # of a clip, from and to, as shares of its length


class Edited:
    """The clips of one event of a report, their edits, and what the classifier hears in them."""

    def __init__(self, bench: Bench):
        if not (bench.has_labels and (bench.folder / "classifier.json").is_file()):
            raise UserError("figures of editing need the protocol classification, whose classifier names the sounds")
        self.bench, self.audio, self.seconds = bench, bench.audio, bench.audio.clip_seconds
        self.clips: list[TestClip] = select_clips(bench.test, bench.audio, bench.options.clips_per_class, 0)
        self.classifier = SoundClassifier.from_folder(bench.folder)
        self.log_mel = LogMel(bench.audio)
        systems = bench.generator.systems()
        bench.write(self.clips, {name: systems[name] for name in ("real", "reconstruction", "text_to_audio")})

    def write(
        self, name: str, editing: Editing, source_of: Callable[[Tensor], Tensor] = torch.clone,
        texts: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        """Two systems: `name`, the edited clips, and `name`_raw, before anything of the source is pasted back.

        `source_of` makes of the clips (B, T) what is edited; `texts` replace their captions.
        """
        prompts = dict(zip((clip.key for clip in self.clips), texts or [clip.text for clip in self.clips]))
        rate = self.audio.sample_rate

        def edit(clips: Sequence[Any], waveform: Tensor) -> Tensor:
            texts_of = [prompts[clip.key] for clip in clips]
            return self.bench.generator.edited(clips, source_of(waveform), editing, texts_of)

        def paste(clips: Sequence[Any], waveform: Tensor) -> Tensor:
            raw = self.bench.sound.read(f"{name}_raw", [clip.key for clip in clips], self.audio)
            return paste_back(Recording(source_of(waveform), rate), Recording(raw, rate), editing).waveform  # (B, T)

        self.bench.write(self.clips, {f"{name}_raw": edit})
        self.bench.write(self.clips, {name: paste})

    def read(self, name: str) -> Tensor:
        """=> (B, T)"""
        return self.bench.sound.read(name, [clip.key for clip in self.clips], self.audio)

    @torch.no_grad()
    def hits(self, name: str, part: Part, classes: Sequence[str] | None = None) -> np.ndarray:
        """Whether the classifier names each clip's class, or that of `classes`, in a part of the clip, (B,)."""
        start, stop = (round(share * self.audio.num_samples) for share in part)
        logits = torch.cat([self.classifier.logits(x) for x in self.read(name)[:, start:stop].split(32)])  # (B, K)
        found = [self.classifier.config.classes[i] for i in logits.argmax(1)]
        return np.array([a == b for a, b in zip(found, classes or [clip.names[0] for clip in self.clips])], float)

    def rows(self, systems: dict[str, str], part: Part) -> list[Row]:
        """label -> system => the share of clips whose class is named in a part, with its interval."""
        return [row_of(label, share_interval(self.hits(name, part))) for label, name in systems.items()]

    def log_mels(self, name: str) -> Tensor:
        """=> (B, F, M)"""
        return torch.cat([self.log_mel(x) for x in self.read(name).split(32)])[:, 0]

    def distance(self, name: str, frames: Tensor) -> np.ndarray:
        """Mean absolute difference of log-mels from the real clips' in dB over frames (F,), of each clip (B,)."""
        difference = (self.log_mels(name) - self.log_mels("real")).abs()[:, frames]
        return (20 / math.log(10) * difference.mean((1, 2))).numpy()

    def kept_frames(self, spans: Sequence[tuple[float, float]]) -> Tensor:
        """Frames (F,) outside spans of seconds, and not at their borders."""
        times = torch.arange(self.audio.num_frames) / self.audio.frames_per_second
        kept = torch.ones(len(times), dtype=torch.bool)
        for start, stop in spans:
            kept &= (times < start - EDGE_SECONDS) | (times > stop + EDGE_SECONDS)
        return kept

    def seams(self, name: str, seconds: Sequence[float]) -> dict[str, float]:
        """How far the log-mel jumps at joints, and at 95 of 100 places of the real clips: the limit."""
        size = 2 * SEAM_FRAMES
        usual = jumps(self.log_mels("real")).unfold(1, size, 1).amax(2).flatten().numpy()
        limit = float(np.quantile(usual, 0.95))
        found = jumps(self.log_mels(name))  # (B, F - 1)
        places = [round(t * self.audio.frames_per_second) - SEAM_FRAMES for t in seconds]
        at_seams = torch.stack([found[:, place : place + size].amax(1) for place in places]).flatten()
        to_db = 20 / math.log(10)
        return {
            "mean_db": to_db * float(at_seams.mean()),
            "share_above_limit": float((at_seams > limit).float().mean()),
            "limit_db": to_db * limit,
            "mean_of_real_db": to_db * float(usual.mean()),
        }


def jumps(log_mel: Tensor) -> Tensor:
    """(B, F, M) => mean change from frame to frame (B, F - 1)."""
    return log_mel.diff(dim=1).abs().mean(2)


def row_of(label: str, interval: Interval) -> Row:
    return label, interval.value, interval.low, interval.high


def figure_of(
    edited: Edited, texts: tuple[str, str, str], charts: dict[str, list[Row]], sounds: dict[str, str], **numbers: Any
) -> Figure:
    """A figure of name, title and description; every chart's rows are among its numbers."""
    name, title, about = texts
    shown = [Chart(what, "with 95 % intervals", interval_chart(rows)) for what, rows in charts.items()]
    values = {what: {label: dict(zip(("value", "low", "high"), rest)) for label, *rest in rows}
              for what, rows in charts.items()}  # fmt: skip
    clips, chance = edited.clips, 1 / len(edited.classifier.config.classes)
    numbers = {"num_clips": len(clips), "chance": chance, **values, **numbers}
    examples = sounds_of(edited.bench, clips[:: max(1, len(clips) // 2)], sounds)
    return Figure(name, title, f"{len(clips)} test clips. {about}", shown, examples, numbers)


def inpainting(bench: Bench) -> Figure:
    """The middle half of real clips made anew from their captions."""
    edited, part = Edited(bench), (0.25, 0.75)
    span = [(0.25 * edited.seconds, 0.75 * edited.seconds)]
    edited.write("inpainted", Editing(between=span))
    edited.write("inpainted_official", Editing(between=span, mode="official"))
    systems = {"Reference": "real", "VAE + vocoder": "reconstruction", "From text": "text_to_audio",
               "Inpainted": "inpainted", "The authors' way": "inpainted_official"}  # fmt: skip
    kept = edited.kept_frames(span)
    return figure_of(
        edited,
        ("inpainting", "Inpainting", "The middle half is regenerated from the caption; the classifier hears that "
         "half. What is kept is compared with the clip: with its own samples pasted back, and without."),
        {"class accuracy of the middle half": edited.rows(systems, part)},
        {"Reference": "real", "Inpainted": "inpainted", "Not pasted back": "inpainted_raw"},
        kept_max_difference=kept_difference(edited, "inpainted", span),
        kept_distance_db={n: float(edited.distance(n, kept).mean()) for n in ("inpainted_raw", "reconstruction")},
        seams=edited.seams("inpainted", span[0]),
    )  # fmt: skip


def kept_difference(edited: Edited, name: str, spans: Sequence[tuple[float, float]]) -> float:
    """The largest difference of a sample that was to be kept."""
    difference = (edited.read(name) - edited.read("real")).abs()
    for start, stop in spans:
        difference[:, round(start * edited.audio.sample_rate) : round(stop * edited.audio.sample_rate)] = 0
    return float(difference.max())


def extension(bench: Bench) -> Figure:
    """The second half of real clips from the first."""
    edited, num_context = Edited(bench), bench.audio.num_samples // 2
    half = num_context / bench.audio.sample_rate
    editing = Editing(extend=edited.seconds - half)
    edited.write("extended", editing, lambda waveform: waveform[:, :num_context])
    edited.write("continued", editing, lambda waveform: waveform[:, :num_context], [""] * len(edited.clips))
    systems = {"Reference": "real", "VAE + vocoder": "reconstruction", "Caption alone": "text_to_audio",
               "Context and caption": "extended", "Context alone": "continued"}  # fmt: skip
    numbers: dict[str, Any] = {}
    if tones := [i for i, clip in enumerate(edited.clips) if clip.names[0] == "tone"]:
        pitches = {name: pitch(edited.read(name)[tones, num_context:], edited.audio.sample_rate) for name in
                   ("real", "reconstruction", "extended", "continued")}  # fmt: skip
        numbers["tones_within_a_semitone"] = {
            name: float(((12 * (found / pitches["real"]).log2()).abs() <= 1).float().mean())
            for name, found in pitches.items()
        }
    return figure_of(
        edited,
        ("extension", "Continuation of real clips", "The second half of each is made from the first: GPT-2 continues "
         "its LOA, the T-UNet keeps its latent. The classifier hears the second half."),
        {"class accuracy of the second half": edited.rows(systems, (0.5, 1.0))},
        {"Reference": "real", "Context and caption": "extended", "Context alone": "continued"},
        kept_max_difference=kept_difference(edited, "extended", [(half, edited.seconds)]),
        seams=edited.seams("extended", [half]), **numbers,
    )  # fmt: skip


def pitch(waveform: Tensor, sample_rate: int) -> Tensor:
    """Frequency in Hz of the loudest partial below TOP_PITCH_HZ, of waveforms (B, T), (B,)."""
    num_fft = 2 ** math.ceil(math.log2(8 * waveform.shape[1]))
    spectrum = torch.fft.rfft(waveform * torch.hann_window(waveform.shape[1]), num_fft).abs()
    top = round(TOP_PITCH_HZ * num_fft / sample_rate)
    return spectrum[:, 1:top].argmax(1).add(1) * sample_rate / num_fft


def super_resolution(bench: Bench) -> Figure:
    """The upper frequencies of low-passed clips."""
    edited = Edited(bench)
    rate = edited.audio.sample_rate

    def low_passed(waveform: Tensor) -> Tensor:
        return cross_over(waveform, torch.zeros_like(waveform), CUT_HZ, rate)  # (B, T)

    edited.bench.write(edited.clips, {"low_passed": lambda _, waveform: low_passed(waveform)})
    edited.write("super_resolved", Editing(above=CUT_HZ), low_passed)
    real = spectra(edited.read("real"), rate)  # (B, F, bins)
    means = class_means(real, [clip.names[0] for clip in edited.clips])
    found = {
        "Low-passed": spectra(edited.read("low_passed"), rate),
        "Mean spectrum of the class": means[:, None].expand_as(real),
        "VAE + vocoder": spectra(edited.read("reconstruction"), rate),
        "Super-resolved": spectra(edited.read("super_resolved"), rate),
    }
    rows = [
        row_of(label, mean_interval((x - real).square().mean(2).sqrt().mean(1).numpy())) for label, x in found.items()
    ]
    systems = {"Reference": "real", "Low-passed": "low_passed", "Super-resolved": "super_resolved"}
    return figure_of(
        edited,
        ("super_resolution", "Super-resolution", f"Clips without what lies above {CUT_HZ:g} Hz get it back from their "
         "caption. The log-spectral distance is that of the upper frequencies from the clip's own."),
        {f"log-spectral distance above {CUT_HZ:g} Hz, dB": rows, "class accuracy": edited.rows(systems, (0.0, 1.0))},
        systems,
    )  # fmt: skip


def spectra(waveform: Tensor, sample_rate: int) -> Tensor:
    """Levels in dB above the cut, (B, T) => (B, F, bins); nothing is under -100 dB of full scale."""
    found = torch.stft(waveform, STFT, STFT // 4, window=torch.hann_window(STFT), return_complex=True).abs() / STFT
    return 20 * found[:, math.ceil(CUT_HZ * STFT / sample_rate) :].clamp(min=1e-5).log10().transpose(1, 2)


def class_means(levels: Tensor, labels: Sequence[str]) -> Tensor:
    """The mean spectrum of the other clips of each clip's class, (B, F, bins) => (B, bins)."""
    names = np.array(labels)
    rows = []
    for i, name in enumerate(labels):
        others = (names == name) & (np.arange(len(names)) != i)
        rows.append(levels[torch.from_numpy(others if others.any() else names == name)].mean((0, 1)))
    return torch.stack(rows)


def restyle(bench: Bench) -> Figure:
    """Real clips turned into the sound of another class, by strength."""
    edited = Edited(bench)
    texts = {clip.names[0]: clip.text for clip in edited.clips}
    names = list(texts)
    targets = dict(zip(names, (names[i] for i in derangement(len(names), 0))))
    classes = [targets[clip.names[0]] for clip in edited.clips]
    everywhere = torch.ones(edited.audio.num_frames, dtype=torch.bool)
    accuracy: list[Row] = []
    distance: list[Row] = []
    variants: dict[str, dict[str, Any]] = {f"{s:g}": {"restyle": s} for s in STRENGTHS}
    variants["0.6 by inversion"] = {"restyle": 0.6, "restyle_method": "inversion"}
    for label, settings in variants.items():
        name = f"restyled_{label.replace(' ', '_')}"
        edited.write(name, Editing(**settings), texts=[texts[target] for target in classes])
        accuracy.append(row_of(label, share_interval(edited.hits(name, (0.0, 1.0), classes))))
        distance.append(row_of(label, mean_interval(edited.distance(name, everywhere))))
    edited.write("varied", Editing(vary=0.6))
    distance.append(row_of("varied by 0.6", mean_interval(edited.distance("varied", everywhere))))
    distance.append(row_of("VAE + vocoder", mean_interval(edited.distance("reconstruction", everywhere))))
    return figure_of(
        edited,
        ("restyle", "Restyling by strength", "Each clip is turned into the sound of another class, whose caption the "
         "model is given, at several strengths; varying takes the clip's own LOA for a caption."),
        {"class accuracy of the target": accuracy, "log-mel distance from the source, dB": distance,
         "class kept by varying": edited.rows({"VAE + vocoder": "reconstruction", "Varied": "varied"}, (0.0, 1.0))},
        {"Source": "real", **{f"strength {s:g}": f"restyled_{s:g}" for s in STRENGTHS[1::2]}},
    )  # fmt: skip


def long_form(bench: Bench) -> Figure:
    """Sounds of several windows: what is heard in each clip's length of them, and the memory that they take."""
    edited = Edited(bench)
    generator, num_samples = bench.generator, edited.audio.num_samples
    before = peak_gib()
    waveform = []
    for start in range(0, len(edited.clips), bench.options.batch_size):
        clips = edited.clips[start : start + bench.options.batch_size]
        waveform.append(generator.from_text(clips, seconds=NUM_WINDOWS * edited.seconds))
    sounds = torch.cat(waveform)  # (B, windows · T)
    memory = {f"{NUM_WINDOWS} clips' lengths": peak_gib() - before}
    names = {}
    for number in range(NUM_WINDOWS):
        names[f"part {number + 1}"] = f"long_{number}"
        for clip, sound in zip(edited.clips, sounds):
            part = sound[number * num_samples : (number + 1) * num_samples]
            bench.sound.save(f"long_{number}", clip.key, part, edited.audio.sample_rate)
    before = peak_gib()
    generator.from_text(edited.clips[:1], seconds=10 * NUM_WINDOWS * edited.seconds)
    memory[f"{10 * NUM_WINDOWS} clips' lengths, one sound"] = peak_gib() - before
    rows = edited.rows({"From text, one window": "text_to_audio", **names}, (0.0, 1.0))
    joints = [number * edited.seconds for number in range(1, NUM_WINDOWS)]
    return figure_of(
        edited,
        ("long_form", "Sounds longer than a clip", f"Each caption makes a sound of {NUM_WINDOWS} clips' lengths by "
         "windows that continue each other; the classifier hears it clip by clip."),
        {"class accuracy by part": rows}, {"part 1": "long_0", f"part {NUM_WINDOWS}": f"long_{NUM_WINDOWS - 1}"},
        additional_peak_gib=memory, num_joints=len(joints),
    )  # fmt: skip


def peak_gib() -> float:
    """The most memory that the process ever held."""
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


EDITING_FIGURES: dict[str, Callable[[Bench], Figure]] = {
    "inpainting": inpainting,
    "extension": extension,
    "super_resolution": super_resolution,
    "restyle": restyle,
    "long_form": long_form,
}
