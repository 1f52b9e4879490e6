"""How fast and how lean the networks here are beside the libraries' own: `make bench` prints the table.

Both sides have the same weights and inputs and take turns in one process, on one thread; a figure is the median of
the pairs' ratios. Memory is that of a fresh process each. Writes docs/results/bench.json.
"""

import argparse
import gc
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor

from audioldm2_pl.conditioners.condition import Condition
from audioldm2_pl.models.diffusion import guide
from audioldm2_pl.models.gpt2 import LOAGenerator
from audioldm2_pl.models.projection import ConditionProjection
from audioldm2_pl.models.unet import WIDTHS, TUNet, TUNetConfig
from audioldm2_pl.models.unet_hub import to_hub_config

SEED = 0
PAIRS = 3
OUTPUT = Path("docs/results/bench.json")
LATENT = (2, 8, 256, 16)  # batch 2 of 10.24 s
NUM_VECTORS = 512  # of LOA at λ = 1
NUM_PHONEMES = 310  # of a transcript, padded
VOCABULARY = 50_257  # of the published language_model/, whose head stock diffusers computes at every vector
UNCACHED_AT = 9  # lengths at which the uncached loop is timed; the steps between are interpolated


def inputs() -> tuple[Tensor, Tensor, list[Condition]]:
    """Latents, timesteps, and LOA and text as conditions."""
    torch.manual_seed(SEED)
    loa = Condition(torch.randn(2, 8, 768), torch.ones(2, 8))
    text = Condition(torch.randn(2, 16, 1024), torch.tensor([[1.0] * 16, [1.0] * 10 + [0.0] * 6]))
    return torch.randn(LATENT), torch.tensor([3, 900]), [loa, text]


def our_unet() -> TUNet:
    torch.manual_seed(SEED)
    net = TUNet(TUNetConfig())
    for parameter in net.parameters():  # what starts at zero has nothing to do
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return net


def diffusers_unet(config: TUNetConfig) -> Any:
    return diffusers.AudioLDM2UNet2DConditionModel.from_config(to_hub_config(config, WIDTHS))


def call_diffusers(net: Any, latent: Tensor, timestep: Tensor, conditions: list[Condition]) -> Tensor:
    loa, text = conditions
    return net(
        latent, timestep, encoder_hidden_states=loa.embedding, encoder_attention_mask=loa.mask,
        encoder_hidden_states_1=text.embedding, encoder_attention_mask_1=text.mask,
    ).sample  # fmt: skip


def train_step(predict: Callable[[], Tensor], net: torch.nn.Module) -> None:
    predict().float().square().mean().backward()
    net.zero_grad()


# ---- time


