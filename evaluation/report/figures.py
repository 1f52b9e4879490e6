"""The paper's Figures 2, 3, 5 and 8, made anew with a trained model and measured under the report's protocol.

Shapes: B clips, T samples, D width, N points.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audioldm2_pl.errors import UserError

from ..clips import LabelledClip, read_clips
from ..libraries import import_library
from .audio import TestClip, read_test_clips
from .bench import Bench
from .charts import Point, Row, curve_chart, interval_chart, scatter_chart
from .generate import CONTEXT_SHARE
from .page import Chart

GUIDANCE_SCALES = (1.0, 2.0, 3.5, 5.0, 7.0)  # 1 is none, 3.5 the paper's
POOLINGS = (1, 2, 4, 8)
BEEP_SECONDS = 0.15  # marks where the continuation begins (Fig. 8)
NUM_CLASSES = 10  # of Fig. 3
MAX_POINTS = 400  # clips in Fig. 3
EXAMPLES = 2  # clips to listen to in a figure

Scores = dict[str, dict[str, dict[str, Any]]]  # label -> score -> value, low, high


@dataclass
class Figure:
    name: str
    title: str
    about: str  # how it was made
    charts: list[Chart]
    examples: list[tuple[str, list[tuple[str, Path]]]] = field(default_factory=list)  # caption, (what, file)
    numbers: dict[str, Any] = field(default_factory=dict)  # as JSON


def figure_clips(bench: Bench) -> list[TestClip]:
    limit = min(bench.options.figure_clips, bench.options.clips or bench.options.figure_clips)
    return list(read_test_clips(bench.test, bench.audio, limit))


def score_variants(
    bench: Bench, systems: dict[str, str], clips: list[TestClip], reference: str = "reference"
) -> Scores:
    """label -> folder => label -> score -> value, low, high"""
    found = {}
    bench.register(clips)
    for label, system in systems.items():
        scores = bench.score(system, [clip.key for clip in clips], reference)[0]["scores"]
        found[label] = {name: {k: score[k] for k in ("value", "low", "high")} for name, score in scores.items()}
    return found


def interval_charts(measured: Scores) -> list[Chart]:
    """A chart a score."""
    charts = []
    for score in next(iter(measured.values())):
        rows: list[Row] = [
            (label, s[score]["value"], s[score]["low"], s[score]["high"])
            for label, s in measured.items()
            if s[score]["value"] is not None
        ]
        charts += [Chart(score, "with 95 % intervals", interval_chart(rows))] if rows else []
    return charts


def sounds_of(bench: Bench, clips: list[TestClip], systems: dict[str, str]) -> list[tuple[str, list[tuple[str, Path]]]]:
    """Some clips to listen to: caption, (label, file)"""
    return [
        (clip.text, [(label, bench.sound.path(system, clip.key)) for label, system in systems.items()])
        for clip in clips[:EXAMPLES]
    ]


def guidance(bench: Bench) -> Figure:
    """Fig. 5: the same prompts at several guidance scales."""
    clips = figure_clips(bench)
    names = {scale: f"guidance_{scale:g}" for scale in GUIDANCE_SCALES}
    for scale, name in names.items():
        bench.write(clips, {name: lambda part, _, s=scale: bench.generator.from_text(part, guidance_scale=s)})
    measured = score_variants(bench, {f"{scale:g}": name for scale, name in names.items()}, clips)
    charts = []
    for score in next(iter(measured.values())):
        points: list[Point] = [
            (scale, s["value"], s["low"], s["high"])
            for scale in GUIDANCE_SCALES
            if (s := measured[f"{scale:g}"][score])["value"] is not None
        ]
        charts += [Chart(score, "band: 95 % interval", curve_chart(points, "guidance scale"))] if points else []
    return Figure(
        "guidance",
        "Guidance scale (Fig. 5)",
        f"{len(clips)} prompts of the test set, each generated from the same noise at every scale; 1 is without "
        "guidance, the paper's default is 3.5.",
        charts,
        sounds_of(bench, clips, {f"scale {scale:g}": name for scale, name in names.items()}),
        measured,
    )


def reconstruction(bench: Bench) -> Figure:
    """Fig. 2: what AudioMAE's LOA keeps of a clip when it is pooled by λ."""
    generator, clips = bench.generator, figure_clips(bench)
    generator.require_audiomae("reconstruction")
    audiomae = generator.model.audiomae
    poolings = [pooling for pooling in POOLINGS if pooling <= min(audiomae.grid)]
    systems = {f"λ = {pooling}": f"lambda_{pooling}" for pooling in poolings}
    for pooling, name in zip(poolings, systems.values()):
        bench.write(
            clips, {name: lambda part, wave, k=pooling: generator.from_text(part, loa=generator.loa_at(wave, k))}
        )
    systems["VAE + vocoder"] = "reconstruction"
    bench.write(clips, {"reconstruction": generator.systems()["reconstruction"]})
    measured = score_variants(bench, systems, clips)
    lengths = ", ".join(f"λ = {k}: {audiomae.grid[0] // k * (audiomae.grid[1] // k)}" for k in poolings)
    return Figure(
        "reconstruction",
        "Reconstruction from the language of audio, by λ (Fig. 2)",
        f"{len(clips)} test clips: AudioMAE's features pooled by λ (vectors: {lengths}) take GPT-2's place, and the "
        f"T-UNet, which also reads the caption, makes sound of them. It was finetuned on "
        f"λ = {audiomae.config.pooling}. The last row goes through VAE and vocoder alone and is the ceiling.",
        interval_charts(measured),
        sounds_of(bench, clips, {"Reference": "reference", **systems}),
        measured,
    )


