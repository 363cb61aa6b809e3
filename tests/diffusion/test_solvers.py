"""DDIM and Euler against diffusers' schedulers, with a fixed stand-in for the denoiser."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from limner.diffusion.process import discrete_from
from limner.diffusion.solvers import ddim, euler, leading_grid

SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False,
}  # fmt: skip


def noise() -> torch.Tensor:
    return torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(0))


def predict(noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Any smooth function of both arguments."""
    assert t.shape == (len(noisy),)
    return torch.sin(noisy * 1.3 + t.view(-1, 1, 1, 1) / 300) * 0.8


def diffusers_result(kind: type, prediction: str, steps: int, **options) -> torch.Tensor:
    known = {k: v for k, v in SCHEDULER.items() if kind is DDIMScheduler or k not in ("set_alpha_to_one", "clip_sample")}
    scheduler = kind(**{**known, "prediction_type": prediction, "timestep_spacing": "leading", **options})
    scheduler.set_timesteps(steps)
    x = noise() * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        x = scheduler.step(predict(scaled, t.expand(2)), t, x).prev_sample
    return x


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 7, 20])
@pytest.mark.parametrize(("solver", "kind"), [(ddim, DDIMScheduler), (euler, EulerDiscreteScheduler)])
def test_solvers_are_diffusers(solver, kind, prediction, steps):
    process = discrete_from(SCHEDULER, prediction)
    ours = solver(predict, noise(), process, leading_grid(process, steps, SCHEDULER))
    theirs = diffusers_result(kind, prediction, steps)
    assert (ours - theirs).abs().max() / theirs.abs().max() < 1e-5


def test_final_alpha_one():
    options = {**SCHEDULER, "set_alpha_to_one": True, "steps_offset": 0}
    process = discrete_from(options)
    ours = ddim(predict, noise(), process, leading_grid(process, 5, options))
    theirs = diffusers_result(DDIMScheduler, "epsilon", 5, set_alpha_to_one=True, steps_offset=0)
    assert (ours - theirs).abs().max() / theirs.abs().max() < 1e-5


def test_the_grid_is_diffusers_leading_spacing():
    process = discrete_from(SCHEDULER)
    for steps in (1, 3, 20, 50, 999):
        scheduler = DDIMScheduler(**SCHEDULER, timestep_spacing="leading")
        scheduler.set_timesteps(steps)
        assert list(leading_grid(process, steps, SCHEDULER).timesteps) == scheduler.timesteps.tolist(), steps
    grid = leading_grid(process, 1000, SCHEDULER)
    assert grid.timesteps[0] == 999 and len(grid.timesteps) == 1000  # the offset would leave the process


def test_a_perfect_prediction_gives_the_picture_back():
    process = discrete_from(SCHEDULER)
    x0, eps = noise(), torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(1))
    grid = leading_grid(process, 10, SCHEDULER)
    start = process.add_noise(x0, eps, torch.tensor([grid.timesteps[0]] * 2))
    found = ddim(lambda *_: eps, start, process, grid)
    last = process.add_noise(x0, eps, torch.tensor([0, 0]))  # set_alpha_to_one = False ends at the first timestep's noise
    assert (found - last).abs().max() < 1e-4
