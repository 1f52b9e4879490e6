"""Latent diffusion: noising, targets, the loss, guidance, and the sampling loop (paper §III-D).

Letters: B batch, C channels, H × W the latent's time × frequency.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import diffusers
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor

from audioldm2_pl.errors import UserError
from audioldm2_pl.fields import bounded, check_fields
from audioldm2_pl.seeds import draw_rows, noise_like

Sampler = Literal["ddim", "ddpm", "dpm-solver++", "unipc", "euler", "heun", "pndm"]
Unconditional = Literal["zero", "gpt2"]  # guidance is against zero LOA (the authors), or LOA said for "" (diffusers)

# diffusers' scheduler of each sampler, and what it is built with.
SAMPLERS: dict[Sampler, tuple[str, dict]] = {
    "ddim": ("DDIMScheduler", {"set_alpha_to_one": False, "steps_offset": 1}),
    "ddpm": ("DDPMScheduler", {"steps_offset": 1}),
    "dpm-solver++": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, "steps_offset": 1}),
    "unipc": ("UniPCMultistepScheduler", {"steps_offset": 1}),
    "euler": ("EulerDiscreteScheduler", {"steps_offset": 1}),
    "heun": ("HeunDiscreteScheduler", {"steps_offset": 1}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}),
}


@dataclass
class Sampling:
    """How samples are drawn; a model folder keeps it. Defaults: the authors'."""

    sampler: Sampler | None = None  # null: the folder's scheduler
    steps: int = bounded(200, ge=1, le=100_000)
    guidance_scale: float = 3.5  # 1 is no guidance
    eta: float = bounded(1.0, ge=0, le=1)  # noise put back by DDIM
    unconditional: Unconditional = "zero"
    candidates: int = bounded(1, ge=1, le=1_000)  # clips tried for a prompt, of which CLAP keeps one


@dataclass
class DiffusionConfig:
    """The noise schedule, what the T-UNet predicts, and how samples are drawn."""

    num_timesteps: int = bounded(1000, ge=1, le=100_000)  # of the forward process
    beta_start: float = bounded(0.0015, gt=0, lt=1)  # of the scaled-linear schedule
    beta_end: float = bounded(0.0195, gt=0, lt=1)  # the same
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    condition_dropout: float = bounded(0.1, ge=0, le=1)  # probability of training without conditions, for guidance
    dropout_unit: Literal["batch", "sample"] = "batch"  # together, as the authors' code, or each clip by itself
    sampler: Sampler = "ddim"
    num_steps: int = bounded(200, ge=1)  # sampling steps
    guidance_scale: float = 3.5  # 1 is no guidance
    eta: float = bounded(1.0, ge=0, le=1)  # noise put back by DDIM: 1 in the authors' code, 0 in diffusers
    unconditional: Unconditional = "zero"
    candidates: int = bounded(1, ge=1, le=1_000)  # clips tried for a prompt, of which CLAP keeps one; the authors try 3

    def __post_init__(self) -> None:
        check_fields(self, "diffusion.")

    @property
    def sampling(self) -> Sampling:
        return Sampling(
            self.sampler, self.num_steps, self.guidance_scale, self.eta, self.unconditional, self.candidates
        )


def build_scheduler(config: DiffusionConfig):
    """diffusers' scheduler of the config's sampler."""
    name, settings = SAMPLERS[config.sampler]
    common = {
        "num_train_timesteps": config.num_timesteps,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "beta_schedule": "scaled_linear",
        "prediction_type": config.prediction,
        "timestep_spacing": "leading",
    }
    if name in ("DDIMScheduler", "DDPMScheduler"):
        common["clip_sample"] = False
    return getattr(diffusers, name)(**common, **settings)


def signal_shares(config: DiffusionConfig) -> Tensor:
    """ᾱ_t, the share of the signal's variance that is left at each timestep, (num_timesteps,)."""
    betas = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, config.num_timesteps, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0).float()


