"""Noise offset, pyramid noise and input perturbation against their formulas in float64, from the same single draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from limner.config.objective import Objective
from limner.diffusion.draws import noise_like
from limner.diffusion.noise import training_noise
from limner.randomness import mix

SEED, STEP, POSITIONS = 7, 3, [0, 1, 2, 5]
SHAPE = (4, 16, 12)
X0 = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(9)) + torch.arange(4).view(1, 4, 1, 1)


def source(purpose: str, position: int) -> torch.Generator:
    return torch.Generator().manual_seed(mix(SEED, purpose, STEP, position))


def plain() -> np.ndarray:
    return np.stack([torch.randn(SHAPE, generator=source("noise", p)).double().numpy() for p in POSITIONS])


def made(**options) -> tuple[np.ndarray, np.ndarray]:
    noise, shown = training_noise(X0, Objective(**options), SEED, STEP, POSITIONS)
    assert noise.shape == shown.shape == X0.shape and noise.dtype == X0.dtype
    return noise.double().numpy(), shown.double().numpy()


def uniform(purpose: str, most: float, is_random: bool) -> np.ndarray:
    """One strength for each sample."""
    if not is_random:
        return np.full((4, 1, 1, 1), most)
    return np.array([most * float(torch.rand((), generator=source(purpose, p))) for p in POSITIONS]).reshape(4, 1, 1, 1)


def test_without_options_it_is_plain_noise_to_the_bit():
    noise, shown = training_noise(X0, Objective(), SEED, STEP, POSITIONS)
    assert torch.equal(noise, noise_like(X0, SEED, STEP, POSITIONS)) and shown is noise
    assert np.array_equal(noise.double().numpy(), plain())


@pytest.mark.parametrize("is_random", [False, True])
@pytest.mark.parametrize(("strength", "adaptive"), [(0.1, 0.0), (0.05, 0.2), (0.0, 0.1), (0.3, -0.2)])
def test_noise_offset(strength, adaptive, is_random):
    """eps + max(0, o + k |mean x0|) N(b, c, 1, 1)."""
    found, shown = made(noise_offset=strength, noise_offset_adaptive=adaptive, noise_offset_random=is_random)
    level = np.stack([torch.randn((4, 1, 1), generator=source("offset", p)).double().numpy() for p in POSITIONS])
    means = np.abs(X0.double().numpy().mean((2, 3), keepdims=True))
    size = np.maximum(0, uniform("offset strength", strength, is_random) + adaptive * means)
    assert np.allclose(found, plain() + size * level, atol=1e-6) and np.array_equal(found, shown)
    assert (size == 0).any() == (adaptive < 0)  # it is cut off at 0 where the channel is far from it


def test_random_strengths_differ_between_pictures():
    strengths = uniform("offset strength", 0.1, True)
    assert len(set(strengths.ravel())) == 4 and strengths.min() >= 0 and strengths.max() <= 0.1


def bilinear(coarse: np.ndarray, height: int, width: int) -> np.ndarray:
    """Enlarged, with the centres of pixels where they are (no corners aligned)."""

    def weights(size: int, coarse_size: int) -> np.ndarray:
        out = np.zeros((size, coarse_size))
        for i in range(size):
            place = max((i + 0.5) * coarse_size / size - 0.5, 0)
            low = min(int(place), coarse_size - 1)
            out[i, low] += 1 - (place - low)
            out[i, min(low + 1, coarse_size - 1)] += place - low
        return out

    return weights(height, coarse.shape[1]) @ coarse @ weights(width, coarse.shape[2]).T


@pytest.mark.parametrize(("levels", "discount"), [(1, 0.3), (2, 0.5), (8, 0.9)])
def test_pyramid_noise(levels, discount):
    """Layers i = 1.. of d^i, the size of 1 / r^i; each sample over its own deviation."""
    expected = []
    for row, position in zip(plain(), POSITIONS, strict=True):
        draws, total, layers = source("pyramid", position), row.copy(), 0
        for i in range(1, levels + 1):
            r = 2 + 2 * float(torch.rand((), generator=draws))
            size = max(1, int(16 / r**i)), max(1, int(12 / r**i))
            coarse = torch.randn((1, 4, *size), generator=draws)[0].double().numpy()
            total += discount**i * bilinear(coarse, 16, 12)
            layers += 1
            if min(size) == 1:
                break
        assert layers <= 4
        expected.append(total / total.std(ddof=1))
    found, shown = made(pyramid_levels=levels, pyramid_discount=discount)
    assert np.allclose(found, np.stack(expected), atol=2e-6) and np.array_equal(found, shown)
    assert np.allclose(found.reshape(4, -1).std(1, ddof=1), 1)


def test_pyramid_noise_is_smoother_the_more_there_is_of_it():
    """More of it is left in averages of 4 x 4, where plain noise is left at 1 / 16."""
    shares = []
    for discount in (0.01, 0.5, 0.9):
        x0 = torch.zeros(64, 4, 32, 32)
        noise, _ = training_noise(x0, Objective(pyramid_levels=6, pyramid_discount=discount), 0, 0, range(64))
        shares.append(float(torch.nn.functional.avg_pool2d(noise, 4).square().mean()))
    assert shares[0] == pytest.approx(1 / 16, rel=0.05) and shares[1] > 2 * shares[0] and shares[2] > 1.5 * shares[1]


@pytest.mark.parametrize("is_random", [False, True])
def test_input_perturbation(is_random):
    """The model is shown eps + gamma xi, the target stays eps."""
    found, shown = made(input_perturbation=0.1, input_perturbation_random=is_random)
    gamma = uniform("perturbation strength", 0.1, is_random)
    xi = np.stack([torch.randn(SHAPE, generator=source("perturbation", p)).double().numpy() for p in POSITIONS])
    assert np.array_equal(found, plain())
    assert np.allclose(shown, plain() + gamma * xi, atol=1e-6)


def test_the_offset_keeps_its_strength_on_top_of_a_pyramid():
    pyramid, _ = made(pyramid_levels=3)
    both, _ = made(pyramid_levels=3, noise_offset=0.5)
    level = np.stack([torch.randn((4, 1, 1), generator=source("offset", p)).double().numpy() for p in POSITIONS])
    assert np.allclose(both - pyramid, np.broadcast_to(0.5 * level, both.shape), atol=1e-6)


def test_all_of_it_is_the_same_however_a_step_is_cut():
    section = Objective(
        noise_offset=0.1, noise_offset_random=True, noise_offset_adaptive=0.1, pyramid_levels=3, input_perturbation=0.1,
        input_perturbation_random=True,
    )  # fmt: skip
    together = training_noise(X0, section, SEED, STEP, [0, 1, 2, 3])
    for i in range(4):
        alone = training_noise(X0[i : i + 1], section, SEED, STEP, [i])
        for a, b in zip(alone, together, strict=True):
            assert torch.allclose(a[0], b[i], atol=1e-6)
    other = training_noise(X0, section, SEED, STEP + 1, [0, 1, 2, 3])
    assert not torch.allclose(other[0], together[0], atol=0.1)
