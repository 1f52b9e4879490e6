"""Scores of a folder of audio of any origin under a protocol: `python -m evaluation score`.

A result holds its protocol, the checksums of weights and clips, and the versions of the libraries; two runs give the
same one but for the seconds.

Shapes: N clips, R rows, W windows, D embedding size, K classes.
"""

import hashlib
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from audioldm2_pl.errors import UserError

from .clap import cosines
from .embeddings import BACKENDS, COMPANIONS, Backend, find_weights, sha256_of
from .fad import ClipFeatures, distance_against_n, distance_of_rows, extrapolate, per_clip_distance
from .hearing import Heard, Pairs, listen, oddities, pair_up
from .inception import inception_score
from .kl import kl_of_logits, log_softmax
from .protocols import KINDS, ModelSettings, Protocol, ScoreSettings, load_protocol
from .uncertainty import Interval, linearised, mean_interval, sample_size_warning, statistic_interval
from .wer import RECOGNISERS, word_errors

LIBRARIES = (
    "torch",
    "torchaudio",
    "numpy",
    "scipy",
    "soxr",
    "soundfile",
    "transformers",
    "laion-clap",
    "frechet-audio-distance",
    "hear21passt",
)


@dataclass
class ScoreOptions:
    weights: Path = Path("weights")  # folder of the checkpoints
    device: str = "cpu"
    batch_size: int = 8  # windows that a model hears at a time
    resamples: int = 200  # of Fréchet distances and inception scores; means take 25 times as many
    seed: int = 0  # of the resamples
    download: bool = False  # fetch missing checkpoints
    num_workers: int = 4  # threads that read and resample files


@dataclass
class Material:
    """What one score is made of."""

    pairs: Pairs
    generated: Heard
    reference: Heard | None
    texts: np.ndarray | None  # (captions, D), those of a clip one after the other


@dataclass
class Score:
    interval: Interval
    per_clip: np.ndarray | None = None  # (N,)
    details: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, np.ndarray] = field(default_factory=dict)  # what a comparison with another system resamples


def mean_of_clips(features: ClipFeatures) -> np.ndarray:
    """Rows (R, D) => their mean in each clip (N, D), float64"""
    first = np.cumsum(features.counts) - features.counts
    return np.add.reduceat(features.rows.astype(np.float64), first, axis=0) / features.counts[:, None]


def logits_of(heard: Heard | None, settings: ScoreSettings) -> ClipFeatures:
    if heard is None or heard.logits is None:
        raise UserError(f"model {settings.model!r} is no tagger: it gives no {settings.kind}")
    return heard.logits


def pooled_logits(heard: Heard | None, settings: ScoreSettings) -> np.ndarray:
    """(N, K): a clip's windows averaged as logits, or as log-probabilities of their mean probabilities"""
    logits = logits_of(heard, settings)
    if settings.pool == "logits":
        return mean_of_clips(logits)
    return np.log(mean_of_clips(ClipFeatures(np.exp(log_softmax(logits.rows)), logits.counts)))


def resampled(statistic: Callable[[np.ndarray], float], num_clips: int, options: ScoreOptions) -> Interval:
    if options.resamples == 0:
        value = statistic(np.arange(num_clips))
        return Interval(value, float("nan"), float("nan"), 0)
    return statistic_interval(statistic, num_clips, options.resamples, options.seed)


def score_of_values(values: np.ndarray, per_clip: np.ndarray, options: ScoreOptions) -> Score:
    """The mean of values (N,), with what to show of each clip."""
    interval = Interval(float(np.mean(values)), float("nan"), float("nan"), 0)
    if options.resamples:
        interval = mean_interval(values, 25 * options.resamples, options.seed)
    return Score(interval, per_clip, samples={"values": values})


def score_frechet(material: Material, settings: ScoreSettings, options: ScoreOptions) -> Score:
    assert material.reference
    reference, generated = material.reference.embeddings, material.generated.embeddings

    def distance(clips: np.ndarray) -> float:
        return distance_of_rows(reference.take(clips), generated.take(clips))

    score = Score(resampled(distance, generated.num_clips, options))
    score.details = {"rows": len(generated.rows), "embedding_size": generated.rows.shape[1]}
    if generated.num_clips >= 10:
        curve = distance_against_n(reference, generated, seed=options.seed)
        limit, r_squared = extrapolate(curve)
        score.details |= {"against_n": curve, "at_infinity": limit, "r_squared": r_squared}
    if generated.counts.max() > 1:
        score.per_clip = per_clip_distance(reference, generated)
    for side, features in (("reference", reference), ("generated", generated)):
        score.samples |= {f"{side}_rows": features.rows, f"{side}_counts": features.counts}
    return score