def q_sample(latent: Tensor, noise: Tensor, share: Tensor) -> Tensor:
    """z_t = √ᾱ_t z_0 + √(1 - ᾱ_t) ε (Equation 5), with ᾱ_t (B,)."""
    share = share.view(-1, 1, 1, 1)
    return share.sqrt() * latent + (1 - share).sqrt() * noise


def diffusion_target(config: DiffusionConfig, latent: Tensor, noise: Tensor, share: Tensor) -> Tensor:
    """What the T-UNet is to predict: ε, or v = √ᾱ_t ε - √(1 - ᾱ_t) z_0."""
    return noise if config.prediction == "epsilon" else q_sample(noise, -latent, share)


def diffusion_loss(
    config: DiffusionConfig,
    predict: Callable[[Tensor, Tensor], Tensor],
    latent: Tensor,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean squared error at a random timestep of each clip (Equation 7). `predict(noisy latent, timestep)`."""
    options = {"device": latent.device, "generator": generator}
    timestep = draw_rows(lambda n: torch.randint(config.num_timesteps, (n,), **options), len(latent))  # (B,)
    share = signal_shares(config).to(latent.device)[timestep]
    noise = noise_like(latent, generator)
    predicted = predict(q_sample(latent, noise, share), timestep)
    return F.mse_loss(predicted.float(), diffusion_target(config, latent, noise, share))


def draw_dropped(config: DiffusionConfig, batch_size: int, generator: torch.Generator | None = None) -> Tensor:
    """(B,) bool: which clips of a batch are trained without their conditions."""
    if config.dropout_unit == "batch":
        draws = torch.rand(1, generator=generator)
    else:
        draws = draw_rows(lambda n: torch.rand(n, generator=generator), batch_size)
    return (draws < config.condition_dropout).expand(batch_size)


def guide(unconditional: Tensor, conditional: Tensor, guidance_scale: float) -> Tensor:
    """Classifier-free guidance (Equation 8 with w = 1 - scale): e_u + s (e_c - e_u)."""
    return unconditional + guidance_scale * (conditional - unconditional)


def draw_noise(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """One draw per sample from its own generator: a sample does not depend on its neighbours."""
    return torch.stack([torch.randn(tuple(shape), generator=g) for g in generators])


def begin_at(scheduler, timestep: int) -> Any:
    """The scheduler's timesteps without those above `timestep`. Raises UserError where none is left."""
    first = int((scheduler.timesteps > timestep).sum())
    first += -first % scheduler.order  # a step of Heun's has two timesteps
    timesteps = scheduler.timesteps[first:]
    if len(timesteps) == 0:
        raise UserError(f"no sampling step at timestep {timestep} or below; take more steps or a later timestep")
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    return timesteps


def sample(
    predict: Callable[[Tensor, Tensor], Tensor],
    scheduler,
    shape: Sequence[int],
    num_steps: int,
    generators: Sequence[torch.Generator],
    device: torch.device | str = "cpu",
    eta: float = 0.0,
    start: tuple[Tensor, int] | None = None,
) -> Tensor:
    """Latents (B, C, H, W) out of noise. `predict(noisy latent, timestep)` is already guided.

    With `start`, out of latents and noise: steps above its timestep are left out, and the latents are noised as far as
    the first that is left. A low timestep changes details alone (SDEdit, Meng et al. 2022; style transfer in AudioLDM).
    """
    scheduler.set_timesteps(num_steps)
    timesteps = scheduler.timesteps if start is None else begin_at(scheduler, start[1])
    noise = draw_noise(shape, generators).to(device)
    if start is None:
        latent = noise * scheduler.init_noise_sigma
    else:
        latent = scheduler.add_noise(start[0], noise, timesteps[:1])
    for timestep in timesteps:
        prediction = predict(scheduler.scale_model_input(latent, timestep), timestep.to(device))
        extra: dict = {}
        if isinstance(scheduler, DDIMScheduler) and eta > 0:
            extra = {"eta": eta, "variance_noise": draw_noise(shape, generators).to(device)}
        elif isinstance(scheduler, DDPMScheduler):
            extra = {"generator": list(generators)}
        latent = scheduler.step(prediction, timestep, latent, **extra, return_dict=False)[0]
    return latent
