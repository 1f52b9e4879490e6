"""Metrics in two real processes over gloo: each meets its own clips, and both read what one pass over all gives."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torchmetrics import Metric

from evaluation.metrics.clap import CLAPScore, clap_score
from evaluation.metrics.fad import FrechetDistance, distance_of_rows
from evaluation.metrics.inception import InceptionScore, inception_score
from evaluation.metrics.kl import KLDivergence, kl_of_logits
from evaluation.metrics.wer import WordErrorRate, word_error_rate

NUM_CLIPS = 31
SHARES = (slice(0, 20), slice(20, NUM_CLIPS))  # unequal, and in batches of unequal size
TRANSCRIPTS = [f"clip {'very ' * (n % 4)}{n}" for n in range(NUM_CLIPS)]
TEXT = [f"clip {'very ' * (n % 3)}{n % 10}" for n in range(NUM_CLIPS)]


def arrays() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {
        "embeddings": draw.normal(2.0, 1.0, size=(2, NUM_CLIPS, 16)).astype(np.float32),
        "logits": draw.normal(0.0, 3.0, size=(2, NUM_CLIPS, 21)).astype(np.float32),
    }


def one_pass() -> dict[str, float]:
    embeddings, logits = arrays().values()
    return {
        "fad": distance_of_rows(*embeddings),
        "kl": kl_of_logits(*logits, epsilon=1e-6).mean(),
        "kl_sigmoid": kl_of_logits(*logits, activation="sigmoid").mean(),
        "inception": inception_score(logits[1]),
        "clap": clap_score(*embeddings),
        "wer": word_error_rate(TRANSCRIPTS, TEXT),
    }


def update_and_compute(rank: int, folder: str) -> None:
    """One process: updates every metric with its share, writes what compute() says to <folder>/<rank>.json."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=len(SHARES))
    fad, inception, clap, wer = FrechetDistance(16), InceptionScore(21), CLAPScore(), WordErrorRate()
    kl, kl_sigmoid = KLDivergence(epsilon=1e-6), KLDivergence(activation="sigmoid")
    for clips in torch.arange(NUM_CLIPS)[SHARES[rank]].split(6):
        (reference, generated), (p, q) = (torch.from_numpy(both[:, clips]) for both in arrays().values())
        fad.update(reference, real=True)
        fad.update(generated, real=False)
        for metric in (kl, kl_sigmoid):
            metric.update(p, q)
        inception.update(q)
        clap.update(reference, generated)
        wer.update([TRANSCRIPTS[n] for n in clips], [TEXT[n] for n in clips])
    metrics: dict[str, Metric] = {
        "fad": fad, "kl": kl, "kl_sigmoid": kl_sigmoid, "inception": inception, "clap": clap, "wer": wer,
    }  # fmt: skip
    found = {name: metric.compute().item() for name, metric in metrics.items()}
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_two_processes_read_what_one_pass_gives(tmp_path):
    spawn(update_and_compute, (str(tmp_path),), nprocs=len(SHARES))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(len(SHARES)))
    assert first == second  # to the last bit: a rank that saw another value would stop or save at another time
    expected = one_pass()
    assert first == {name: pytest.approx(value, rel=1e-10) for name, value in expected.items()}
    assert first["wer"] == expected["wer"] and all(value > 0 for value in map(abs, first.values()))
