"""Random draws depend on (seed, step, position) and on nothing else."""

from __future__ import annotations

import torch

from limner.diffusion.draws import noise_like, posterior_sample

X = torch.zeros(4, 4, 6, 5)


def test_noise_is_the_same_however_a_step_is_cut():
    together = noise_like(X, 7, 3, [0, 1, 2, 3])
    pieces = torch.cat([noise_like(X[:1], 7, 3, [0]), noise_like(X[:2], 7, 3, [1, 2]), noise_like(X[:1], 7, 3, [3])])
    assert torch.equal(together, pieces)
    assert torch.equal(noise_like(X[:2], 7, 3, [2, 0]), together[[2, 0]])
    assert together.flatten(1).std(1).min() > 0.5 and len({row.sum().item() for row in together}) == 4


def test_seed_step_and_purpose_part_the_draws():
    first = noise_like(X[:1], 7, 3, [0])
    for other in (noise_like(X[:1], 8, 3, [0]), noise_like(X[:1], 7, 4, [0]), noise_like(X[:1], 7, 3, [1])):
        assert not torch.equal(first, other)
    posterior = posterior_sample(X[:1], torch.ones_like(X[:1]), 7, 3, [0])
    assert not torch.equal(first, posterior)


def test_posterior_is_mean_and_deviation():
    ones = torch.ones_like(X)
    z = posterior_sample(X, ones, 1, 2, range(4))
    assert torch.allclose(posterior_sample(X + 3, ones * 0.5, 1, 2, range(4)), 3 + 0.5 * z)
    assert torch.equal(posterior_sample(X + 3, X, 1, 2, range(4)), X + 3)


def test_draws_take_on_device_and_dtype_but_not_values():
    assert torch.equal(noise_like(X.double(), 7, 3, [0, 1, 2, 3]), noise_like(X, 7, 3, [0, 1, 2, 3]).double())
    torch.manual_seed(1)
    first = noise_like(X, 7, 3, [0, 1, 2, 3])
    torch.manual_seed(2)
    assert torch.equal(first, noise_like(X, 7, 3, [0, 1, 2, 3]))  # the global generator has no say
