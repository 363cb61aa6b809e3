"""Weights to be used that are not those trained: the moving average, and a schedule-free optimiser's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limner.config import Optimizer
from limner.engine.average import Average, evaluation_weights
from limner.engine.optimizers import make_optimizer

CPU = torch.device("cpu")


def params(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    rng = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(3, 4, generator=rng).to(dtype)), nn.Parameter(torch.randn(2, generator=rng).to(dtype))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_average_by_its_formula(dtype):
    ps = params(dtype)
    average = Average(ps, 0.5, CPU)
    expected = ps[0].detach().double()
    for number in range(12):
        with torch.no_grad():
            ps[0].add_(0.1 * (number + 1))
        average.update(number)
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * ps[0].detach().double()
    assert average.values[0].dtype == torch.float32
    assert torch.allclose(average.values[0].double(), expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_average_is_used_inside_and_nothing_has_changed_afterwards(dtype):
    ps = params(dtype)
    average = Average(ps, 0.9)
    with torch.no_grad():
        ps[0].mul_(1.1)
    average.update(3)
    weights, values = [p.detach().clone() for p in ps], [v.clone() for v in average.values]
    with evaluation_weights(None, ps, average):
        assert all(torch.equal(p, v.to(dtype)) for p, v in zip(ps, values, strict=True))
        assert not torch.equal(ps[0], weights[0])
    assert all(torch.equal(p, w) for p, w in zip(ps, weights, strict=True))
    assert all(torch.equal(a, v) for a, v in zip(average.values, values, strict=True))


def test_a_schedule_free_optimisers_average_is_used_inside():
    """x = (y - (1 - beta) z) / beta; going back by y = beta x + (1 - beta) z alone would change bits."""
    ps = [nn.Parameter(torch.randn(20_000, generator=torch.Generator().manual_seed(0)))]
    optimizer = make_optimizer(Optimizer(kind="schedule_free"), [{"name": "a", "params": ps, "lr": 0.1}], CPU)
    for number in range(4):
        for p in ps:
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(number))
        optimizer.step()
    trained, z = [p.detach().clone() for p in ps], [optimizer.state[p]["z"].double() for p in ps]
    for _ in range(20):
        with evaluation_weights(optimizer, ps, None):
            for p, y, end in zip(ps, trained, z, strict=True):
                assert torch.allclose(p.double(), (y.double() - 0.1 * end) / 0.9, atol=1e-6)
                assert not torch.equal(p, y)
    assert all(torch.equal(p, y) for p, y in zip(ps, trained, strict=True))
    assert all(g["train_mode"] for g in optimizer.param_groups)
    optimizer.eval()
    optimizer.train()
    assert not torch.equal(ps[0], trained[0])  # the optimiser's own way there and back is not exact


def test_without_either_the_weights_stay():
    ps = params()
    optimizer = make_optimizer(Optimizer(), [{"name": "a", "params": ps, "lr": 0.1}], CPU)
    before = ps[0].detach().clone()
    with evaluation_weights(optimizer, ps, None):
        assert torch.equal(ps[0], before)
