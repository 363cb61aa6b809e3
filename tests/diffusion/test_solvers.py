"""The solvers against diffusers' schedulers, with a fixed stand-in for the denoiser, and against a known solution."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
)

from limner.config import prompts
from limner.diffusion.process import Discrete, discrete_from
from limner.diffusion.solvers import SOLVERS, Draw, Grid, ddim, leading_grid, multistep_grid, solve, trailing_grid

SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False,
}  # fmt: skip


def draws(*shape: int) -> Draw:
    rng = torch.Generator().manual_seed(0)
    return lambda: torch.randn(shape or (2, 4, 5, 3), generator=rng)


def predict(noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Any smooth function of both arguments."""
    assert t.shape == (len(noisy),)
    return torch.sin(noisy * 1.3 + t.view(-1, 1, 1, 1) / 300) * 0.8


def diffusers_result(kind: type, prediction: str, steps: int, **options) -> torch.Tensor:
    known = {k: v for k, v in SCHEDULER.items() if kind is DDIMScheduler or k not in ("set_alpha_to_one", "clip_sample")}
    scheduler = kind(**{**known, "prediction_type": prediction, "timestep_spacing": "leading", **options})
    scheduler.set_timesteps(steps)
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 5, 3, generator=rng) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        drawn = {"generator": rng} if kind is EulerAncestralDiscreteScheduler else {}
        x = scheduler.step(predict(scaled, t.expand(2)), t, x, **drawn).prev_sample
    return x


KINDS = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_a": EulerAncestralDiscreteScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
}


def test_what_can_be_asked_for_is_there():
    assert tuple(SOLVERS) == prompts.SOLVERS == tuple(KINDS)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_are_diffusers(solver, prediction, steps):
    process = discrete_from(SCHEDULER, prediction)
    ours = solve(predict, draws(), process, SCHEDULER, steps, solver)
    theirs = diffusers_result(KINDS[solver], prediction, steps)
    assert (ours - theirs).abs().max() / theirs.abs().max() < 1e-5


# Where pictures are Gaussian the best denoiser is known, and so is where it leads.

ALPHAS = discrete_from(SCHEDULER).alphas_cumprod.double()
MEAN, DEVIATION = 0.7, 0.9


def best(noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    alpha = ALPHAS[t].view(-1, 1, 1, 1)
    return (1 - alpha).sqrt() * (noisy - alpha.sqrt() * MEAN) / (alpha * DEVIATION**2 + 1 - alpha)


def led_to(noise: torch.Tensor, first: int, alpha: torch.Tensor | float) -> torch.Tensor:
    """Where the exact path from `noise` at the timestep `first` is once alphas_cumprod is `alpha`."""
    start, end = ((a * DEVIATION**2 + 1 - a) ** 0.5 for a in (ALPHAS[first], alpha))
    return alpha**0.5 * MEAN + end / start * (noise - ALPHAS[first].sqrt() * MEAN)


@pytest.mark.parametrize(("solver", "least", "most"), [("ddim", 1.7, 2.3), ("euler", 1.7, 2.3), ("dpmpp_2m", 3.5, 5.0)])
def test_orders_of_convergence(solver, least, most):
    """With half the stride the error is half that of DDIM and Euler, and a quarter that of DPM-Solver++ 2M."""
    noise, errors = draws()().double(), []
    for stride in (50, 25, 10, 5):
        asked = list[torch.Tensor]()

        def predict(noisy, t, asked=asked):
            asked.append(noisy)
            return best(noisy, t)

        grid = Grid(tuple(range(801, 200, -stride)), ALPHAS[0], tuple(range(801 - stride, 200 - stride, -stride)))
        SOLVERS[solver][0](predict, lambda: noise, Discrete(ALPHAS), grid)
        errors.append(float((asked[-1] - led_to(noise, 801, ALPHAS[201])).abs().max()))
    assert least < errors[0] / errors[1] < most and least < errors[2] / errors[3] < most, errors


def test_ten_steps_of_dpmpp_2m_are_worth_twenty_of_ddim():
    noise, process = draws()().double(), Discrete(ALPHAS)

    def error(solver: str, steps: int) -> float:
        first = SOLVERS[solver][1](process, steps, SCHEDULER).timesteps[0]
        found = solve(best, lambda: noise, process, SCHEDULER, steps, solver)
        return float((found - led_to(noise, first, ALPHAS[0] if solver == "ddim" else 1.0)).abs().max())

    assert error("dpmpp_2m", 10) < min(error("ddim", 20), error("euler", 20))


@pytest.mark.parametrize("steps", [500, 998, 999, 1000])
@pytest.mark.parametrize("solver", SOLVERS)
def test_as_many_steps_as_there_are(solver, steps):
    """Stops that fall together do no harm."""
    noise, draw = draws(1, 4, 32, 32)(), draws(1, 4, 32, 32)
    found = solve(best, lambda: draw().double(), Discrete(ALPHAS), SCHEDULER, steps, solver)
    if solver == "euler_a":  # new noise: not this picture, but one of them
        assert abs(found.mean() - MEAN) < 0.05 and abs(found.std() - DEVIATION) < 0.05
    else:
        start = SOLVERS[solver][1](Discrete(ALPHAS), steps, SCHEDULER).timesteps[0]
        assert (found - led_to(noise, start, ALPHAS[0] if solver == "ddim" else 1.0)).abs().max() < 0.02


def test_final_alpha_one():
    options = {**SCHEDULER, "set_alpha_to_one": True, "steps_offset": 0}
    process = discrete_from(options)
    ours = ddim(predict, draws(), process, leading_grid(process, 5, options))
    theirs = diffusers_result(DDIMScheduler, "epsilon", 5, set_alpha_to_one=True, steps_offset=0)
    assert (ours - theirs).abs().max() / theirs.abs().max() < 1e-5


def test_the_grid_is_diffusers_leading_spacing():
    process = discrete_from(SCHEDULER)
    for steps in (1, 3, 20, 50, 999):
        scheduler = DDIMScheduler(**SCHEDULER, timestep_spacing="leading")
        scheduler.set_timesteps(steps)
        assert list(leading_grid(process, steps, SCHEDULER).timesteps) == scheduler.timesteps.tolist(), steps
        scheduler = DPMSolverMultistepScheduler(beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1)
        scheduler.set_timesteps(steps)
        assert steps == 999 or list(multistep_grid(process, steps, SCHEDULER).timesteps) == scheduler.timesteps.tolist(), steps
    grid = leading_grid(process, 1000, SCHEDULER)
    assert grid.timesteps[0] == 999 and len(grid.timesteps) == 1000  # the offset would leave the process


def test_a_perfect_prediction_gives_the_picture_back():
    process = discrete_from(SCHEDULER)
    x0, eps = draws()(), torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(1))
    grid = leading_grid(process, 10, SCHEDULER)
    start = process.add_noise(x0, eps, torch.tensor([grid.timesteps[0]] * 2))
    found = ddim(lambda *_: eps, lambda: start, process, grid)
    last = process.add_noise(x0, eps, torch.tensor([0, 0]))  # set_alpha_to_one = False ends at the first timestep's noise
    assert (found - last).abs().max() < 1e-4


