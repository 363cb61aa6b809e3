"""The distributions of timesteps against the papers' densities, and the usual ones to the bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from limner.config.objective import Objective
from limner.diffusion.process import Discrete, Flow, discrete_from, process_from
from limner.diffusion.timesteps import Timesteps, shift_of, timesteps_of
from limner.randomness import mix

SD = discrete_from({"beta_start": 0.00085, "beta_end": 0.012})
DEV = process_from({"use_dynamic_shifting": True}, "flow")
COUNT = 4000
BOUND = 1.95 / math.sqrt(COUNT)  # Kolmogorov and Smirnov's: one in a thousand right ones is further away


def drawn(timesteps: Timesteps, height: int = 64, width: int = 48, count: int = COUNT) -> np.ndarray:
    x0 = torch.zeros(1, 4, height, width)
    return np.sort(np.concatenate([timesteps.draw(x0, 7, step, range(50)).double().numpy() for step in range(count // 50)]))


# --- as before there was a choice -------------------------------------------------------------------------------------


def test_the_usual_draws_are_what_they_always_were():
    """Numbers written down before there was a choice."""
    x0 = torch.zeros(4, 4, 64, 48)
    assert timesteps_of(Objective(), SD).draw(x0, 7, 3, range(4)).tolist() == [866, 848, 45, 587]
    for process, expected in (
        (Flow(3.0), ["0x1.ccd6c80000000p+9", "0x1.46987e0000000p+9", "0x1.c3c4d20000000p+8", "0x1.9316740000000p+9"]),
        (DEV, ["0x1.b5e8da0000000p+9", "0x1.09201a0000000p+9", "0x1.4a99a00000000p+8", "0x1.64d9160000000p+9"]),
    ):
        found = timesteps_of(Objective(), process).draw(x0, 7, 3, range(4))
        assert found.dtype == torch.float32 and [v.hex() for v in found.tolist()] == expected


def test_a_shape_without_its_name_changes_nothing():
    """As the findings say: it has no effect."""
    for process in (SD, Flow(3.0)):
        assert timesteps_of(Objective(logit_mean=1.0, logit_std=2.0, mode_scale=0.5), process) == timesteps_of(
            Objective(), process
        )


def test_the_usual_draws_are_their_formulas():
    x0 = torch.zeros(50, 4, 16, 16)
    sources = [torch.Generator().manual_seed(mix(1, "timestep", 2, p)) for p in range(50)]
    expected = [int(torch.randint(1000, (), generator=s)) for s in sources]
    assert timesteps_of(Objective(), SD).draw(x0, 1, 2, range(50)).tolist() == expected
    sources = [torch.Generator().manual_seed(mix(1, "timestep", 2, p)) for p in range(50)]
    sigma = [1 / (1 + math.exp(-float(torch.randn((), generator=s)))) for s in sources]
    expected = [1000 * 3 * s / (1 + 2 * s) for s in sigma]
    assert timesteps_of(Objective(), Flow(3.0)).draw(x0, 1, 2, range(50)).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("process", [SD, Flow(3.0)])
@pytest.mark.parametrize("distribution", ["uniform", "logit_normal", "mode", "cosmap"])
def test_draws_are_the_same_however_a_step_is_cut(process, distribution):
    timesteps, x0 = Timesteps(process, distribution), torch.zeros(4, 4, 8, 8)
    together = timesteps.draw(x0, 7, 3, range(4))
    assert together.tolist() == [timesteps.draw(x0[:1], 7, 3, [i]).item() for i in range(4)]
    assert len(set(together.tolist())) == 4
    assert not torch.equal(together, timesteps.draw(x0, 7, 4, range(4)))
    assert not torch.equal(together, timesteps.draw(x0, 8, 3, range(4)))


# --- densities --------------------------------------------------------------------------------------------------------


def normal_cdf(x: np.ndarray) -> np.ndarray:
    return np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])


def cdf(distribution: str, x: np.ndarray, mean: float = 0.0, std: float = 1.0, scale: float = 1.29) -> np.ndarray:
    """The share of arXiv:2403.03206's density below x, 0 < x < 1."""
    x = np.clip(x, 1e-12, 1 - 1e-12)
    if distribution == "uniform":
        return x
    if distribution == "logit_normal":  # eq. 19
        return normal_cdf((np.log(x / (1 - x)) - mean) / std)
    grid = np.linspace(0, 1, 200_001)
    if distribution == "cosmap":  # its density 2 / (pi (1 - 2t + 2t^2)), summed
        density = 2 / (math.pi * (1 - 2 * grid + 2 * grid**2))
        summed = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)]) / (len(grid) - 1)
        assert abs(summed[-1] - 1) < 1e-9
        return np.interp(x, grid, summed)
    # eq. 20: t falls with u, so that the share below x is the share of u beyond the u of x
    t = 1 - grid - scale * (np.cos(math.pi / 2 * grid) ** 2 - 1 + grid)
    return 1 - np.interp(x, t[::-1], grid[::-1])


