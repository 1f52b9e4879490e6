"""Latent diffusion: noising, targets, the loss, guidance, and the sampling loop (paper §III-D).

Letters: B batch, C channels, H × W the latent's time × frequency.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import diffusers
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler, LCMScheduler  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor

from audioldm2_pl.editing import NO_EDIT, Edit, Inversion
from audioldm2_pl.errors import UserError
from audioldm2_pl.fields import bounded, check_fields
from audioldm2_pl.generation import LCM_STEPS, Sampler, Sampling, num_lcm_steps
from audioldm2_pl.seeds import draw_rows, noise_like

Predict = Callable[[Tensor, Tensor], Tensor]  # (noisy latent (B, C, H, W), timestep) => prediction (B, C, H, W)
Progress = Callable[[int, int], None]  # (step, number of steps)

# diffusers' scheduler of each sampler, and what it is built with.
SAMPLERS: dict[Sampler, tuple[str, dict]] = {
    "ddim": ("DDIMScheduler", {"set_alpha_to_one": False, "steps_offset": 1}),
    "ddpm": ("DDPMScheduler", {"steps_offset": 1}),
    "dpm-solver++": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, "steps_offset": 1}),
    "unipc": ("UniPCMultistepScheduler", {"steps_offset": 1}),
    "euler": ("EulerDiscreteScheduler", {"steps_offset": 1}),
    "heun": ("HeunDiscreteScheduler", {"steps_offset": 1}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}),
    "lcm": ("LCMScheduler", {}),
}


@dataclass
class DiffusionConfig:
    """The noise schedule, what the T-UNet predicts, and the dropout of its conditions."""

    num_timesteps: int = bounded(1000, ge=1, le=100_000)  # of the forward process
    beta_start: float = bounded(0.0015, gt=0, lt=1)  # of the scaled-linear schedule
    beta_end: float = bounded(0.0195, gt=0, lt=1)  # the same
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    condition_dropout: float = bounded(0.1, ge=0, le=1)  # probability of training without conditions, for guidance
    dropout_unit: Literal["batch", "sample", "condition"] = "batch"  # all together, each clip, each condition of a clip
    # besides, probability of training a clip without one condition that the T-UNet reads, by its name: {loa: 0.5},
    # or {t5: 0.1}, with which it learns to follow LOA where there is no text
    dropout_alone: dict[str, float] = bounded(dict, ge=0, le=1)
    keep_first_batch: bool = False  # never train the first batch without conditions, as the authors' code

    def __post_init__(self) -> None:
        check_fields(self, "diffusion.")


def build_scheduler(config: DiffusionConfig, sampler: Sampler | None = None, num_solver_steps: int = LCM_STEPS):
    """diffusers' scheduler of a sampler, DDIM where none is named, over the config's noise schedule.

    `num_solver_steps` is the grid of "lcm".
    """
    name, settings = SAMPLERS[sampler or "ddim"]
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
    if sampler == "lcm":
        common["original_inference_steps"] = min(num_solver_steps, config.num_timesteps)
    return getattr(diffusers, name)(**common, **settings)


def scheduler_of(scheduler: Any, sampler: Sampler | None) -> Any:
    """A new scheduler of a sampler, or where none is named of the same kind, over the noise schedule of `scheduler`.

    A scheduler counts steps: calls that share one would disturb each other.
    """
    if sampler is None:
        return deepcopy(scheduler)
    name, settings = SAMPLERS[sampler]
    if sampler == "lcm":
        settings = {"original_inference_steps": num_lcm_steps(scheduler.config)}
    return getattr(diffusers, name).from_config(scheduler.config, **settings)


def alphas_cumprod(config: DiffusionConfig, device: torch.device | str = "cpu") -> Tensor:
    """ᾱ_t, the share of the signal's variance that is left at each timestep, (num_timesteps,). Not to be written to."""
    return schedule_table(config.num_timesteps, config.beta_start, config.beta_end, torch.device(device))


@lru_cache(maxsize=16)
def schedule_table(num_timesteps: int, beta_start: float, beta_end: float, device: torch.device) -> Tensor:
    """ᾱ_t (num_timesteps,), kept on its device: a training step that copies it there waits for the device."""
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_timesteps, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0).float().to(device)


def q_sample(latent: Tensor, noise: Tensor, alpha_cumprod: Tensor) -> Tensor:
    """z_t = √ᾱ_t z_0 + √(1 - ᾱ_t) ε (Equation 5): z_0 and ε (B, C, H, W), ᾱ_t (B,) => (B, C, H, W)."""
    alpha_cumprod = alpha_cumprod.view(-1, 1, 1, 1)
    return alpha_cumprod.sqrt() * latent + (1 - alpha_cumprod).sqrt() * noise


def diffusion_target(config: DiffusionConfig, latent: Tensor, noise: Tensor, alpha_cumprod: Tensor) -> Tensor:
    """What the T-UNet is to predict, (B, C, H, W): ε, or v = √ᾱ_t ε - √(1 - ᾱ_t) z_0, with ᾱ_t (B,)."""
    return noise if config.prediction == "epsilon" else q_sample(noise, -latent, alpha_cumprod)