# A process that ends in pure noise is painted from its last timestep on (arXiv:2305.08891).

ZERO = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@pytest.mark.parametrize("steps", [2, 10, 20])
@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_from_pure_noise_are_diffusers(solver, steps):
    process = discrete_from(SCHEDULER, "v_prediction").with_zero_snr()
    ours = solve(predict, draws(), process, SCHEDULER, steps, solver)
    theirs = diffusers_result(KINDS[solver], "v_prediction", steps, **ZERO)
    assert ours.isfinite().all()
    assert (ours - theirs).abs().max() / theirs.abs().max() < 2e-3  # theirs rescales in float32, and starts beside 0


@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_from_pure_noise_lead_where_they_should(solver):
    """With the best guess of Gaussian pictures; the brightness, which only pure noise leaves open, is theirs."""
    process = discrete_from(SCHEDULER, "v_prediction").with_zero_snr()

    def best_v(noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha = process.alphas_cumprod.double()[t].view(-1, 1, 1, 1)
        x0 = MEAN + alpha.sqrt() * DEVIATION**2 * (noisy - alpha.sqrt() * MEAN) / (alpha * DEVIATION**2 + 1 - alpha)
        eps = torch.where(alpha == 0, noisy, (noisy - alpha.sqrt() * x0) / (1 - alpha).sqrt())
        return alpha.sqrt() * eps - (1 - alpha).sqrt() * x0

    draw = draws(1, 4, 64, 64)
    options = {**SCHEDULER, "set_alpha_to_one": True}
    found = solve(best_v, lambda: draw().double(), process, options, 100, solver)
    assert abs(found.mean() - MEAN) < 0.03 and abs(found.std() - DEVIATION) < 0.05


def test_the_trailing_grid_is_diffusers():
    process = discrete_from(SCHEDULER)
    for steps in (1, 3, 7, 20, 50, 999, 1000):
        scheduler = DDIMScheduler(**SCHEDULER, timestep_spacing="trailing")
        scheduler.set_timesteps(steps)
        grid = trailing_grid(process, steps, SCHEDULER)
        assert list(grid.timesteps) == list(dict.fromkeys(scheduler.timesteps.tolist())), steps
        assert grid.following == (*grid.timesteps[1:], -1) and grid.timesteps[0] == 999
