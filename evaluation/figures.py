"""The paper's Figures 2, 3, 5 and 8, made anew with a trained model and measured under the benchmark's protocol.

Shapes: B clips, T samples, L vectors of LOA, D width, T' and F' patches in time and frequency, N points.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from audioldm2_pl.conditioners.condition import Condition
from audioldm2_pl.errors import UserError
from audioldm2_pl.models.vae import latent_of

from .benchmark_audio import Bench, TestClip, read_test_clips
from .benchmark_charts import Point, Row, cloud_chart, curve_chart, interval_chart, legend
from .clips import LabelledClip, read_clips
from .systems import read_audio

GUIDANCE_SCALES = (1.0, 2.0, 3.5, 5.0, 7.0)  # 1 is none, 3.5 the paper's
POOLINGS = (1, 2, 4, 8)
CONTEXT_SHARE = 0.25  # of a clip: the paper's 2.5 of 10 seconds
BEEP_SECONDS = 0.15  # marks where the continuation begins (Fig. 8)
NUM_CLASSES = 10  # of Fig. 3
CLOUD_CLIPS = 400  # at most in Fig. 3
EXAMPLES = 2  # clips to listen to in a figure


@dataclass
class Figure:
    name: str
    title: str
    about: str  # how it was made
    charts: list[str]  # HTML
    examples: list[tuple[str, list[tuple[str, Path]]]] = field(default_factory=list)  # caption, (what, file)
    numbers: dict[str, Any] = field(default_factory=dict)  # as JSON


def figure_clips(bench: Bench) -> list[TestClip]:
    limit = min(bench.options.figure_clips, bench.options.clips or bench.options.figure_clips)
    return list(read_test_clips(bench.test, bench.audio, limit))


def score_systems(bench: Bench, systems: dict[str, str], keys: list[str], reference: str = "reference") -> dict:
    """label -> folder => label -> score -> value, low, high"""
    found = {}
    for label, system in systems.items():
        scores = bench.score(system, keys, reference)[0]["scores"]
        found[label] = {
            name: {side: score[side] for side in ("value", "low", "high")} for name, score in scores.items()
        }
    return found


def interval_charts(measured: dict[str, dict]) -> list[str]:
    """label -> score -> interval => a chart a score"""
    charts = []
    for score in next(iter(measured.values())):
        rows: list[Row] = [
            (label, s[score]["value"], s[score]["low"], s[score]["high"])
            for label, s in measured.items()
            if s[score]["value"] is not None
        ]
        charts += [interval_chart(score, "with 95 % intervals", rows)] if rows else []
    return charts


def listening(bench: Bench, clips: list[TestClip], systems: dict[str, str]) -> list[tuple[str, list[tuple[str, Path]]]]:
    return [
        (clip.text, [(label, bench.file(system, clip.key)) for label, system in systems.items()])
        for clip in clips[:EXAMPLES]
    ]


# ---- Figure 5


def guidance(bench: Bench) -> Figure:
    """Fig. 5: the same prompts at several guidance scales."""
    clips = figure_clips(bench)
    names = {scale: f"guidance_{scale:g}" for scale in GUIDANCE_SCALES}
    for scale, name in names.items():
        bench.write(clips, {name: lambda part, _, scale=scale: bench.generate(part, guidance_scale=scale)})
    measured = score_systems(bench, {f"{scale:g}": name for scale, name in names.items()}, [c.key for c in clips])
    charts = []
    for score in next(iter(measured.values())):
        points: list[Point] = [
            (scale, s["value"], s["low"], s["high"])
            for scale in GUIDANCE_SCALES
            if (s := measured[f"{scale:g}"][score])["value"] is not None
        ]
        charts += [curve_chart(score, "band: 95 % interval", points, "guidance scale")] if points else []
    return Figure(
        "guidance",
        "Guidance scale (Fig. 5)",
        f"{len(clips)} prompts of the test set, each generated from the same noise at every scale; 1 is without "
        "guidance, the paper's default is 3.5.",
        charts,
        listening(bench, clips, {f"scale {scale:g}": name for scale, name in names.items()}),
        measured,
    )


# ---- Figure 2


def reconstruction(bench: Bench) -> Figure:
    """Fig. 2: what AudioMAE's LOA keeps of a clip when it is pooled by λ."""
    model, clips = bench.model, figure_clips(bench)
    if model.audiomae is None:
        raise UserError(f"{bench.model_folder}: no audiomae/; the figure of λ reads LOA off real clips")
    rows = min(model.audiomae.grid)
    poolings = [pooling for pooling in POOLINGS if pooling <= rows]
    systems = {f"λ = {pooling}": f"lambda_{pooling}" for pooling in poolings}
    for pooling, name in zip(poolings, systems.values()):
        bench.write(clips, {name: lambda part, wave, k=pooling: bench.generate(part, loa_at(model, wave, k))})
    systems["VAE + vocoder"] = "reconstruction"
    bench.write(clips, {"reconstruction": lambda _, wave: model.reconstruct(wave)})
    measured = score_systems(bench, systems, [clip.key for clip in clips])
    lengths = ", ".join(f"λ = {k}: {model.audiomae.grid[0] // k * (model.audiomae.grid[1] // k)}" for k in poolings)
    return Figure(
        "reconstruction",
        "Reconstruction from the language of audio, by λ (Fig. 2)",
        f"{len(clips)} test clips: AudioMAE's features pooled by λ (vectors: {lengths}) take GPT-2's place, and the "
        f"T-UNet, which also reads the caption, makes sound of them. It was finetuned on "
        f"λ = {model.audiomae.config.pooling}. "
        "The last row goes through VAE and vocoder alone and is the ceiling.",
        interval_charts(measured),
        listening(bench, clips, {"Reference": "reference", **systems}),
        measured,
    )