def diffusion_loss(
    config: DiffusionConfig,
    predict: Predict,
    latent: Tensor,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean squared error at a random timestep of each clip's latent (B, C, H, W) (Equation 7), a scalar."""
    options = {"device": latent.device, "generator": generator}
    timestep = draw_rows(lambda n: torch.randint(config.num_timesteps, (n,), **options), len(latent))  # (B,)
    alpha_cumprod = alphas_cumprod(config, latent.device)[timestep]  # (B,)
    noise = noise_like(latent, generator)
    predicted = predict(q_sample(latent, noise, alpha_cumprod), timestep)
    return F.mse_loss(predicted.float(), diffusion_target(config, latent, noise, alpha_cumprod))


def guide(unconditional: Tensor, conditional: Tensor, guidance_scale: float) -> Tensor:
    """Classifier-free guidance (Equation 8 with w = 1 - scale), (B, C, H, W): e_u + s (e_c - e_u)."""
    return unconditional + guidance_scale * (conditional - unconditional)


def draw_noise(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """Noise (B, *shape), one draw per sample from its own generator: a sample does not depend on its neighbours."""
    return torch.stack([torch.randn(tuple(shape), generator=g) for g in generators])


def begin_at(scheduler, timestep: int | None) -> Tensor:
    """The scheduler's timesteps (N,) without those above `timestep`. Raises UserError where none remains."""
    first = 0 if timestep is None else int((scheduler.timesteps > timestep).sum())
    first += -first % scheduler.order  # a step of Heun's has two timesteps
    timesteps = scheduler.timesteps[first:]
    if len(timesteps) == 0:
        raise UserError(f"no sampling step at timestep {timestep} or below; take more steps or a later timestep")
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    return timesteps


def sample(
    predict: Predict,
    scheduler,
    noise: Tensor,
    generators: Sequence[torch.Generator],
    sampling: Sampling,
    edit: Edit = NO_EDIT,
    progress: Progress | None = None,
) -> Tensor:
    """Noise (B, C, H, W) of unit variance => latents (B, C, H, W). The scheduler given stays as it is.

    Args:
        predict: the network, already guided.
        scheduler: diffusers' scheduler, of which a copy, or with `sampling.sampler` another over its schedule, is used.
        generators: one a sample, on the CPU: the noise that DDIM (η > 0), DDPM and LCM add at each step.
        edit: with `start_timestep`, steps above it are left out, and the source is noised as far as the first that is
            left: a low one changes details alone (SDEdit, Meng et al. 2022; style transfer in AudioLDM). With `keep`,
            the source, noised as far as the latent, takes its place there at each step, and in the end as it is. With
            `inversion`, the steps add the noise that it found. `mode="official"` is the authors' way, see `Edit`.
        progress: is called after each step.
    """
    scheduler = scheduler_of(scheduler, sampling.sampler)
    scheduler.set_timesteps(sampling.num_steps)
    timesteps = scheduler.timesteps if edit.latent is None else begin_at(scheduler, edit.start_timestep)
    official = edit.mode == "official"
    latent = noise * scheduler.init_noise_sigma
    if edit.inversion is not None:
        latent = edit.inversion.latent
    elif edit.start_timestep is not None:
        spacing = scheduler.config.num_train_timesteps // sampling.num_steps if official else 0
        latent = scheduler.add_noise(edit.latent, noise, timesteps[:1] + spacing)
    for step, timestep in enumerate(timesteps, 1):
        if edit.keep is not None:
            fresh = draw_noise(noise.shape[1:], generators).to(noise.device) if official else noise
            latent = edit.blend(latent, scheduler.add_noise(edit.latent, fresh, timestep[None]))
        prediction = predict(scheduler.scale_model_input(latent, timestep), timestep.to(noise.device))
        extra = step_noise(scheduler, noise, generators, sampling.eta)
        if edit.inversion is not None:
            extra = {"eta": 1.0, "variance_noise": edit.inversion.noise[step - 1]}
        latent = scheduler.step(prediction, timestep, latent, **extra, return_dict=False)[0]
        if progress is not None:
            progress(step, len(timesteps))
    return latent if edit.latent is None or official else edit.blend(latent, edit.latent)


def invert(
    predict: Predict,
    scheduler,
    latent: Tensor,
    generators: Sequence[torch.Generator],
    num_steps: int,
    start_timestep: int,
) -> Inversion:
    """DDPM inversion (Huberman-Spiegelglas et al. 2024; of sound: Manor and Michaeli 2024) of latents (B, C, H, W).

    Noise is drawn for each timestep on its own, and of each step the noise is found that leads from one to the next.
    """
    scheduler = scheduler_of(scheduler, "ddim")
    scheduler.set_timesteps(num_steps)
    timesteps = begin_at(scheduler, start_timestep)
    states = [
        scheduler.add_noise(latent, draw_noise(latent.shape[1:], generators).to(latent.device), timestep[None])
        for timestep in timesteps
    ]
    states.append(latent)
    spacing, noises = scheduler.config.num_train_timesteps // num_steps, []
    for step, timestep in enumerate(timesteps):
        prediction = predict(states[step], timestep.to(latent.device))
        none = torch.zeros_like(latent)
        mean = scheduler.step(prediction, timestep, states[step], eta=1.0, variance_noise=none, return_dict=False)[0]
        sigma = scheduler._get_variance(timestep, timestep - spacing) ** 0.5
        noises.append((states[step + 1] - mean) / sigma)
    return Inversion(states[0], torch.stack(noises))


def step_noise(scheduler, noise: Tensor, generators: Sequence[torch.Generator], eta: float) -> dict[str, Any]:
    """What `step` of a sampler that adds noise takes beside the latent, like `noise` (B, C, H, W)."""
    if isinstance(scheduler, DDIMScheduler) and eta > 0:
        return {"eta": eta, "variance_noise": draw_noise(noise.shape[1:], generators).to(noise.device)}
    return {"generator": list(generators)} if isinstance(scheduler, DDPMScheduler | LCMScheduler) else {}


def part_of(progress: Progress | None, number: int, count: int) -> Progress | None:
    """The progress of part `number` of `count` equal ones, as progress of the whole."""
    return progress and (lambda step, num_steps: progress(number * num_steps + step, count * num_steps))
