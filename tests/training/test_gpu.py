"""What only a GPU shows: every stage in bf16 and compiled, networks and sounds as on a CPU. `make gpu` runs them.

They are skipped where there is none; AUDIOLDM2_TEST_ACCELERATOR=cpu runs them there, to test the tests.
"""

import os
from typing import Any

import pytest
import torch
from breaking import break_off

from audioldm2_pl.conditioners.condition import Condition
from audioldm2_pl.config import STAGES
from audioldm2_pl.generation import Generation, Sampling
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.pipeline import AudioLDM2
from audioldm2_pl.training.run import train

ACCELERATOR = os.environ.get("AUDIOLDM2_TEST_ACCELERATOR", "cuda")
STAGE_NAMES = ("clap", "audiomae", "vae", "vocoder", "decoder", "ldm", "gpt2", "joint")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(ACCELERATOR == "cuda" and not torch.cuda.is_available(), reason="no GPU"),
]


@pytest.fixture(autouse=True)
def whole_float32():
    """Products in float32 as they are, not in TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def options_of(name: str, model: Any) -> list[str]:
    """The settings with which one stage alone is trained, on the other parts of a model."""
    parts = {part: "from" for part in ("clap", "audiomae", "vae", "vocoder", "unet", "gpt2", "t5")}
    parts.pop(STAGES[name].makes or "", None)
    for part in {"decoder": ("vae",), "joint": ("unet", "gpt2")}.get(name, ()):
        parts[part] = "start_from"
    return [f"stages=[{name}]", *(f"{key}.{part}={model}" for part, key in parts.items())]


def logged_losses(experiment: Any, name: str) -> list[float]:
    rows = (experiment.run_folder / f"logs/{name}/metrics.csv").read_text().splitlines()[1:]
    return [float(row.rsplit(",", 1)[1]) for row in rows]


@pytest.mark.parametrize("name", STAGE_NAMES)
def test_a_stage_trains_in_bf16_compiled_and_resumes(name, smoke, smoke_run, monkeypatch):
    mode = "default" if ACCELERATOR == "cuda" else "null"  # to compile for a CPU takes minutes a stage
    options = [f"trainer.accelerator={ACCELERATOR}", "trainer.precision=bf16-mixed", f"trainer.compile={mode}"]
    experiment = smoke(*options, *options_of(name, smoke_run.model_folder))
    break_off(experiment, name, 2, monkeypatch)
    assert (experiment.run_folder / f"checkpoints/{name}.ckpt").is_file()
    train(experiment)
    losses = logged_losses(experiment, name)
    assert len(losses) >= 4 and torch.isfinite(torch.tensor(losses)).all()
    assert not (experiment.run_folder / f"checkpoints/{name}.ckpt").exists()  # finished


@pytest.mark.parametrize("name", ["ldm", "vae"])
def test_one_process_of_ddp(name, smoke, smoke_run):
    options = [f"trainer.accelerator={ACCELERATOR}", "trainer.devices='1'", "trainer.precision=bf16-mixed"]
    strategy = "ddp" if name == "ldm" else "ddp_find_unused_parameters_true"  # of two losses each reaches other weights
    experiment = smoke(
        *options, f"trainer.lightning={{strategy: {strategy}}}", *options_of(name, smoke_run.model_folder)
    )
    train(experiment)
    assert all(value == value for value in logged_losses(experiment, name))


def test_networks_give_what_they_give_on_a_cpu(smoke_run):
    folder, audio, mae = ModelFolder(smoke_run.model_folder), smoke_run.audio, smoke_run.audiomae
    unet, vae, vocoder, audiomae = (folder.load(part) for part in ("unet", "vae", "vocoder", "audiomae"))
    torch.manual_seed(0)
    conditions = [Condition.of(torch.randn(2, 4, unet.condition_widths[name])) for name in unet.config.conditions]
    latent = torch.randn(2, unet.config.in_channels, unet.config.sample_size, 16)
    timestep, log_mel = torch.tensor([9, 700]), torch.randn(2, 64, audio.num_mel_bins) - 4
    fbank = torch.randn(2, 1, mae.num_frames, mae.num_bins)
    calls: list[tuple[Any, Any]] = [
        (unet, lambda to: unet(to(latent), to(timestep), [to(condition) for condition in conditions])),
        (vae, lambda to: vae.decode(to(latent))[0]),
        (vocoder, lambda to: vocoder(to(log_mel))),
        (audiomae, lambda to: audiomae.features(to(fbank))),
    ]
    for network, call in calls:
        with torch.no_grad():
            network.eval().to("cpu")
            here = call(lambda value: value)
            network.to(ACCELERATOR)
            there = call(lambda value: value.to(ACCELERATOR)).cpu()
        error = (here - there).abs().max() / here.abs().max()
        assert error < 1e-3, f"{type(network).__name__}: {error}"


def test_a_sound_is_that_of_a_cpu(smoke_run):
    """The noise of a seed is drawn on the CPU, whatever the device."""
    requests = [Generation("a low tone", seed=1), Generation("a bell", seed=2)]
    sounds = [
        AudioLDM2.from_pretrained(smoke_run.model_folder, device=device).generate(
            requests, sampling=Sampling(num_steps=4)
        )
        for device in ("cpu", ACCELERATOR)
    ]
    assert sounds[0].shape == sounds[1].shape
    assert torch.linalg.vector_norm(sounds[0] - sounds[1]) < 0.02 * torch.linalg.vector_norm(sounds[0])