def score_kl(material: Material, settings: ScoreSettings, options: ScoreOptions) -> Score:
    divergence = partial(
        kl_of_logits, activation=settings.activation, epsilon=settings.epsilon, direction=settings.direction
    )
    if settings.sample == "clip":
        per_clip = divergence(pooled_logits(material.reference, settings), pooled_logits(material.generated, settings))
        return score_of_values(per_clip, per_clip, options)
    reference, generated = (logits_of(heard, settings) for heard in (material.reference, material.generated))
    counts = np.minimum(reference.counts, generated.counts)  # windows that both clips of a pair have
    sums = np.array(
        [
            divergence(reference.take(clip)[:count], generated.take(clip)[:count]).sum()
            for clip, count in zip(np.arange(len(counts))[:, None], counts)
        ]
    )
    return score_of_values(linearised(sums, counts), sums / counts, options)


def score_inception(material: Material, settings: ScoreSettings, options: ScoreOptions) -> Score:
    logits = pooled_logits(material.generated, settings)
    score = Score(resampled(lambda clips: inception_score(logits[clips]), len(logits), options))
    score.samples = {"logits": logits}
    return score


def score_clap(material: Material, settings: ScoreSettings, options: ScoreOptions) -> Score:
    """A clip's score is the mean over its captions; its embedding, the mean over its windows."""
    if material.texts is None:
        raise UserError(f"model {settings.model!r} hears no captions: it gives no CLAP score")
    counts = np.array([len(captions) for captions in material.pairs.captions])
    audio = mean_of_clips(material.generated.embeddings)
    similarity = cosines(np.repeat(audio, counts, axis=0), material.texts)
    per_clip = mean_of_clips(ClipFeatures(similarity[:, None], counts))[:, 0]
    return score_of_values(per_clip, per_clip, options)


SCORES: dict[str, Callable[[Material, ScoreSettings, ScoreOptions], Score]] = {
    "frechet": score_frechet,
    "kl": score_kl,
    "inception": score_inception,
    "clap": score_clap,
}


def score_wer(pairs: Pairs, recognise: Callable[[list[Path]], list[str]], options: ScoreOptions) -> Score:
    heard = recognise(pairs.generated)
    errors = [word_errors(texts[0], got) for texts, got in zip(pairs.captions, heard)]
    words = np.array([e.num_words for e in errors])
    rates = np.array([e.rate for e in errors])
    score = score_of_values(linearised(rates * words, words), rates, options)
    score.details = {"heard": dict(zip(pairs.names, heard))}
    return score