def tsne(bench: Bench) -> Figure:
    """Fig. 3: clips of ten classes in AudioMAE's and in the VAE's latent space."""
    bench.generator.require_audiomae("tsne")
    clips = labelled_clips(bench)
    labels = [clip.names[0] for clip in clips]
    features = latents_of(bench, clips)
    agreement = {space: neighbour_agreement(points, labels) for space, points in features.items()}
    chance = neighbour_chance(labels)
    charts = [
        Chart(
            space,
            f"nearest neighbour of the same class: {100 * agreement[space]:.0f} %",
            scatter_chart(tsne_of(points), labels),
        )
        for space, points in features.items()
    ]
    return Figure(
        "tsne",
        "Latent spaces of AudioMAE and VAE (Fig. 3)",
        f"t-SNE of {len(clips)} clips of {len(set(labels))} classes. A clip is the mean of AudioMAE's features over "
        "all patches, or of the VAE's latent over time. The percentages are measured before t-SNE, in the standardised "
        f"latent space itself; {100 * chance:.0f} % would be chance.",
        charts,
        numbers={"neighbour_agreement": agreement, "chance": chance, "num_clips": len(clips)},
    )


def labelled_clips(bench: Bench) -> list[LabelledClip]:
    """Clips of one event, of ten classes at random; at most MAX_POINTS, evenly many of a class."""
    split = bench.options.labelled or bench.test
    by_class: dict[str, list[LabelledClip]] = {}
    for clip in read_clips(split, bench.audio):
        if len(clip.events) == 1 and len(by_class.setdefault(clip.names[0], [])) < MAX_POINTS // NUM_CLASSES:
            by_class[clip.names[0]].append(clip)
    if len(by_class) < 2:
        raise UserError(f"{split}: clips of fewer than two labels; give labelled shards with --labelled")
    chosen = random.Random(bench.experiment.seed).sample(sorted(by_class), min(NUM_CLASSES, len(by_class)))
    return [clip for name in sorted(chosen) for clip in by_class[name]]


def latents_of(bench: Bench, clips: list[LabelledClip]) -> dict[str, np.ndarray]:
    """space -> (N, D), each dimension standardised"""
    spaces: dict[str, list[Tensor]] = {}
    for start in range(0, len(clips), bench.options.batch_size):
        waveform = np.stack([clip.waveform for clip in clips[start : start + bench.options.batch_size]])  # (B, T)
        for space, latents in bench.generator.latents(torch.from_numpy(waveform)).items():
            spaces.setdefault(space, []).append(latents)
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


def tsne_of(points: np.ndarray) -> np.ndarray:
    """t-SNE (van der Maaten and Hinton 2008): (N, D) => (N, 2); the same points give the same picture."""
    perplexity = min(30.0, (len(points) - 1) / 3)
    tsne = import_library("sklearn.manifold").TSNE(perplexity=perplexity, init="pca", random_state=0)
    return tsne.fit_transform(points)


def continuation(bench: Bench) -> Figure:
    """Fig. 8: GPT-2 continues the LOA of a real clip's first quarter."""
    generator, clips, audio = bench.generator, figure_clips(bench), bench.audio
    generator.require_audiomae("continuation")
    rate, start = audio.sample_rate, round(CONTEXT_SHARE * audio.num_samples)

    def marked(part: Sequence[LabelledClip], waveform: Tensor) -> Tensor:
        rest = bench.sound.read("continued", [clip.key for clip in part], audio)[:, : audio.num_samples - start]
        return torch.cat([waveform[:, :start], beep(rate).expand(len(part), -1), rest], dim=1)

    bench.write(clips, {
        "continued": lambda part, wave: generator.continued(part, wave[:, :start], wave.shape[1]),
        "not_continued": lambda part, _: generator.from_text(part)[:, start:],
        "rest": lambda _, wave: wave[:, start:],
        "continuation": marked,
    })  # fmt: skip
    systems = {"Context and caption": "continued", "Caption alone": "not_continued"}
    measured = score_variants(bench, systems, clips, reference="rest")
    shown = {"Reference": "reference", "Context, beep, continuation": "continuation", "Caption alone": "not_continued"}
    return Figure(
        "continuation",
        "In-context continuation (Fig. 8)",
        f"{len(clips)} test clips: AudioMAE encodes the first {start / rate:.2f} s, repeated, GPT-2 is given these "
        "vectors after the caption and continues them, and the T-UNet keeps the latent of the context. Scored is what "
        f"follows the context, against what followed in the real clip. To listen: the real context, a beep of "
        f"{BEEP_SECONDS} s, the rest.",
        interval_charts(measured),
        sounds_of(bench, clips, shown),
        measured,
    )


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