def seconds(run: Callable[[], Any]) -> tuple[float, float]:
    """Wall-clock and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def pairs(stock: Callable[[], Any], ours: dict[str, Callable[[], Any]], num_pairs: int = PAIRS) -> dict[str, Any]:
    """Takes turns; name -> median ratio to stock of wall and CPU time, and all seconds."""
    runs = {"stock": stock, **ours}
    for run in runs.values():  # the first run of each makes its plans and its memory
        run()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(num_pairs):
        for name, run in runs.items():
            times[name].append(seconds(run))
    return {
        name: {
            "ratio": statistics.median(a[0] / b[0] for a, b in zip(times[name], times["stock"])),
            "cpu_ratio": statistics.median(a[1] / b[1] for a, b in zip(times[name], times["stock"])),
            "seconds": [round(wall, 3) for wall, _ in times[name]],
            "cpu_seconds": [round(cpu, 3) for _, cpu in times[name]],
            "stock_seconds": [round(wall, 3) for wall, _ in times["stock"]],
            "stock_cpu_seconds": [round(cpu, 3) for _, cpu in times["stock"]],
        }
        for name in ours
    }


def row(what: str, target: float | None, measured: dict[str, Any], at_least: bool = False) -> dict[str, Any]:
    """One line of the table; a figure without a target has no verdict."""
    value, verdict = measured["ratio"], ""
    result = {"what": what, "value": value, **measured}
    if target is not None:
        reached = value >= target if at_least else value <= target
        result |= {"target": target, "reached": reached}
        verdict = f"{'≥' if at_least else '≤'} {target:<5} {'reached' if reached else 'missed'}"
    print(f"{what:<72} {value:7.3f}   {verdict}", flush=True)
    return result


def unet_rows() -> list[dict[str, Any]]:
    ours, (latent, timestep, conditions) = our_unet(), inputs()
    theirs = diffusers_unet(ours.config)
    theirs.load_state_dict(ours.state_dict())

    def mixed() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return ours(latent, timestep, conditions)

    trained = pairs(
        lambda: train_step(lambda: call_diffusers(theirs, latent, timestep, conditions), theirs),
        {
            "fp32": lambda: train_step(lambda: ours(latent, timestep, conditions), ours),
            "bf16": lambda: train_step(mixed, ours),
        },
    )
    rows = [
        row("T-UNet forward + backward, fp32 to diffusers' fp32, time", 0.9, trained["fp32"]),
        row("T-UNet forward + backward, bf16-mixed to diffusers' fp32, time", 0.65, trained["bf16"]),
    ]
    with torch.no_grad():
        rows += [guided_step_row(ours, theirs, latent[:1], conditions)]
    return rows


def guided_step_row(ours: TUNet, theirs: Any, latent: Tensor, conditions: list[Condition]) -> dict[str, Any]:
    """A step of sampling: without and with conditions in one batch of two; keys and values of the conditions kept."""
    timestep = torch.tensor(501)
    half = TUNet(ours.config).to(torch.bfloat16)
    half.load_state_dict(ours.state_dict())
    narrow = [condition.to(dtype=torch.bfloat16) for condition in conditions]
    cache = half.precompute(narrow)
    both = torch.cat([latent, latent])

    def guided(prediction: Tensor) -> Tensor:
        unconditional, conditional = prediction.chunk(2)
        return guide(unconditional, conditional, 3.5)

    measured = pairs(
        lambda: guided(call_diffusers(theirs, both, timestep, conditions)),
        {"bf16": lambda: guided(half(both.bfloat16(), timestep, narrow, cache=cache))},
    )
    return row("one guided sampling step, bf16 to diffusers' fp32, time", 0.45, measured["bf16"])


# ---- memory


def held() -> int:
    """Bytes of memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def memory_of(side: str) -> int:
    """Bytes at the peak of a forward and a backward pass beyond those held before: activations and gradients.

    To be called in a process of its own: what another network has left in the heap would be counted wrong.
    """
    latent, timestep, conditions = inputs()
    net: Any = our_unet() if side == "ours" else diffusers_unet(TUNetConfig())
    gc.collect()
    before, making = held(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if side == "diffusers":
        prediction = call_diffusers(net, latent, timestep, conditions)
    else:
        prediction = net(latent, timestep, conditions)
    prediction.square().mean().backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak > making, "the peak is that of making the network"
    return 1024 * peak - before


def memory_row() -> dict[str, Any]:
    gib = {}
    for side in ("ours", "diffusers"):
        command = [sys.executable, __file__, "--memory", side]
        gib[side] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 2**30
    measured = {"ratio": gib["ours"] / gib["diffusers"], "gib": gib["ours"], "stock_gib": gib["diffusers"]}
    return row("T-UNet forward + backward, fp32, peak memory beyond the weights", 0.9, measured)


# ---- GPT-2


@torch.no_grad()
def gpt2_rows() -> list[dict[str, Any]]:
    """A transcript's 512 vectors: [SOS, CLAP, EOS, SOS, 310 phonemes, EOS], then LOA."""
    torch.manual_seed(SEED)
    config = transformers.GPT2Config(vocab_size=VOCABULARY)
    config.max_new_tokens = NUM_VECTORS
    stock = transformers.GPT2LMHeadModel(config).eval()
    generator = LOAGenerator(
        transformers.GPT2LMHeadModel(config), ConditionProjection({"clap": 512, "phonemes": 192}, 768, NUM_PHONEMES)
    ).eval()  # fmt: skip
    generator.gpt2.load_state_dict(stock.state_dict())
    conditions = [
        Condition(torch.randn(1, 1, 512), torch.ones(1, 1)),
        Condition(torch.randn(1, NUM_PHONEMES, 192), torch.ones(1, NUM_PHONEMES)),
    ]
    prefix = generator.prefix(conditions)
    holder: Any = SimpleNamespace(language_model=stock)
    generator.to(torch.bfloat16)
    narrow = [condition.to(dtype=torch.bfloat16) for condition in conditions]
    loop = diffusers.AudioLDM2Pipeline.generate_language_model
    measured = pairs(
        lambda: loop(holder, prefix.embedding, max_new_tokens=NUM_VECTORS, attention_mask=prefix.mask),
        {"bf16": lambda: generator.generate(narrow)},
        num_pairs=2,
    )["bf16"]
    uncached = uncached_seconds(stock.transformer, prefix.embedding)
    faster = {"ratio": uncached / statistics.median(measured["seconds"]), "uncached_seconds": uncached}
    return [
        row("GPT-2's 512 vectors, bf16 to diffusers' cached fp32 loop, time", 0.6, measured),
        row(f"GPT-2's 512 vectors, bf16, times as fast as uncached ({UNCACHED_AT} lengths timed)", 12, faster, True),
    ]


def uncached_seconds(gpt2: Any, prefix: Tensor) -> float:
    """What the authors' loop takes, which sends the whole sequence through GPT-2 for every vector."""
    lengths = [round(i * (NUM_VECTORS - 1) / (UNCACHED_AT - 1)) for i in range(UNCACHED_AT)]
    timed = []
    for length in lengths:
        embeds = torch.cat([prefix, torch.randn(1, length, prefix.shape[2])], dim=1)
        timed.append(seconds(lambda embeds=embeds: gpt2(inputs_embeds=embeds, use_cache=False))[0])
    total = timed[0]
    for (left, a), (right, b) in zip(zip(lengths, timed), zip(lengths[1:], timed[1:])):
        total += sum(a + (b - a) * (step - left) / (right - left) for step in range(left + 1, right + 1))
    return total


# ---- GPU


def cuda_rows(batch_size: int = 16, num_steps: int = 20) -> list[dict[str, Any]]:
    """Training in bf16 with torch.compile: time beside diffusers', both compiled, and the share of peak throughput.

    The peak is that of one large matrix product on the same GPU.
    """
    from torch.utils.flop_counter import FlopCounterMode

    ours, (latent, timestep, conditions) = our_unet(), inputs()
    theirs = diffusers_unet(ours.config)
    theirs.load_state_dict(ours.state_dict())
    rows = batch_size // len(latent)
    latent, timestep = latent.repeat(rows, 1, 1, 1).cuda(), timestep.repeat(rows).cuda()
    conditions = [condition.repeat(rows).to("cuda") for condition in conditions]
    compiled = {"ours": torch.compile(ours.cuda()), "stock": torch.compile(theirs.cuda())}

    def steps(side: str) -> None:
        net: Any = compiled[side]

        def predict() -> Tensor:
            with torch.autocast("cuda", torch.bfloat16):
                if side == "ours":
                    return net(latent, timestep, conditions)
                return call_diffusers(net, latent, timestep, conditions)

        for _ in range(num_steps):
            train_step(predict, net)
        torch.cuda.synchronize()

    measured = pairs(lambda: steps("stock"), {"ours": lambda: steps("ours")})["ours"]
    with FlopCounterMode(display=False) as counter:
        ours(latent, timestep, conditions).square().mean().backward()
    flops = counter.get_total_flops() * num_steps / statistics.median(measured["seconds"])
    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)

    def products() -> None:
        for _ in range(50):
            matrix @ matrix
        torch.cuda.synchronize()

    products()
    peak = 50 * 2 * 8192**3 / seconds(products)[0]
    share = {"ratio": flops / peak, "flops": flops, "peak_flops": peak, "gpu": torch.cuda.get_device_name()}
    return [
        row(f"GPU: T-UNet training step, batch {batch_size}, bf16 compiled to diffusers' compiled", 0.9, measured),
        row("GPU: share of peak matrix throughput in training", None, share),
    ]


def cpu_flags() -> list[str]:
    """What the CPU has for low precision, where Linux tells."""
    path = Path("/proc/cpuinfo")
    words = set(path.read_text().split()) if path.is_file() else set()
    return [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in words]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", choices=["ours", "diffusers"], help="print one side's peak in bytes, nothing else")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the figures go (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory:
        print(memory_of(args.memory))
        return 0
    started = time.perf_counter()
    measures = [lambda: [memory_row()], gpt2_rows, unet_rows, *([cuda_rows] if torch.cuda.is_available() else [])]
    rows = [result for measure in measures for result in measure()]
    flags = cpu_flags()
    result = {
        "command": "make bench", "seed": SEED, "pairs": PAIRS, "threads": 1, "machine": platform.machine(),
        "cpu_flags": flags, "torch": torch.__version__, "diffusers": diffusers.__version__,
        "transformers": transformers.__version__, "seconds": round(time.perf_counter() - started), "rows": rows,
    }  # fmt: skip
    if not {"avx512_bf16", "amx_bf16"} & set(flags):
        result["note"] = "this CPU has no bf16 instructions: products in bf16 are computed in fp32, casts come on top"
        print(result["note"])
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
