"""Consistency functions of latents: what a student of few steps learns to be (Luo et al. 2023, arXiv:2310.04378).

Grid and boundary scalings are those of diffusers' LCMScheduler, which samples such a student.

Letters: B batch, C channels, H × W the latent's time × frequency, N steps of the teacher.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm2_pl.models.diffusion import DiffusionConfig, q_sample

SIGMA_DATA = 0.5  # of LCMScheduler's boundary scalings
TIMESTEP_SCALING = 10.0  # the same; its default


def solver_timesteps(num_timesteps: int, num_solver_steps: int) -> Tensor:
    """The grid k - 1, 2k - 1, … of the skipping step k (section 4.3), (N,); diffusers samples a subset of it."""
    return torch.arange(1, num_solver_steps + 1) * (num_timesteps // num_solver_steps) - 1


def boundary_scalings(timestep: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip and c_out of timesteps (B,), (B, 1, 1, 1) each: 1 and 0 at timestep 0, 0 and 1 soon after."""
    scaled = timestep.view(-1, 1, 1, 1) * TIMESTEP_SCALING
    variance = scaled**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / variance, scaled / variance**0.5


def denoise(config: DiffusionConfig, noisy: Tensor, prediction: Tensor, alpha_cumprod: Tensor) -> tuple[Tensor, Tensor]:
    """The z_0 and ε, (B, C, H, W) each, that a prediction (B, C, H, W) of ε or v means, with ᾱ_t (B,)."""
    alpha_cumprod = alpha_cumprod.view(-1, 1, 1, 1)
    signal, sigma = alpha_cumprod.sqrt(), (1 - alpha_cumprod).sqrt()
    if config.prediction == "epsilon":
        return (noisy - sigma * prediction) / signal, prediction
    return signal * noisy - sigma * prediction, sigma * noisy + signal * prediction


def ddim_step(
    config: DiffusionConfig, noisy: Tensor, prediction: Tensor, alpha_cumprod: Tensor, earlier: Tensor
) -> Tensor:
    """Latents (B, C, H, W) one step of DDIM (η = 0) down the path that a prediction tells, from ᾱ (B,) to `earlier`."""
    return q_sample(*denoise(config, noisy, prediction, alpha_cumprod), earlier)


def consistency_function(
    config: DiffusionConfig, noisy: Tensor, prediction: Tensor, timestep: Tensor, alpha_cumprod: Tensor
) -> Tensor:
    """f(z_t, t) = c_skip(t) z_t + c_out(t) ẑ_0 (Equation 9), (B, C, H, W): at timestep 0 z_t itself."""
    c_skip, c_out = boundary_scalings(timestep)
    return c_skip * noisy + c_out * denoise(config, noisy, prediction, alpha_cumprod)[0]


def distance(loss: str, predicted: Tensor, target: Tensor, huber_c: float) -> Tensor:
    """Mean squared error of (B, C, H, W), or the pseudo-Huber distance √(d² + c²) - c of each number, a scalar."""
    if loss == "l2":
        return F.mse_loss(predicted, target)
    return (torch.sqrt((predicted - target) ** 2 + huber_c**2) - huber_c).mean()
