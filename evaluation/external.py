"""Scores of an external program `SCORER GENERATED REFERENCE` that prints one JSON object.

The same program also scores white noise and the generated clips with their classes shuffled, so that a score comes
with what it would be for nothing.
"""

import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from audioldm2_pl.audio import save_waveform
from audioldm2_pl.errors import UserError


def run_scorer(scorer: Path, generated: Path, reference: Path) -> dict:
    done = subprocess.run([sys.executable, scorer, generated, reference], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{scorer}: failed on {generated} ({reason})")
    return json.loads(done.stdout)


def score_externally(scorer: Path, generated: Path, reference: Path, seed: int = 0) -> dict:
    """The scorer's keys for `generated`, and under "baselines" for white noise and for shuffled classes.

    `generated` holds one sub-folder a class. Raises UserError where a folder or the scorer is missing.
    """
    for path in (scorer, generated, reference):
        if not path.exists():
            raise UserError(f"{path}: not there; give the scorer, the generated and the reference folder")
    clips = sorted(path for path in generated.rglob("*.wav") if not path.name.startswith("."))
    if not clips:
        raise UserError(f"{generated}: holds no .wav files; generate them first")
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as temporary:
        noise, shuffled = Path(temporary) / "noise", Path(temporary) / "shuffled"
        sources = random.Random(seed).sample(clips, len(clips))
        for clip, source in zip(clips, sources):
            waveform, rate = soundfile.read(clip)
            name = clip.relative_to(generated)
            save_waveform(noise / name, rng.uniform(-0.5, 0.5, len(waveform)), rate)
            (shuffled / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, shuffled / name)
        return {
            **run_scorer(scorer, generated, reference),
            "baselines": {
                "white_noise": run_scorer(scorer, noise, reference),
                "shuffled_classes": run_scorer(scorer, shuffled, reference),
            },
        }
