"""A YAML a row: each says its published numbers and its size, and trains at the smoke experiment's widths."""

import json
import re
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from audioldm2_pl.config import load_experiment
from audioldm2_pl.describe import MetaFolder, num_parameters
from audioldm2_pl.models.unet import TUNet
from audioldm2_pl.training.conditions import condition_widths
from audioldm2_pl.training.run import train
from data.shards import Clip, write_shards
from evaluation.report.published import published_tables

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
ROWS = sorted([*EXPERIMENTS.glob("table_*/*.yaml"), *EXPERIMENTS.glob("ablations/*.yaml")])
TABLES = {table.number: table for table in published_tables()}
SIZES: dict[str, float] = {}  # the same T-UNet stands in many files
load = lru_cache(load_experiment)
TINY_PHONEMES = "conditioners.phonemes={hidden_size: 16, num_layers: 1, num_heads: 2, ffn_dim: 16, max_length: 40}"


def size_of(experiment) -> float:
    """Million parameters of the T-UNet."""
    key = json.dumps(asdict(experiment.unet))
    if key not in SIZES:
        with torch.device("meta"):
            SIZES[key] = (
                num_parameters(TUNet(experiment.unet, condition_widths(experiment, MetaFolder(experiment)))) / 1e6
            )
    return SIZES[key]


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_a_row_says_table_command_numbers_and_size(path):
    text = path.read_text()
    first, second = text.splitlines()[:2]
    assert len(text.splitlines()) <= 15 and len(yaml.safe_load(text).get("description")) > 10
    assert first.endswith(f"; audioldm2 train {path.relative_to(EXPERIMENTS.parent)}")
    (number,) = re.findall(r"^# (?:First step of )?Tables? ([IV]+)", first)
    if not first.startswith("# First step"):
        printed = [cell for _, cells in TABLES[number].rows for cell in cells]
        numbers = re.findall(r"(?:FAD|KL|CLAP|MOS) ([\d.]+)", first)
        assert numbers and all(any(cell.split(" ")[0] == found for cell in printed) for found in numbers)
    (said,) = re.findall(r"T-UNet ([\d.]+) M parameters", second)
    assert size_of(load(path)) == pytest.approx(float(said), abs=0.005)


@pytest.mark.parametrize(
    ("row", "path"),
    [
        ("AudioLDM-Large-FT", "audioldm_l_ft"),
        ("AudioLDM-M", "audioldm_m"),
        ("AudioLDM 2-AC", "audioldm2_ac"),
        ("AudioLDM 2-AC-Large", "audioldm2_ac_large"),
    ],
)
def test_sizes_are_those_of_table_1(row, path):
    printed = float(TABLES["I"].cell(row, "Param").removesuffix(" M"))
    assert size_of(load(EXPERIMENTS / "table_1" / f"{path}.yaml")) == pytest.approx(printed, rel=0.01)


def test_rows_of_the_large_models_and_of_speech_are_the_published_networks():
    sizes = {path.stem: size_of(load(path)) for path in ROWS}
    assert sizes["audioldm2_full_large"] == sizes["audioldm2_ac_large"] != sizes["audioldm2_full"]
    assert sizes["audioldm2_full"] == sizes["audioldm2_msd"] == sizes["audioldm2_ac"]
    assert sizes["audioldm2_full_without_t5"] == sizes["audioldm2_ljs"] == sizes["unet_without_t5"]


def batches(*names: str) -> list[str]:
    return [f"training.{name}.{key}" for name in names for key in ("batches=3", "save_every_batches=3")]


def test_the_large_t_unet_trains(smoke, smoke_run, tmp_path):
    unet = yaml.safe_load((EXPERIMENTS / "table_1/audioldm2_ac_large.yaml").read_text())["unet"]
    layout = [f"unet.layout=[{','.join(unet['layout'])}]"]
    layout.append(f"unet.transformer_layers_per_block={unet['transformer_layers_per_block']}")
    given = [f"from.{part}={smoke_run.model_folder}" for part in ("clap", "audiomae", "vae", "vocoder", "t5", "gpt2")]
    experiment = smoke(*layout, *given, *batches("ldm"), "stages=[ldm]", runs=tmp_path)
    train(experiment)
    assert experiment.unet.transformers == ["self", "loa", "t5", "self"]
    config = json.loads((experiment.model_folder / "unet" / "config.json").read_text())
    assert config["cross_attention_dim"][0][0] is None and config["transformer_layers_per_block"] == 2


def test_a_t_unet_of_all_sound_then_gpt2_of_captioned_sound(smoke, smoke_run, tmp_path):
    """AudioLDM 2-Full, and AudioLDM-L finetuned: what start_from names goes on training."""
    given = [f"from.{part}={smoke_run.model_folder}" for part in ("clap", "audiomae", "vae", "vocoder")]
    first = smoke(*given, *batches("ldm"), "stages=[ldm]", "name=unet", runs=tmp_path)
    train(first)
    second = [f"start_from.{part}={first.model_folder}" for part in ("unet", "t5")]
    experiment = smoke(
        *given, *second, *batches("gpt2", "joint"), "stages=[gpt2,joint]", "training.joint.ema_decay=null", "name=full",
        runs=tmp_path,
    )  # fmt: skip
    train(experiment)
    for part in ("unet/diffusion_pytorch_model", "text_encoder_2/model"):
        before, after = (load_file(e.model_folder / f"{part}.safetensors") for e in (first, experiment))
        assert before.keys() == after.keys() and any(not torch.equal(before[key], after[key]) for key in before)


def test_speech_starts_from_another_corpus(smoke, smoke_run, tmp_path):
    """AudioLDM 2-LJS-Pretrained: GPT-2 and the phonemes of one run go on in the next."""
    pytest.importorskip("phonemizer")
    noise = 0.1 * np.random.default_rng(0).standard_normal((4, 40_960))
    clips = [
        Clip(f"{i}", transcript=text, waveform=noise[i]) for i, text in enumerate(("Hello.", "Yes.", "No.", "So?"))
    ]
    write_shards(iter(clips), tmp_path / "train", num_workers=1)
    speech = (
        TINY_PHONEMES, "conditioners.clap.hears=waveform", "conditioners.t5=null", "gpt2.conditions=[clap,phonemes]",
        "unet.conditions=[loa]", f"data.train=[{tmp_path}/train]", "data.test=null",
        *(f"from.{part}={smoke_run.model_folder}" for part in ("clap", "audiomae", "vae", "vocoder")),
    )  # fmt: skip
    first = smoke(*speech, *batches("gpt2"), "stages=[gpt2]", "name=giga", runs=tmp_path)
    train(first)
    starts = [f"start_from.{part}={first.model_folder}" for part in ("gpt2", "phonemes")]
    stages = "stages=[ldm,gpt2,joint]"
    second = smoke(*speech, *starts, *batches("ldm", "gpt2", "joint"), stages, "name=ljs", runs=tmp_path)
    train(second)
    assert second.trainable_conditioners(["phonemes"]) == ["phonemes"]
    before, after = (load_file(e.model_folder / "text_encoder_2" / "model.safetensors") for e in (first, second))
    moved = [float((before[key] - after[key]).abs().max()) for key in before if before[key].is_floating_point()]
    assert before.keys() == after.keys() and 0 < max(moved) < 0.1  # goes on, and does not begin afresh
