"""One new file and at most one line, with its import, elsewhere: a copy of the tree gets a toy of each kind."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

CONDITION = '''
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from audioldm2_pl.conditioners.condition import Condition


@dataclass
class LoudnessConfig:
    hidden: int = 4
    pretrained: ClassVar[None] = None
    num_tokens: ClassVar[int] = 1

    @property
    def width(self) -> int:
        return self.hidden

    def build(self) -> "Loudness":
        return Loudness(self.hidden)


class Loudness(nn.Module):
    """The number of letters of a prompt, in the place of a loudness."""

    name, reads, stored, has_own_stage, width_key = "loudness", "text", (), False, "hidden"
    hub_classes = {"loudness": ("toy", "Loudness")}

    def __init__(self, hidden):
        super().__init__()
        self.embed = nn.Linear(1, hidden)

    @classmethod
    def open(cls, load):
        return load("loudness")

    @property
    def width(self):
        return self.embed.out_features

    def encode(self, inputs):
        return Condition.of(self.embed(torch.tensor([[float(len(text))] for text in inputs["text"]])))

    def empty(self):
        return Condition.of(torch.zeros(1, self.width))

    def unread(self, text):
        return []

    def parts(self):
        return {}
'''

STAGE = """
from dataclasses import dataclass

import torch

from audioldm2_pl.fields import bounded
from audioldm2_pl.training.stage import Stage, StageConfig


@dataclass
class ToyTrainingConfig(StageConfig):
    batches: int = 2
    batch_size: int = 2
    loss_weights: dict[str, float | None] = bounded(lambda: {"level": 1.0}, keys=("level",), ge=0)


class ToyStage(Stage):
    name = "toy"
    optional = True

    def __init__(self, config):
        super().__init__(config)
        self.gain = torch.nn.Parameter(torch.ones(()))

    @classmethod
    def build(cls, experiment, folder):
        return cls(experiment.training.toy)

    def losses(self, batch):
        return {"level": (self.gain * batch["waveform"]).square().mean()}

    def parts(self):
        return {}
"""

SYSTEM = """
import torch

from .system import Opener, System


def open_hum(source, device, settings):
    time = torch.arange(16_000) / 8_000
    return System(8_000, lambda requests, seconds: [torch.sin(300 * time + len(r.caption)) for r in requests])


HUM = Opener("hum", open_hum, None)
"""

METRIC = """
import numpy as np

from .metric import Measured, Metric, NoSettings


def compute_peak(material, settings):
    values = np.abs(material.generated.embeddings.clip_means()).max(1)
    return Measured({"values": values}, values)


PEAK = Metric("toy_peak", "Peak", "", True, frozenset({"embeddings"}), None, compute_peak)
"""

EDIT = '''
import torch

from audioldm2_pl.editing import Edit


def keep_second_half(latent):
    """latent (B, C, H, W) => an Edit that keeps its second half in time."""
    keep = torch.zeros(1, 1, latent.shape[2], 1)
    keep[:, :, latent.shape[2] // 2 :] = 1
    return Edit(latent, keep)
'''

# what is added -> new file, its content, and the lines elsewhere: file -> (line before, lines after)
TOYS: dict[str, tuple[str, str, dict[str, tuple[str, list[str]]]]] = {
    "condition": (
        "audioldm2_pl/conditioners/loudness.py",
        CONDITION,
        {
            "audioldm2_pl/conditioners/config.py": (
                "    phonemes: PhonemeConfig | None = None\n",
                ["    loudness: LoudnessConfig | None = None\n"],
            )
        },
    ),
    "stage": (
        "audioldm2_pl/training/toy.py",
        STAGE,
        {
            "audioldm2_pl/config.py": (
                "    joint: JointTrainingConfig = field(default_factory=JointTrainingConfig)\n",
                ["    toy: ToyTrainingConfig = field(default_factory=ToyTrainingConfig)\n"],
            )
        },
    ),
    "metric": ("evaluation/metrics/toy_peak.py", METRIC, {}),
    "peer system": ("evaluation/systems/toy_hum.py", SYSTEM, {}),
    "editing ability": ("audioldm2_pl/keep_half.py", EDIT, {}),
    "sampler option": (
        "",
        "",
        {
            "audioldm2_pl/generation.py": (
                "    candidates: int = bounded(\n",
                ['    churn: float = bounded(0.0, ge=0, le=1, help="noise of a toy sampler")\n'],
            )
        },
    ),
}
IMPORTS = {
    "audioldm2_pl/conditioners/config.py": "from audioldm2_pl.conditioners.loudness import LoudnessConfig\n",
    "audioldm2_pl/config.py": "from audioldm2_pl.training.toy import ToyTrainingConfig\n",
}

USE = """
import sys
from pathlib import Path

