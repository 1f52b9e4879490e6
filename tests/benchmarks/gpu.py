"""All that a machine with a GPU is to show, in one command without a network: `make gpu`, in 25 minutes or less.

tests       those marked `gpu`: each stage in bf16 and compiled, resumed, one process of DDP, sounds as on a CPU
training    a training step of the base T-UNet, bf16 and compiled, beside diffusers', and its share of the GPU's peak
generation  10.24 s by the base networks with random weights in bf16: 200 and 20 guided steps, 4 without guidance
esc10       the recipe of ESC-10 in bf16, where its recordings and the scorer are given

Writes docs/results/gpu.json after each part; `--parts` chooses.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from networks import SEED, cpu_flags, cuda_rows

from audioldm2_pl.conditioners.condition import Condition
from audioldm2_pl.config import load_experiment
from audioldm2_pl.generation import Sampling
from audioldm2_pl.models.diffusion import build_scheduler, sample
from audioldm2_pl.models.guidance import UNetInputs, predictor
from audioldm2_pl.models.unet import TUNet
from audioldm2_pl.models.vae import build_vae, log_mel_of
from audioldm2_pl.models.vocoder import build_vocoder, vocode

OUTPUT = Path("docs/results/gpu.json")
PARTS = ("tests", "training", "generation", "esc10")
STEPS = {200: 3.5, 20: 3.5, 4: 1.0}  # of the sampler -> guidance scale
REPEATS = 3


def timed(call: Callable[[], Any], device: str) -> float:
    """Seconds of the fastest of some calls, after one that compiles and allocates."""
    found = []
    for _ in range(1 + REPEATS):
        started = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return min(found[1:])


def run_tests() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "gpu", "tests/training/test_gpu.py"], capture_output=True, text=True
    )
    lines = done.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"exit_code": done.returncode, "summary": lines[-1] if lines else done.stderr[-500:], "failed": failed}


def time_generation(experiment: str, device: str, dtype: torch.dtype, batch_size: int = 1) -> list[dict[str, Any]]:
    """Seconds from the T-UNet's conditions to a waveform, with the networks of an experiment at random weights."""
    settings = load_experiment(experiment)
    torch.manual_seed(SEED)
    widths = {"loa": settings.audiomae.embed_dim, "t5": settings.conditioners.t5.width}
    unet = TUNet(settings.unet, widths).to(device, dtype).eval()
    vae = build_vae(settings.vae).to(device, dtype).eval()
    vocoder = build_vocoder(settings.vocoder, settings.audio).to(device, dtype).eval()
    if device == "cuda":
        unet.compile()
    shape = (
        settings.unet.in_channels,
        settings.unet.sample_size,
        settings.audio.num_mel_bins // settings.vae.downsampling,
    )
    given = {name: Condition.of(torch.randn(batch_size, 8, width)).to(device, dtype) for name, width in widths.items()}
    rows = []
    for num_steps, scale in STEPS.items():
        inputs = UNetInputs.of(settings.unet, given)
        if scale != 1.0:
            inputs.unconditional = inputs
        sampling = Sampling(num_steps=num_steps, guidance_scale=scale, eta=0.0)

        def generate(inputs: UNetInputs = inputs, sampling: Sampling = sampling) -> None:
            generators = [torch.Generator().manual_seed(seed) for seed in range(batch_size)]
            noise = torch.randn(batch_size, *shape).to(device, dtype)
            predict = predictor(unet, inputs, sampling.guidance_scale)
            with torch.no_grad():
                latent = sample(predict, build_scheduler(settings.diffusion), noise, generators, sampling)
                vocode(vocoder, log_mel_of(vae, latent.to(dtype)))

        seconds = timed(generate, device)
        per_second = seconds / (batch_size * settings.audio.clip_seconds)
        rows.append(
            {"num_steps": num_steps, "guidance_scale": scale, "batch_size": batch_size, "seconds": seconds,
             "real_time_factor": per_second}
        )  # fmt: skip
    return rows


def train_esc10(recordings: Path, scorer: Path) -> dict[str, Any]:
    """What `make esc10` says, trained in bf16 on the GPU."""
    if not (recordings / "audio").is_dir() or not scorer.is_file():
        return {"skipped": f"{recordings} and {scorer} are not both there"}
    tool, started = [sys.executable, "-m"], time.perf_counter()
    output = OUTPUT.with_name("esc10_gpu.json")
    commands = [
        ["data.esc50", str(recordings), "shards/esc10"],
        ["audioldm2_pl.cli", "train", "experiments/esc10.yaml", "name=esc10_gpu", "trainer.accelerator=gpu",
         "trainer.precision=bf16-mixed", "trainer.parallel_stages=1"],
        ["audioldm2_pl.cli", "generate", "runs/esc10_gpu/model", "--prompts", "experiments/esc10_prompts.txt",
         "--seconds", "5", "--steps", "30", "--guidance-scale", "4.5", "--eta", "0", "--output",
         "runs/esc10_gpu/generated", "--device", "cuda"],
        ["evaluation", "external", "runs/esc10_gpu/generated", str(recordings / "audio"), "--scorer", str(scorer),
         "--output", str(output)],
    ]  # fmt: skip
    for command in commands:
        subprocess.run([*tool, *command], check=True)
    return {"seconds": time.perf_counter() - started, "scores": json.loads(output.read_text())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what is run (all)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu tries the script (%(default)s)")
    parser.add_argument("--experiment", default="experiments/base_16k.yaml", help="sizes of generation's networks")
    parser.add_argument("--esc10", type=Path, default=Path("../shared/data/esc10"), help="recordings of ESC-10")
    parser.add_argument("--scorer", type=Path, default=Path("../shared/tools/yamnet_score.py"), help="their judge")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the figures go (%(default)s)")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: torch.cuda.is_available() is false", file=sys.stderr)
        return 2
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    measures: dict[str, Callable[[], Any]] = {
        "tests": run_tests,
        "training": cuda_rows,
        "generation": lambda: time_generation(args.experiment, args.device, dtype),
        "esc10": lambda: train_esc10(args.esc10, args.scorer),
    }
    device = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    result: dict[str, Any] = {"command": "make gpu", "seed": SEED, "device": device, "torch": torch.__version__,
                              "cpu_flags": cpu_flags(), "seconds": {}}  # fmt: skip
    for part in args.parts:
        started = time.perf_counter()
        result[part] = measures[part]()
        result["seconds"][part] = round(time.perf_counter() - started, 1)
        args.output.write_text(json.dumps(result, indent=1) + "\n")
        print(part, json.dumps(result[part]), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