def score_folders(
    generated: Path,
    reference: Path | None,
    captions: Path | None,
    protocol_name: str,
    options: ScoreOptions,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """=> the result, and the arrays `<score>/<name>` that a comparison resamples"""
    begin = time.perf_counter()
    check_options(options)
    protocol = load_protocol(protocol_name)
    for name, score in protocol.scores.items():
        if (needed := KINDS[score.kind]) and not {"reference": reference, "captions": captions}[needed]:
            raise UserError(f"score {name} of protocol {protocol_name} needs --{needed}")
    checkpoints = {name: fetch(model, options) for name, model in protocol.models.items()}
    pairs = pair_up(generated, reference, captions, protocol)
    odd = [
        line
        for side, paths in (("generated", pairs.generated), ("reference", pairs.reference))
        for line in (oddities(side, pairs.names, paths, options.num_workers) if paths else ())
    ]
    scores: dict[str, Score] = {}
    weights: dict[str, dict[str, str]] = {}
    for name, model in protocol.models.items():
        wanted = {score: s for score, s in protocol.scores.items() if s.model == name}
        path = checkpoints[name]
        if model.backend in RECOGNISERS:
            weights[name] = folder_digests(path)
            recognise = RECOGNISERS[model.backend](path, options.device)
            scores |= {score: score_wer(pairs, recognise, options) for score in wanted}
            continue
        backend = BACKENDS[model.backend](path, options.device)
        weights[name] = backend.weights
        material = hear_all(pairs, protocol, name, backend, options)
        scores |= {score: SCORES[s.kind](material, s, options) for score, s in wanted.items()}
    result = {
        **description(pairs, protocol, protocol_name),
        "generated": str(generated),
        "reference": str(reference) if reference else None,
        "weights": weights,
        "device": options.device,
        "resamples": options.resamples,
        "seed": options.seed,
        "warnings": odd + warnings_of(pairs, protocol, scores),
        "scores": {name: plain(scores[name], pairs.names) for name in protocol.scores},
        "seconds": time.perf_counter() - begin,
    }
    return result, {f"{name}/{key}": array for name, s in scores.items() for key, array in s.samples.items()}


def fetch(model: ModelSettings, options: ScoreOptions) -> Path:
    """The model's checkpoint; what it needs beside it is there too."""
    for name in COMPANIONS.get(model.backend, ()):
        find_weights(options.weights, name, options.download)
    return find_weights(options.weights, model.weights, options.download)


def check_options(options: ScoreOptions) -> None:
    """UserError where a number is out of range or the device is not there."""
    if options.batch_size < 1 or options.resamples < 0:
        raise UserError("--batch-size has to be at least 1, --resamples at least 0")
    try:
        torch.zeros(1, device=options.device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {options.device}: {str(error).splitlines()[0]}") from None


@torch.inference_mode()
def hear_all(pairs: Pairs, protocol: Protocol, name: str, backend: Backend, options: ScoreOptions) -> Material:
    hear = partial(
        listen,
        settings=protocol.models[name],
        backend=backend,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
    )
    kinds = {s.kind for s in protocol.scores.values() if s.model == name}
    texts = None
    if "clap" in kinds and backend.embed_text and pairs.captions:
        captions = [caption for of_clip in pairs.captions for caption in of_clip]
        parts = [captions[i : i + options.batch_size] for i in range(0, len(captions), options.batch_size)]
        texts = np.concatenate([backend.embed_text(part).float().cpu().numpy() for part in parts])
    reference = hear(pairs.reference) if pairs.reference and kinds & {"frechet", "kl"} else None
    return Material(pairs, hear(pairs.generated), reference, texts)


def description(pairs: Pairs, protocol: Protocol, name: str) -> dict[str, Any]:
    """What the result is of: protocol, clips, libraries."""
    return {
        "protocol": name,
        "protocol_sha256": protocol.digest,
        "protocol_settings": protocol.settings(),
        "num_clips": len(pairs.names),
        "missing": pairs.missing,
        "sample_rates": {
            side: sorted({soundfile.info(path).samplerate for path in paths})
            for side, paths in (("generated", pairs.generated), ("reference", pairs.reference))
        },
        "sha256": {
            "generated": digest_of_files(pairs.names, pairs.generated),
            "reference": digest_of_files(pairs.names, pairs.reference),
            "captions": hashlib.sha256(json.dumps(pairs.captions).encode()).hexdigest(),
        },
        "clips": pairs.names,
        "versions": versions(),
    }


def digest_of_files(names: list[str], paths: list[Path]) -> str | None:
    """sha256 over the clips' names and bytes; None of no clips"""
    if not paths:
        return None
    lines = [f"{name} {sha256_of(path)}" for name, path in zip(names, paths)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def folder_digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in sorted(folder.iterdir()) if path.is_file()}


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def warnings_of(pairs: Pairs, protocol: Protocol, scores: dict[str, Score]) -> list[str]:
    lines = [f"{side}: {len(names)} of the names are missing" for side, names in pairs.missing.items() if names]
    if protocol.expected_clips and len(pairs.names) not in protocol.expected_clips:
        expected = " or ".join(map(str, protocol.expected_clips))
        lines.append(f"{len(pairs.names)} clips; numbers published under this protocol are of {expected}")
    for name, score in scores.items():
        if "embedding_size" in score.details:
            lines.append(sample_size_warning(name, score.details["rows"], score.details["embedding_size"]) or "")
    return [line for line in lines if line]


def plain(score: Score, names: list[str]) -> dict[str, Any]:
    """A score as JSON: nan becomes null."""

    def number(value: float) -> float | None:
        return float(value) if np.isfinite(value) else None

    interval = {k: number(v) if isinstance(v, float) else v for k, v in asdict(score.interval).items()}
    per_clip = None if score.per_clip is None else {n: number(v) for n, v in zip(names, score.per_clip)}
    return {**interval, **score.details, "per_clip": per_clip}


def write_result(result: dict[str, Any], samples: dict[str, np.ndarray], output: Path) -> None:
    """<output> (JSON) and beside it <output>.npz with the arrays that `compare` resamples"""
    output.parent.mkdir(parents=True, exist_ok=True)
    np.savez(output.with_suffix(".npz"), **samples)  # type: ignore[arg-type]
    output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def table(result: dict[str, Any]) -> str:
    lines = [f"{result['protocol']}, {result['num_clips']} clips", f"{'score':12} {'value':>10}   95 % interval"]
    for name, score in result["scores"].items():
        value, low, high = ("-" if score[key] is None else f"{score[key]:.4f}" for key in ("value", "low", "high"))
        lines.append(f"{name:12} {value:>10}   {low} to {high}")
    return "\n".join([*lines, *(f"warning: {line}" for line in result["warnings"])])
