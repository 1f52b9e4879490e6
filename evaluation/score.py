"""Scores of a folder of audio of any origin under a protocol: `python -m evaluation score`.

A result holds its protocol, the checksums of weights and clips, and the versions of the libraries; two runs give the
same one but for the seconds.

Shapes: N clips, D embedding size.
"""

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from audioldm2_pl.errors import UserError

from .checkpoints import sha256_of
from .features import encode_files
from .libraries import versions
from .metrics.embeddings import Embedder
from .metrics.metric import Material, Measured
from .pairs import Inputs, Pairs, clip_warnings, pair_up
from .protocols import Protocol, load_protocol
from .uncertainty import Interval, sample_size_warning

Result = dict[str, Any]  # as JSON
Arrays = dict[str, np.ndarray]  # <score>/<name>: what a comparison resamples


@dataclass
class ScoreOptions:
    weights: Path = Path("weights")  # folder of the checkpoints
    device: str = "cpu"
    batch_size: int = 8  # windows that a network reads at a time
    resamples: int = 200  # of Fréchet distances and inception scores; means take 25 times as many
    seed: int = 0  # of the resamples
    download: bool = False  # fetch missing checkpoints
    num_workers: int = 4  # threads that read and resample files


def score_folders(inputs: Inputs, protocol_name: str, options: ScoreOptions) -> tuple[Result, Arrays]:
    """=> the result, and the arrays `<score>/<name>` that a comparison resamples. UserError where a side, a checkpoint
    or a clip is missing."""
    begin = time.perf_counter()
    check_score_options(options)
    protocol = load_protocol(protocol_name)
    for name in protocol.scores:
        if (needed := protocol.metric(name).needs) and not getattr(inputs, needed):
            raise UserError(f"score {name} of protocol {protocol_name} needs --{needed}")
    checkpoints = fetch_weights(protocol, options)
    pairs = pair_up(inputs, protocol)
    measured: dict[str, Measured] = {}
    weights: dict[str, dict[str, str]] = {}
    for name, checkpoint in checkpoints.items():
        embedder = protocol.backend(name).load(checkpoint, options.device)
        weights[name] = embedder.weights
        material = material_of(pairs, protocol, name, embedder, options)
        for score in protocol.scores_of(name):
            measured[score] = protocol.metric(score).compute(material, protocol.scores[score].choices)
    intervals = {
        name: protocol.metric(name).interval(found.samples, len(pairs.names), options.resamples, options.seed)
        for name, found in measured.items()
    }
    result = {
        **description(pairs, protocol, protocol_name),
        "generated": str(inputs.generated),
        "reference": str(inputs.reference) if inputs.reference else None,
        "weights": weights,
        "device": options.device,
        "resamples": options.resamples,
        "seed": options.seed,
        "warnings": warnings_of(pairs, protocol, measured, options),
        "scores": {name: as_json(intervals[name], measured[name], pairs.names) for name in protocol.scores},
        "seconds": time.perf_counter() - begin,
    }
    return result, {f"{name}/{key}": array for name, m in measured.items() for key, array in m.samples.items()}


def fetch_weights(protocol: Protocol, options: ScoreOptions) -> dict[str, Path]:
    """Model -> its checkpoint; UserError where one is missing, or what it needs beside it."""
    return {
        name: protocol.backend(name).fetch(options.weights, model.weights, options.download)
        for name, model in protocol.models.items()
    }


