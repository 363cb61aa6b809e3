"""Schedules as functions of the step, the optimiser's state as tensors, the moving average."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from limner.config import Optimizer
from limner.engine.optim import Average, load_state_tensors, make_optimizer, schedule_factor, set_learning_rates, state_tensors

CPU = torch.device("cpu")


def test_constant_and_cosine():
    constant, cosine = Optimizer(schedule="constant"), Optimizer(schedule="cosine")
    assert [schedule_factor(constant, s, 10) for s in range(10)] == [1.0] * 10
    expected = [(1 + math.cos(math.pi * s / 10)) / 2 for s in range(10)]
    assert [schedule_factor(cosine, s, 10) for s in range(10)] == pytest.approx(expected)
    assert schedule_factor(cosine, 0, 10) == 1.0 and schedule_factor(cosine, 10, 10) == 0.0
    assert schedule_factor(cosine, 5, 10) == pytest.approx(0.5)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_warm_up_rises_to_one(schedule):
    section = Optimizer(schedule=schedule, warmup_steps=4)
    found = [schedule_factor(section, s, 12) for s in range(12)]
    assert found[:5] == [0.0, 0.25, 0.5, 0.75, 1.0]
    after = [1.0 if schedule == "constant" else (1 + math.cos(math.pi * s / 8)) / 2 for s in range(8)]
    assert found[4:] == pytest.approx(after)


@pytest.mark.parametrize("warmup", [0, 1, 10, 50])
@pytest.mark.parametrize("total", [1, 10])
def test_factors_stay_between_zero_and_one(warmup, total):
    for schedule in ("constant", "cosine"):
        factors = [schedule_factor(Optimizer(schedule=schedule, warmup_steps=warmup), s, total) for s in range(total + 1)]
        assert all(0 <= f <= 1 for f in factors)


def params() -> list[nn.Parameter]:
    rng = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(3, 4, generator=rng)), nn.Parameter(torch.randn(2, generator=rng))]


def make(ps: list[nn.Parameter]) -> torch.optim.Optimizer:
    groups = [{"name": "a", "params": ps[:1], "lr": 1e-2}, {"name": "b", "params": ps[1:], "lr": 5e-3}]
    return make_optimizer(Optimizer(weight_decay=0.1, beta1=0.8, beta2=0.95, eps=1e-6), groups, CPU)


def step(optimizer: torch.optim.Optimizer, ps: list[nn.Parameter], number: int) -> None:
    rng = torch.Generator().manual_seed(100 + number)
    for p in ps:
        p.grad = torch.randn(p.shape, generator=rng)
    optimizer.step()


def test_adamw_by_its_paper():
    """arXiv:1711.05101, algorithm 2, in float64."""
    ps = params()
    optimizer = make(ps)
    x, m, v = ps[0].detach().double(), 0.0, 0.0
    for number in range(1, 6):
        rates = set_learning_rates(optimizer, number / 5)
        assert rates == pytest.approx({"a": 1e-2 * number / 5, "b": 5e-3 * number / 5})
        step(optimizer, ps, number)
        g = ps[0].grad.double()
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        m_hat, v_hat = m / (1 - 0.8**number), v / (1 - 0.95**number)
        x = x - rates["a"] * (0.1 * x + m_hat / (v_hat.sqrt() + 1e-6))
    assert torch.allclose(ps[0].double(), x, rtol=1e-5, atol=1e-7)


def test_a_fresh_optimizer_goes_on_from_the_tensors_to_the_bit():
    ps = params()
    optimizer = make(ps)
    for number in range(3):
        step(optimizer, ps, number)
    others = [nn.Parameter(p.detach().clone()) for p in ps]
    fresh = make(others)
    load_state_tensors(fresh, {k: v.clone() for k, v in state_tensors(optimizer).items()})
    set_learning_rates(fresh, 1.0)
    for number in range(3, 6):
        step(optimizer, ps, number)
        step(fresh, others, number)
    assert all(torch.equal(a, b) for a, b in zip(ps, others, strict=True))
    assert all(torch.equal(state_tensors(fresh)[k], v) for k, v in state_tensors(optimizer).items())


def test_the_average_by_its_formula():
    ps = params()
    average = Average(ps, 0.5)
    expected = ps[0].detach().double()
    for number in range(12):
        with torch.no_grad():
            ps[0].add_(0.1 * (number + 1))
        average.update(number)
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * ps[0].detach().double()
    assert torch.allclose(average.values[0].double(), expected, rtol=1e-5)


def test_swapping_twice_changes_no_bit():
    ps = params()
    average = Average(ps, 0.9)
    with torch.no_grad():
        ps[0].mul_(1.1)
    average.update(3)
    weights, values = [p.detach().clone() for p in ps], [v.clone() for v in average.values]
    average.swap()
    assert all(torch.equal(p, v) for p, v in zip(ps, values, strict=True))
    assert not torch.equal(ps[0], weights[0])
    average.swap()
    assert all(torch.equal(p, w) for p, w in zip(ps, weights, strict=True))
    assert all(torch.equal(a, v) for a, v in zip(average.values, values, strict=True))
