"""Consistency functions and the teacher's step, number by number beside diffusers' schedulers."""

import pytest
import torch

from audioldm2_pl.models.consistency import (
    boundary_scalings,
    consistency_function,
    ddim_step,
    distance,
    solver_timesteps,
)
from audioldm2_pl.models.diffusion import DiffusionConfig, alphas_cumprod, build_scheduler

SHAPE = (2, 3, 4, 4)
PREDICTIONS = ["epsilon", "v_prediction"]


@pytest.mark.parametrize("num_solver_steps", [50, 20, 30])  # 30 does not divide 1,000
def test_the_grid_is_that_of_lcm_scheduler(num_solver_steps):
    scheduler = build_scheduler(DiffusionConfig(), "lcm", num_solver_steps)
    scheduler.set_timesteps(num_solver_steps)
    assert torch.equal(scheduler.timesteps.flip(0), solver_timesteps(1000, num_solver_steps))


def test_boundary_scalings_are_those_of_lcm_scheduler():
    scheduler = build_scheduler(DiffusionConfig(), "lcm")
    for timestep in (0, 1, 19, 259, 999):
        ours = [scaling.item() for scaling in boundary_scalings(torch.tensor([timestep]))]
        assert ours == pytest.approx(scheduler.get_scalings_for_boundary_condition_discrete(timestep), rel=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_at_timestep_0_it_is_the_identity(prediction):
    config, noisy = DiffusionConfig(prediction=prediction), torch.randn(SHAPE)
    timestep = torch.zeros(2, dtype=torch.long)
    found = consistency_function(config, noisy, torch.randn(SHAPE), timestep, alphas_cumprod(config)[timestep])
    assert torch.equal(found, noisy)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_it_is_what_lcm_scheduler_takes_a_prediction_for(prediction):
    config, noisy, predicted = DiffusionConfig(prediction=prediction), torch.randn(SHAPE), torch.randn(SHAPE)
    scheduler, timestep = build_scheduler(config, "lcm"), torch.tensor([259, 999])
    scheduler.set_timesteps(50)
    found = consistency_function(config, noisy, predicted, timestep, alphas_cumprod(config)[timestep])
    for row, t in enumerate(timestep):
        denoised = scheduler.step(predicted[row], t, noisy[row]).denoised
        torch.testing.assert_close(found[row], denoised, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_teachers_step_is_ddims(prediction):
    config, noisy, predicted = DiffusionConfig(prediction=prediction), torch.randn(SHAPE), torch.randn(SHAPE)
    scheduler, alphas = build_scheduler(config), alphas_cumprod(config)
    scheduler.set_timesteps(50)
    found = ddim_step(config, noisy, predicted, alphas[[501, 501]], alphas[[481, 481]])
    torch.testing.assert_close(found, scheduler.step(predicted, 501, noisy).prev_sample, rtol=1e-4, atol=1e-5)


def test_the_huber_distance_is_quadratic_near_and_linear_far():
    zero, c = torch.zeros(SHAPE), 1e-2
    near, far = (distance("huber", torch.full(SHAPE, d), zero, c).item() for d in (1e-4, 10.0))
    assert near == pytest.approx(1e-4**2 / (2 * c), rel=1e-2) and far == pytest.approx(10.0, rel=1e-2)
    assert distance("l2", torch.full(SHAPE, 3.0), zero, c).item() == pytest.approx(9.0)