def check_score_options(options: ScoreOptions) -> None:
    """UserError where a number is out of range or the device is not there."""
    if options.batch_size < 1 or options.resamples < 0:
        raise UserError("--batch-size has to be at least 1, --resamples at least 0")
    try:
        torch.zeros(1, device=options.device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {options.device}: {str(error).splitlines()[0]}") from None


@torch.inference_mode()
def material_of(pairs: Pairs, protocol: Protocol, name: str, embedder: Embedder, options: ScoreOptions) -> Material:
    """What the scores of one network are made of; nothing that none of them reads is computed."""
    reads = protocol.reads(name)
    material = Material(
        pairs.names, captions=pairs.captions, labels=pairs.labels, classes=embedder.classes, seed=options.seed
    )
    if embedder.transcribe and "transcripts" in reads:
        material.transcripts = embedder.transcribe(pairs.generated)
    if reads & {"embeddings", "logits"}:
        settings = protocol.models[name], embedder, options.batch_size, options.num_workers
        material.generated = encode_files(pairs.generated, *settings)
        if any(protocol.metric(score).needs == "reference" for score in protocol.scores_of(name)):
            material.reference = encode_files(pairs.reference, *settings)
    if embedder.rate:
        material.ratings = embedder.rate(pairs.generated)
    if "caption_embeddings" in reads:
        captions = [caption for of_clip in pairs.captions for caption in of_clip]
        material.caption_embeddings = encode_texts(captions, embedder, options.batch_size)
    if "prompt_embeddings" in reads:
        prompts = [prompt for score in protocol.scores_of(name) for prompt in protocol.metric(score).prompts]
        material.prompt_embeddings = encode_texts(prompts, embedder, options.batch_size)
        material.logit_scale = embedder.logit_scale
    return material


def encode_texts(texts: list[str], embedder: Embedder, batch_size: int) -> np.ndarray:
    """=> (texts, D)"""
    assert embedder.encode_text is not None
    parts = [texts[i : i + batch_size] for i in range(0, len(texts), batch_size)]
    return np.concatenate([embedder.encode_text(part).float().cpu().numpy() for part in parts])


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
            "labels": hashlib.sha256(json.dumps(pairs.labels).encode()).hexdigest(),
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


def warnings_of(pairs: Pairs, protocol: Protocol, measured: dict[str, Measured], options: ScoreOptions) -> list[str]:
    """What a reader of the scores has to know: odd clips, missing names, too few clips."""
    lines = []
    for side, paths in (("generated", pairs.generated), ("reference", pairs.reference)):
        lines += clip_warnings(side, pairs.names, paths, options.num_workers) if paths else []
    lines += [f"{side}: {len(names)} of the names are missing" for side, names in pairs.missing.items() if names]
    if protocol.expected_clips and len(pairs.names) not in protocol.expected_clips:
        expected = " or ".join(map(str, protocol.expected_clips))
        lines.append(f"{len(pairs.names)} clips; numbers published under this protocol are of {expected}")
    for name, found in measured.items():
        if "embedding_size" in found.details:
            lines.append(sample_size_warning(name, found.details["rows"], found.details["embedding_size"]) or "")
    return [line for line in lines if line]


def as_json(interval: Interval, measured: Measured, names: list[str]) -> dict[str, Any]:
    """A score as JSON: nan becomes null."""

    def number(value: float) -> float | None:
        return float(value) if np.isfinite(value) else None

    plain = {k: number(v) if isinstance(v, float) else v for k, v in asdict(interval).items()}
    per_clip = None if measured.per_clip is None else {n: number(v) for n, v in zip(names, measured.per_clip)}
    return {**plain, **measured.details, "per_clip": per_clip}


def write_result(result: Result, samples: Arrays, output: Path) -> None:
    """<output> (JSON) and beside it <output>.npz with the arrays that `compare` resamples"""
    output.parent.mkdir(parents=True, exist_ok=True)
    np.savez(output.with_suffix(".npz"), **samples)  # type: ignore[arg-type]
    output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def score_table(result: Result) -> str:
    """The scores for a terminal."""
    lines = [f"{result['protocol']}, {result['num_clips']} clips", f"{'score':14} {'value':>10}   95 % interval"]
    for name, score in result["scores"].items():
        value, low, high = ("-" if score[key] is None else f"{score[key]:.4f}" for key in ("value", "low", "high"))
        lines.append(f"{name:14} {value:>10}   {low} to {high}")
    return "\n".join([*lines, *(f"warning: {line}" for line in result["warnings"])])
