"""Latent diffusion: the noise schedule, targets, guidance, and every sampler."""

import diffusers
import pytest
import torch

from audioldm2_pl.editing import NO_EDIT, Edit, start_of
from audioldm2_pl.errors import UserError
from audioldm2_pl.generation import Sampling, check_sampling
from audioldm2_pl.models.diffusion import (
    SAMPLERS,
    DiffusionConfig,
    alphas_cumprod,
    build_scheduler,
    diffusion_loss,
    diffusion_target,
    draw_noise,
    guide,
    invert,
    q_sample,
    sample,
)

torch.set_num_threads(1)
SHAPE = (2, 4, 4)  # of a tiny latent


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw(
    config: DiffusionConfig, predict, *seeds: int, sampler: str = "ddim", num_steps: int = 5, eta: float = 0.0,
    edit: Edit = NO_EDIT,
) -> torch.Tensor:  # fmt: skip
    draws = generators(*seeds)
    sampling = Sampling(sampler, num_steps, eta=eta)
    return sample(predict, build_scheduler(config), draw_noise(SHAPE, draws), draws, sampling, edit)


def gaussian_predictor(config: DiffusionConfig, mean: float, std: float):
    """The best prediction there is for latents from N(mean, std²)."""
    alphas = alphas_cumprod(config)

    def predict(latent: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        alpha = alphas[int(timestep)]
        noise = (1 - alpha).sqrt() * (latent - alpha.sqrt() * mean) / (alpha * std**2 + 1 - alpha)
        if config.prediction == "epsilon":
            return noise
        clean = (latent - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * clean

    return predict


def test_alphas_cumprod_are_diffusers():
    config = DiffusionConfig()
    alphas = alphas_cumprod(config)
    assert alphas.shape == (1000,) and (alphas.diff() < 0).all()
    assert alphas[0].item() == pytest.approx(1 - config.beta_start)
    torch.testing.assert_close(alphas, build_scheduler(config).alphas_cumprod, atol=1e-6, rtol=0)
    published = diffusers.DDIMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear")
    torch.testing.assert_close(alphas, published.alphas_cumprod, atol=1e-6, rtol=0)


@pytest.mark.parametrize("alpha", [1.0, 0.7, 0.1])
def test_moments_of_noised_latents(alpha):
    torch.manual_seed(0)
    latent = torch.full((20_000, 1, 1, 2), 3.0)
    noisy = q_sample(latent, torch.randn_like(latent), torch.full((20_000,), alpha))
    assert noisy.mean().item() == pytest.approx(3 * alpha**0.5, abs=0.02)
    assert noisy.var().item() == pytest.approx(1 - alpha, abs=0.02)


def test_each_clip_has_its_own_timestep():
    latent, noise = torch.randn(2, *SHAPE), torch.randn(2, *SHAPE)
    noisy = q_sample(latent, noise, torch.tensor([1.0, 0.0]))
    assert torch.equal(noisy[0], latent[0]) and torch.equal(noisy[1], noise[1])


def test_latent_and_noise_follow_from_v():
    config = DiffusionConfig(prediction="v_prediction")
    latent, noise, alpha = torch.randn(3, *SHAPE), torch.randn(3, *SHAPE), torch.tensor([0.99, 0.5, 0.01])
    noisy, v = q_sample(latent, noise, alpha), diffusion_target(config, latent, noise, alpha)
    a, b = alpha.sqrt().view(-1, 1, 1, 1), (1 - alpha).sqrt().view(-1, 1, 1, 1)
    torch.testing.assert_close(a * noisy - b * v, latent)
    torch.testing.assert_close(b * noisy + a * v, noise)
    expected = build_scheduler(config).get_velocity(latent, noise, torch.tensor([10, 300, 700]))
    alphas = alphas_cumprod(config)[[10, 300, 700]]
    torch.testing.assert_close(diffusion_target(config, latent, noise, alphas), expected, atol=1e-5, rtol=1e-5)
    assert diffusion_target(DiffusionConfig(), latent, noise, alpha) is noise


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_of_a_perfect_prediction_is_zero(prediction):
    config = DiffusionConfig(prediction=prediction)
    latent = torch.randn(4, *SHAPE)
    alphas = alphas_cumprod(config)

    def perfect(noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        alpha = alphas[timestep].view(-1, 1, 1, 1)
        noise = (noisy - alpha.sqrt() * latent) / (1 - alpha).sqrt()
        return diffusion_target(config, latent, noise, alphas[timestep])

    assert diffusion_loss(config, perfect, latent).item() < 1e-8
    assert diffusion_loss(config, lambda noisy, timestep: noisy, latent).item() > 1e-3


def test_guidance():
    unconditional, conditional = torch.randn(2, *SHAPE), torch.randn(2, *SHAPE)
    torch.testing.assert_close(guide(unconditional, conditional, 1.0), conditional)
    torch.testing.assert_close(guide(unconditional, conditional, 0.0), unconditional)
    w = 1 - 3.5  # Equation 8: w e_u + (1 - w) e_c
    torch.testing.assert_close(
        guide(unconditional, conditional, 3.5), w * unconditional + (1 - w) * conditional, atol=1e-5, rtol=1e-5
    )


def test_sampling_with_guidance_one_is_sampling_without():
    config = DiffusionConfig()
    conditional, other = gaussian_predictor(config, 2.0, 0.5), gaussian_predictor(config, -1.0, 1.0)
    guided = draw(config, lambda z, t: guide(other(z, t), conditional(z, t), 1.0), 0, 1, eta=1.0)
    torch.testing.assert_close(guided, draw(config, conditional, 0, 1, eta=1.0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_makes_finite_latents(sampler, prediction):
    config = DiffusionConfig(prediction=prediction)
    seen = []

    def predict(latent: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        seen.append(float(timestep))
        return 0.1 * latent

    for num_steps in (2, 5):
        latent = draw(config, predict, 0, 1, sampler=sampler, num_steps=num_steps)
        assert latent.shape == (2, *SHAPE) and latent.isfinite().all()
    assert min(seen) >= 0 and max(seen) < config.num_timesteps


@pytest.mark.parametrize("sampler", [sampler for sampler in SAMPLERS if sampler != "lcm"])  # of consistency functions
def test_every_sampler_finds_a_gaussian(sampler):
    config = DiffusionConfig()
    num_steps = 100 if sampler == "ddpm" else 25
    latent = draw(config, gaussian_predictor(config, 2.0, 0.5), *range(16), sampler=sampler, num_steps=num_steps)
    assert latent.mean().item() == pytest.approx(2.0, abs=0.15)
    assert latent.std().item() == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_ddim_recovers_a_known_mean(prediction):
    config = DiffusionConfig(prediction=prediction)
    latent = draw(config, gaussian_predictor(config, 2.0, 1e-3), *range(16), num_steps=50)
    assert latent.mean().item() == pytest.approx(2.0, abs=0.01)
    # the published schedule ends at timestep 0, where this share of noise is left
    assert latent.std().item() == pytest.approx((1 - alphas_cumprod(config)[0].item()) ** 0.5, abs=0.01)


@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 1.0), *((name, 0.0) for name in SAMPLERS)])
def test_samples_do_not_depend_on_their_neighbours(sampler, eta):
    config = DiffusionConfig()
    predict = gaussian_predictor(config, 0.5, 1.0)
    together = draw(config, predict, 3, 4, 5, sampler=sampler, eta=eta)
    for row, seed in enumerate((3, 4, 5)):
        torch.testing.assert_close(
            draw(config, predict, seed, sampler=sampler, eta=eta)[0], together[row], atol=1e-5, rtol=1e-5
        )
    assert not torch.allclose(together[0], together[1])


def test_ddim_puts_noise_back_as_eta_says():
    config = DiffusionConfig()
    predict = gaussian_predictor(config, 0.0, 1.0)
    assert torch.equal(draw(config, predict, 0), draw(config, predict, 0))
    assert torch.equal(draw(config, predict, 0, eta=1.0), draw(config, predict, 0, eta=1.0))
    assert not torch.allclose(draw(config, predict, 0), draw(config, predict, 0, eta=1.0), atol=1e-2)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sampling_may_start_from_latents(sampler):
    config = DiffusionConfig()
    start, seen = torch.linspace(-1.0, 1.0, 32).view(1, *SHAPE), []
    find_start = gaussian_predictor(config, 0.0, 1.0)

    def predict(latent: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        seen.append(float(timestep))
        return find_start(latent, timestep)

    scheduler, found = build_scheduler(config, sampler), {}
    scheduler.set_timesteps(50)
    for timestep in (40, 500):
        seen.clear()
        edit = Edit(start, start_timestep=timestep)
        found[timestep] = draw(config, predict, 0, sampler=sampler, num_steps=50, edit=edit)
        left_out = [float(t) for t in scheduler.timesteps if float(t) not in seen]
        assert max(seen) <= timestep < min(left_out)
        from_noise = draw(config, find_start, 0, sampler=sampler, num_steps=50)
        assert (found[timestep] - from_noise).std() > 0.1
    assert found[40].isfinite().all() and found[500].isfinite().all()
    assert (found[40] - start).std() < 0.4 < 0.6 < (found[500] - start).std()  # a low timestep changes little


def test_a_start_below_the_last_step_is_a_user_error():
    config = DiffusionConfig()
    with pytest.raises(UserError, match="no sampling step at timestep 0 or below; take more steps"):
        draw(config, gaussian_predictor(config, 0.0, 1.0), 0, edit=Edit(torch.zeros(1, *SHAPE), start_timestep=0))


def test_as_many_steps_as_timesteps_are_refused():
    """diffusers' first step is then a timestep that the schedule has not."""
    config = DiffusionConfig(num_timesteps=50)
    assert draw(config, gaussian_predictor(config, 0.0, 1.0), 0, num_steps=49).isfinite().all()
    check_sampling(Sampling(num_steps=49), {"num_train_timesteps": 50})
    with pytest.raises(UserError, match=r"num_steps=50 has to be below 50, the timesteps of training"):
        check_sampling(Sampling(num_steps=50), {"num_train_timesteps": 50})


@pytest.mark.parametrize(("sampler", "grid", "most"), [("lcm", None, 50), ("lcm", 20, 20), (None, 20, 20)])
def test_lcm_takes_no_more_steps_than_its_grid_has(sampler, grid, most):
    config = DiffusionConfig()
    scheduler = build_scheduler(config) if grid is None else build_scheduler(config, "lcm", grid)
    check_sampling(Sampling(sampler, most), scheduler.config)
    draws = generators(0)
    latent = sample(lambda z, t: 0.1 * z, scheduler, draw_noise(SHAPE, draws), draws, Sampling(sampler, most))
    assert latent.isfinite().all()
    with pytest.raises(UserError, match=f"num_steps={most + 1}: lcm samples in {most} steps or fewer"):
        check_sampling(Sampling(sampler, most + 1), scheduler.config)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_mask_keeps_the_source(sampler):
    """The part sampled anew is as without a source; that which is kept is at each step the source under noise."""
    config = DiffusionConfig()
    source, keep = torch.full((1, *SHAPE), 3.0), torch.zeros(SHAPE[1], 1)
    keep[:2] = 1
    seen = {}

    def predict(latent: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        seen[float(timestep)] = latent
        return gaussian_predictor(config, 0.0, 0.5)(latent, timestep)

    settings = {"sampler": sampler, "num_steps": 25}
    edited = draw(config, predict, 0, 1, edit=Edit(source, keep), **settings)
    assert torch.equal(edited[:, :, :2], source[:, :, :2].expand(2, -1, -1, -1))
    anew = draw(config, gaussian_predictor(config, 0.0, 0.5), 0, 1, **settings)
    if sampler != "ddpm":  # whose noise comes from the same generators, but each draws for all of a latent
        torch.testing.assert_close(edited[:, :, 2:], anew[:, :, 2:], atol=1e-4, rtol=1e-4)
    last = seen[min(seen)][:, :, :2]
    assert (last - 3).abs().mean() < 0.5  # hardly any noise is left
    again = draw(config, predict, 0, 1, edit=Edit(source, keep, start_timestep=500), **settings)
    assert torch.equal(again[:, :, :2], edited[:, :, :2]) and again[:, :, 2:].isfinite().all()


def test_soft_masks_blend_and_edits_of_one_latent_serve_all_clips():
    config, source = DiffusionConfig(), torch.randn(1, *SHAPE)
    predict = gaussian_predictor(config, 0.0, 1.0)
    whole = draw(config, predict, 0, 1, edit=Edit(source, torch.ones(1)))
    assert torch.equal(whole, source.expand(2, -1, -1, -1))
    nothing = draw(config, predict, 0, 1, edit=Edit(source, torch.zeros(1)))
    torch.testing.assert_close(nothing, draw(config, predict, 0, 1))
    half = draw(config, predict, 0, 1, edit=Edit(source, torch.full((1,), 0.5)))
    assert (half - source).std() < (nothing - source).std()


def test_progress_counts_the_steps():
    steps, config = [], DiffusionConfig()
    sampling, draws = Sampling("ddim", 4), generators(0)
    noise = draw_noise(SHAPE, draws)
    predict = gaussian_predictor(config, 0.0, 1.0)
    sample(predict, build_scheduler(config), noise, draws, sampling, progress=lambda *step: steps.append(step))
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_scheduler_that_is_given_stays_as_it_is():
    config, draws = DiffusionConfig(), generators(0)
    scheduler = build_scheduler(config, "euler")
    timesteps, noise = scheduler.timesteps.clone(), draw_noise(SHAPE, draws)
    predict = gaussian_predictor(config, 0.0, 1.0)
    for sampler in (None, "euler"):
        sample(predict, scheduler, noise, draws, Sampling(sampler, 4))
    assert scheduler.step_index is None and torch.equal(scheduler.timesteps, timesteps)


def test_noise_is_one_draw_per_generator():
    noise = draw_noise(SHAPE, generators(1, 2))
    assert noise.shape == (2, *SHAPE)
    assert torch.equal(noise[1:], draw_noise(SHAPE, generators(2)))


@pytest.mark.parametrize("field", ["prediction", "dropout_unit"])
def test_unknown_choices_are_user_errors(field):
    with pytest.raises(UserError, match=rf"diffusion\.{field}='nothing'.*choose one of"):
        DiffusionConfig(**{field: "nothing"})


@pytest.mark.parametrize(
    ("changed", "total", "mean"),
    [
        ({"clip_sample": True}, 172.0067, 0.223967),
        ({"clip_sample": True, "prediction_type": "v_prediction"}, 52.5302, 0.0684),
        ({"clip_sample": True, "set_alpha_to_one": True, "beta_start": 0.01}, 149.8295, 0.1951),
        ({"clip_sample": True, "set_alpha_to_one": False, "beta_start": 0.01}, 149.0784, 0.1941),
    ],
    ids=["epsilon", "v_prediction", "set_alpha_to_one", "no_set_alpha_to_one"],
)
def test_ddim_sums_of_diffusers_own_tests(changed, total, mean):
    """The sums in diffusers' tests/schedulers/test_scheduler_ddim.py, through the sampling loop here."""
    settings = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
    ramp = torch.arange(4 * 3 * 8 * 8).reshape(3, 8, 8, 4).permute(3, 0, 1, 2) / (4 * 3 * 8 * 8)
    scheduler = diffusers.DDIMScheduler(**settings | changed)
    latent = sample(lambda z, t: z * t / (t + 1), scheduler, ramp, generators(0, 1, 2, 3), Sampling(None, 10, eta=0.0))
    assert abs(latent.abs().sum().item() - total) < 1e-2
    assert abs(latent.abs().mean().item() - mean) < 1e-3


def test_official_mode_noises_one_step_further_and_never_pastes():
    """AudioLDM's style_transfer and inpainting: fresh noise at each step, and no source in the end."""
    config, source = DiffusionConfig(), torch.full((1, *SHAPE), 3.0)
    seen = []

    def predict(latent: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        seen.append((int(timestep), latent))
        return gaussian_predictor(config, 0.0, 1.0)(latent, timestep)

    start = start_of(0.5, 50, 1000, "official")
    draw(config, predict, 0, num_steps=50, edit=Edit(source, start_timestep=start, mode="official"))
    noise = draw_noise(SHAPE, generators(0))
    expected = build_scheduler(config).add_noise(source, noise, torch.tensor([start + 20]))
    assert seen[0][0] == start
    torch.testing.assert_close(seen[0][1], expected)
    seen.clear()
    kept = draw(config, predict, 0, num_steps=50, edit=Edit(source, torch.ones(1), mode="official"))
    assert 0 < (kept - source).abs().mean() < 0.5  # one denoising away
    first, second = (latent for _, latent in seen[-2:])
    assert (first - second).std() > 0.01  # noise of its own at each step


def test_inversion_leads_back_to_the_source():
    config = DiffusionConfig()
    source = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    predict = gaussian_predictor(config, 0.5, 2.0)
    found = invert(predict, build_scheduler(config), source, generators(3, 4), 25, 600)
    assert found.noise.shape == (15, 2, *SHAPE)
    edit = Edit(source, start_timestep=600, inversion=found)
    torch.testing.assert_close(draw(config, predict, 0, 1, num_steps=25, eta=1.0, edit=edit), source, atol=1e-3, rtol=0)
    other = draw(config, gaussian_predictor(config, -0.5, 2.0), 0, 1, num_steps=25, eta=1.0, edit=edit)
    assert (other - source).mean() < -0.1  # another prediction moves it, and the source's shape stays
    assert torch.corrcoef(torch.stack([other.flatten(), source.flatten()]))[0, 1] > 0.95
    assert torch.equal(edit.rows(torch.tensor([1])).inversion.noise, found.noise[:, 1:])