def distance(sorted_draws: np.ndarray, expected: np.ndarray) -> float:
    """Kolmogorov and Smirnov's, of draws whose expected shares below are given."""
    count = len(sorted_draws)
    return float(max((np.arange(1, count + 1) / count - expected).max(), (expected - np.arange(count) / count).max()))


CASES = [
    ("uniform", {}),
    ("logit_normal", {}),
    ("logit_normal", {"logit_mean": -0.6, "logit_std": 1.7}),
    ("mode", {}),
    ("mode", {"mode_scale": -0.9}),
    ("cosmap", {}),
]
NAMES = {"logit_mean": "mean", "logit_std": "std", "mode_scale": "scale"}


@pytest.mark.parametrize(("distribution", "options"), CASES)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flows_timesteps_have_the_papers_density(distribution, options, shift):
    section = Objective(timesteps=distribution, shift=shift, **options)
    found = drawn(timesteps_of(section, Flow(5.0))) / 1000
    assert found[0] > 0 and found[-1] <= 1
    unshifted = found / (shift - (shift - 1) * found)
    assert distance(found, cdf(distribution, unshifted, **{NAMES[k]: v for k, v in options.items()})) < BOUND


def test_the_test_of_densities_tells_them_apart():
    found = drawn(timesteps_of(Objective(timesteps="mode", shift=1.0), Flow())) / 1000
    others = [distance(found, cdf(d, found)) for d in ("uniform", "logit_normal", "cosmap")]
    assert min(others) > 1.5 * BOUND > distance(found, cdf("mode", found, scale=1.29))
    assert distance(found, cdf("mode", found, scale=0.6)) > BOUND


@pytest.mark.parametrize(("distribution", "options"), CASES)
@pytest.mark.parametrize(("least", "most"), [(0, 1000), (200, 700)])
def test_whole_timesteps_have_the_papers_density_over_their_range(distribution, options, least, most):
    section = Objective(timesteps=distribution, least_timestep=least, most_timestep=most, **options)
    found = drawn(timesteps_of(section, SD))
    assert least <= found[0] and found[-1] < most and np.array_equal(found, np.round(found))
    edges = np.arange(least + 1, most)
    below = np.searchsorted(found, edges) / COUNT
    expected = cdf(distribution, (edges - least) / (most - least), **{NAMES[k]: v for k, v in options.items()})
    assert np.abs(below - expected).max() < BOUND


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
def test_a_flows_range_is_filled_after_the_shift(distribution):
    """As sd-scripts has it for Stable Diffusion 3: u' (most - least) + least."""
    section = Objective(timesteps=distribution, shift=3.0, least_timestep=100, most_timestep=600)
    found = drawn(timesteps_of(section, Flow(1.0)))
    assert 100 < found[0] < 200 and 590 < found[-1] <= 600
    part = (found - 100) / 500
    assert distance(part, cdf(distribution, part / (3 - 2 * part))) < BOUND


def test_a_range_of_one_timestep():
    found = drawn(Timesteps(SD, "cosmap", least=999), count=50)
    assert set(found) == {999}
    assert set(drawn(Timesteps(SD, "uniform", least=0, most=1), count=50)) == {0}


def test_the_range_is_in_thousandths_of_a_process_of_another_length():
    short = Discrete(SD.alphas_cumprod[::10].clone())
    found = drawn(Timesteps(short, "uniform", least=200, most=700), count=1000)
    assert (found[0], found[-1]) == (20, 69)


# --- shifts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(32, 32), (128, 128), (64, 96)])
def test_the_shift_by_resolution_is_fluxs(height, width):
    """mu on a line through (256, 0.5) and (4096, 1.15) over the patches, e^mu / (e^mu + 1 / sigma - 1)."""
    mu = 0.5 + (1.15 - 0.5) * ((height // 2) * (width // 2) - 256) / (4096 - 256)
    plain = drawn(timesteps_of(Objective(shift=1.0), Flow(3.0)), height, width, 100) / 1000
    expected = math.exp(mu) / (math.exp(mu) + 1 / plain - 1)
    for process in (Flow(3.0), DEV):
        found = drawn(timesteps_of(Objective(shift="resolution"), process), height, width, 100) / 1000
        assert found == pytest.approx(expected, rel=1e-5)


def test_shift_in_words():
    assert shift_of(timesteps_of(Objective(), Flow(3.0))) == 3.0
    assert shift_of(timesteps_of(Objective(), DEV)) == "resolution"
    assert shift_of(timesteps_of(Objective(shift=2.0), DEV)) == 2.0
    assert shift_of(timesteps_of(Objective(shift="resolution"), Flow(3.0))) == "resolution"
    assert shift_of(timesteps_of(Objective(shift=2.0), SD)) is None


def test_a_shift_to_train_with_leaves_the_one_to_paint_with():
    process = Flow(3.0)
    timesteps_of(Objective(shift=1.0), process)
    assert process == Flow(3.0)