@torch.inference_mode()
def loa_at(model: Any, waveform: Tensor, pooling: int) -> Tensor:
    """Waveforms (B, T) => LOA pooled by λ (B, L, D)"""
    return model.audiomae.loa(model.fbank(waveform.to(model.device)), pooling)


# ---- Figure 3


def tsne(bench: Bench) -> Figure:
    """Fig. 3: clips of ten classes in AudioMAE's and in the VAE's latent space."""
    clips = labelled_clips(bench)
    labels = [clip.names[0] for clip in clips]
    features = latents_of(bench, clips)
    agreement = {space: neighbour_agreement(points, labels) for space, points in features.items()}
    chance = neighbour_chance(labels)
    charts = [
        cloud_chart(
            space, f"nearest neighbour of the same class: {100 * agreement[space]:.0f} %", embed(points), labels
        )
        for space, points in features.items()
    ]
    return Figure(
        "tsne",
        "Latent spaces of AudioMAE and VAE (Fig. 3)",
        f"t-SNE of {len(clips)} clips of {len(set(labels))} classes. A clip is the mean of AudioMAE's features over "
        "all patches, or of the VAE's latent over time. The percentages are measured before t-SNE, in the standardised "
        f"latent space itself; {100 * chance:.0f} % would be chance.",
        [*charts, legend(labels)],
        numbers={"neighbour_agreement": agreement, "chance": chance, "num_clips": len(clips)},
    )


def labelled_clips(bench: Bench) -> list[LabelledClip]:
    """Clips of one event, of ten classes at random; at most CLOUD_CLIPS, evenly many of a class."""
    split = bench.options.labelled or bench.test
    by_class: dict[str, list[LabelledClip]] = {}
    for clip in read_clips(split, bench.audio):
        if len(clip.events) == 1 and len(by_class.setdefault(clip.names[0], [])) < CLOUD_CLIPS // NUM_CLASSES:
            by_class[clip.names[0]].append(clip)
    if len(by_class) < 2:
        raise UserError(f"{split}: clips of fewer than two labels; give labelled shards with --labelled")
    chosen = random.Random(bench.experiment.seed).sample(sorted(by_class), min(NUM_CLASSES, len(by_class)))
    return [clip for name in sorted(chosen) for clip in by_class[name]]


@torch.inference_mode()
def latents_of(bench: Bench, clips: list[LabelledClip]) -> dict[str, np.ndarray]:
    """space -> (N, D), each dimension standardised"""
    model, spaces = bench.model, {"AudioMAE": [], "VAE": []}
    if model.audiomae is None:
        raise UserError(f"{bench.model_folder}: no audiomae/; the figure of latent spaces needs it")
    for start in range(0, len(clips), bench.options.batch_size):
        batch = np.stack([clip.waveform for clip in clips[start : start + bench.options.batch_size]])
        waveform = torch.from_numpy(batch).to(model.device)  # (B, T)
        unit = model.audio.hop_length * model.downsampling
        log_mel = model.log_mel(F.pad(waveform, (0, -waveform.shape[1] % unit)))
        spaces["AudioMAE"].append(model.audiomae.features(model.fbank(waveform)).mean(dim=(1, 2)))
        spaces["VAE"].append(latent_of(model.vae, log_mel, sample=False).mean(dim=2).flatten(1))
    found = {space: torch.cat(parts).float().cpu().numpy() for space, parts in spaces.items()}
    return {space: (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-6) for space, x in found.items()}