import torch

from audioldm2_pl.config import STAGES, load_experiment
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.pipeline import AudioLDM2
from audioldm2_pl.training.run import train

shards, model, runs = sys.argv[1:]
data = [f"data.train=[{shards}/train]", "data.test=null", f"runs={runs}", "trainer.progress_bar=false"]

# condition: the T-UNet reads it beside T5, and it trains
given = [f"from.{part}={model}" for part in ("clap", "vae", "audiomae")]
experiment = load_experiment("experiments/smoke.yaml", [*data, *given, "stages=[ldm]", "conditioners.loudness={}",
                             "unet.conditions=[loa,t5,loudness]", "name=loud", "gpt2.conditions=[clap,t5]"])
folder = ModelFolder(experiment.model_folder, experiment.from_)
folder.take_given()
stage = STAGES["ldm"].build(experiment, folder)
batch = {"waveform": torch.randn(2, 40_960) * 0.1, "text": ["a", "bell"], "transcript": ["", ""], "key": "ab"}
with torch.no_grad():
    for parameter in stage.unet.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
stage.losses(batch)["diffusion"].backward()
assert stage.loudness.embed.weight.grad.abs().sum() > 0

# stage: named in the YAML, trained and recorded like any other
experiment = load_experiment("experiments/smoke.yaml", [*data, "stages=[toy]", "name=toy"])
train(experiment)
assert (experiment.run_folder / "stages" / "toy.json").is_file()

# metric: found by itself, with its unit and direction
from evaluation.metrics import METRICS
assert METRICS["toy_peak"].higher_is_better

# peer system: a command's word, found by itself
from evaluation.__main__ import main as evaluate
captions = Path(runs) / "captions.csv"
captions.write_text("filename,caption\\na.wav,a bell\\n")
assert evaluate(["generate", "hum", "nowhere", str(captions), f"{runs}/hum", "--seconds", "1"]) == 0
assert (Path(runs) / "hum/a.wav").is_file()

# editing ability: kept latents come through
from audioldm2_pl.keep_half import keep_second_half
pipeline = AudioLDM2.from_pretrained(model)
source = torch.randn(1, pipeline.unet.config.in_channels, 32, pipeline.audio.num_mel_bins // pipeline.downsampling)
edited = pipeline.generate_latent(*[[__import__("audioldm2_pl.generation").generation.Generation("a")],
                                    pipeline.sampling], keep_second_half(source))
assert torch.equal(edited[:, :, 16:], source[:, :, 16:]) and not torch.equal(edited, source)

# sampler option: a flag, a YAML key and a checked range
from audioldm2_pl.cli import build_parser
assert "--churn" in {f for a in build_parser()._subparsers._group_actions[0].choices["generate"]._actions
                     for f in a.option_strings}
assert load_experiment("experiments/smoke.yaml", [*data, "sampling.churn=0.5"]).sampling.churn == 0.5
print("all toys work")
"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A copy of the tree with every toy added."""
    tree = tmp_path_factory.mktemp("extended")
    for name in ("audioldm2_pl", "data", "evaluation", "experiments"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for new, content, elsewhere in TOYS.values():
        if new:
            (tree / new).write_text(content)
        for file, (before, lines) in elsewhere.items():
            path = tree / file
            text = path.read_text()
            assert text.count(before) == 1, f"{file}: {before}"
            marker = before + "".join(lines) if not before.endswith("(\n") else "".join(lines) + before
            path.write_text(IMPORTS.get(file, "") + text.replace(before, marker))
    return tree


def test_a_toy_is_one_file_and_one_line():
    for what, (new, _, elsewhere) in TOYS.items():
        added = sum(len(lines) for _, lines in elsewhere.values())
        assert added <= 1 and bool(new) + added >= 1, what


def test_the_toys_work(extended, shards, smoke_run, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(extended), "HF_HUB_OFFLINE": "1"}
    arguments = [str(shards), str(smoke_run.model_folder), str(tmp_path)]
    result = subprocess.run(
        [sys.executable, "-c", USE, *arguments], cwd=extended, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0 and "all toys work" in result.stdout, result.stderr[-3000:]