def neighbour_agreement(points: np.ndarray, labels: list[str]) -> float:
    """Share of points (N, D) whose nearest other point has their label."""
    squares = np.square(points).sum(axis=1)
    distances = squares[:, None] + squares[None] - 2 * points @ points.T
    np.fill_diagonal(distances, np.inf)
    names = np.array(labels)
    return float(np.mean(names == names[distances.argmin(axis=1)]))


def neighbour_chance(labels: list[str]) -> float:
    """The same share where the nearest is any other point."""
    counts = np.unique(labels, return_counts=True)[1]
    return float((counts * (counts - 1)).sum() / (len(labels) * (len(labels) - 1)))


def embed(points: np.ndarray) -> np.ndarray:
    """t-SNE (van der Maaten and Hinton 2008): (N, D) => (N, 2); the same points give the same picture."""
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise UserError(f"scikit-learn cannot be imported ({error}); pip install 'audioldm2-pl[eval]'") from None
    perplexity = min(30.0, (len(points) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(points)


# ---- Figure 8


def continuation(bench: Bench) -> Figure:
    """Fig. 8: GPT-2 goes on with the LOA of a real clip's first quarter."""
    clips, rate, num_samples = figure_clips(bench), bench.audio.sample_rate, bench.audio.num_samples
    if bench.model.audiomae is None:
        raise UserError(f"{bench.model_folder}: no audiomae/; the continuation reads LOA off real clips")
    start = round(CONTEXT_SHARE * num_samples)

    def marked(part: list[LabelledClip], waveform: Tensor) -> Tensor:
        rest = read_audio(bench.sound.folder, "continued", part, bench.audio)[:, : num_samples - start]
        return torch.cat([waveform[:, :start], beep(rate).expand(len(part), -1), rest], dim=1)

    bench.write(clips, {
        "continued": lambda part, wave: bench.generate(part, continued_loa(bench, part, wave))[:, start:],
        "not_continued": lambda part, _: bench.generate(part)[:, start:],
        "rest": lambda _, wave: wave[:, start:],
        "continuation": marked,
    })  # fmt: skip
    systems = {"Context and caption": "continued", "Caption alone": "not_continued"}
    measured = score_systems(bench, systems, [clip.key for clip in clips], reference="rest")
    return Figure(
        "continuation",
        "In-context continuation (Fig. 8)",
        f"{len(clips)} test clips: AudioMAE hears the first {start / rate:.2f} s, over and over, GPT-2 is given "
        "these vectors after the caption and goes on, and the T-UNet makes sound of both. Scored is what follows the "
        f"context, against what followed in the real clip. To listen: the real context, a beep of "
        f"{BEEP_SECONDS} s, the rest.",
        interval_charts(measured),
        listening(
            bench,
            clips,
            {"Reference": "reference", "Context, beep, continuation": "continuation", "Caption alone": "not_continued"},
        ),
        measured,
    )


@torch.inference_mode()
def continued_loa(bench: Bench, clips: list[LabelledClip], waveform: Tensor) -> Tensor:
    """LOA (B, L, D) whose first quarter AudioMAE reads off the first quarter of waveforms (B, T)."""
    model = bench.model
    steps, columns = (max(1, size // model.audiomae.config.pooling) for size in model.audiomae.grid)
    num_context = max(1, round(CONTEXT_SHARE * steps)) * columns  # LOA goes on time-major
    # Nothing of what follows may show in the context's LOA. Silence after it would be heard, and gone on with.
    heard = waveform[:, : round(CONTEXT_SHARE * waveform.shape[1])].repeat(1, round(1 / CONTEXT_SHARE))
    context = model.loa_of(heard)[:, :num_context]
    spoken = [clip.transcript for clip in clips if isinstance(clip, TestClip)] if model.is_speech else None
    conditions = model.encode_text([clip.text for clip in clips], spoken)
    return continue_loa(model.loa_generator, conditions, context, steps * columns)


def continue_loa(generator: Any, conditions: list[Condition], context: Tensor, num_vectors: int) -> Tensor:
    """context (B, k, D) => LOA (B, num_vectors, D) that begins with it; GPT-2 says the others one by one."""
    loa = context
    while loa.shape[1] < num_vectors:
        following = generator.teacher_forced(conditions, F.pad(loa, (0, 0, 0, 1)))[:, -1:]
        loa = torch.cat([loa, following], dim=1)
    return loa


def beep(sample_rate: int) -> Tensor:
    """1 kHz, (1, T)"""
    times = torch.arange(round(BEEP_SECONDS * sample_rate)) / sample_rate
    return 0.2 * torch.sin(2 * torch.pi * 1000 * times)[None]


FIGURES: dict[str, Callable[[Bench], Figure]] = {
    "guidance": guidance,
    "reconstruction": reconstruction,
    "tsne": tsne,
    "continuation": continuation,
}
