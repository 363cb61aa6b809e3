"""Weights moved one at a time: the same numbers as together, in the backward pass, and rounded at random in bf16."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from limner.config import Optimizer
from limner.config.optimizers import TABLE
from limner.engine.one_by_one import OneByOne, rounded_at_random
from limner.engine.optimizer_state import pack, unpack
from limner.engine.optimizers import make_optimizer, set_learning_rates

CPU = torch.device("cpu")
HAS_8BIT = importlib.util.find_spec("bitsandbytes") is not None
KINDS = [
    pytest.param(kind, marks=pytest.mark.skipif("8bit" in kind and not HAS_8BIT, reason="bitsandbytes is not installed"))
    for kind, known in TABLE.items()
    if known.one_by_one
]


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.SiLU(), nn.Flatten(), nn.Linear(24, 200), nn.LayerNorm(200), nn.Linear(200, 2))
    return net.to(dtype)


def make(net: nn.Module, kind: str, in_backward: bool, **values):
    ps = list(net.parameters())
    groups = [{"name": "a", "params": ps[:3], "lr": 1e-2}, {"name": "b", "params": ps[3:], "lr": 5e-3}]
    return make_optimizer(Optimizer(kind=kind, in_backward=in_backward, **values), groups, CPU, seed=3)


def walk(net: nn.Module, optimizer, steps: range) -> None:
    dtype = next(net.parameters()).dtype
    for step in steps:
        set_learning_rates(optimizer, 1 / (1 + step))
        if isinstance(optimizer, OneByOne):
            optimizer.now = step
        x = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(step)).to(dtype)
        net(x).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_in_the_backward_pass_the_numbers_are_the_same_to_the_bit(kind):
    plain, early = model(), model()
    walk(plain, make(plain, kind, in_backward=False), range(6))
    walk(early, make(early, kind, in_backward=True), range(6))
    assert same(plain, early) and not same(plain, model())


def test_no_gradient_outlives_the_backward_pass():
    net = model()
    optimizer = make(net, "adamw", in_backward=True)
    seen = []
    net[0].weight.register_post_accumulate_grad_hook(lambda p: seen.append([q.grad is None for q in net.parameters()]))
    net(torch.randn(4, 3, 4, 4)).square().mean().backward()
    assert all(p.grad is None for p in net.parameters())
    assert seen and all(seen[0][3:])  # those behind it were forgotten before its own had come
    assert not same(net, model())
    assert len(optimizer.param_groups) == len(list(net.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_from_its_state_to_the_bit(kind, dtype):
    whole = model(dtype)
    walk(whole, make(whole, kind, in_backward=True), range(12))
    first, second = model(dtype), model(dtype)
    optimizer = make(first, kind, in_backward=True)
    walk(first, optimizer, range(6))
    second.load_state_dict(first.state_dict())
    fresh = make(second, kind, in_backward=True)
    unpack(fresh, *pack(optimizer))
    walk(second, fresh, range(6, 12))
    assert same(second, whole) and next(second.parameters()).dtype == dtype


def test_rounding_at_random_by_its_definition():
    """arXiv:2010.06192, eq. 1: to the neighbour above with the chance of the way already gone to it; a value that bfloat16 has
    stays, and so do infinity and NaN, whatever bits a device writes it with."""
    low, gap = 1.0, 2.0**-7  # neighbours of bfloat16 between 1 and 2 are so far apart
    for share in (0.0, 0.1, 0.5, 0.9):
        for sign in (1.0, -1.0):
            x = torch.full((200_000,), sign * (low + share * gap))
            found = rounded_at_random(x, 7).double() * sign
            assert set(found.unique().tolist()) <= {low, low + gap}
            chance = float((found > low).double().mean())
            exact = float((x[0].double() * sign - low) / gap)
            assert abs(chance - exact) < 5 * (max(exact * (1 - exact), 1e-12) / 200_000) ** 0.5
    odd = torch.tensor([float("inf"), float("-inf"), 0.0, -0.0])
    assert torch.equal(rounded_at_random(odd, 1), odd.to(torch.bfloat16))
    nans = torch.tensor([0x7FFFFFFF, 0x7FC00000, -1], dtype=torch.int32).view(torch.float32)
    assert rounded_at_random(nans, 1).isnan().all()


def test_draws_are_a_function_of_seed_step_and_weight():
    x = torch.rand(64, 64)
    assert torch.equal(rounded_at_random(x, 5), rounded_at_random(x, 5))
    assert not torch.equal(rounded_at_random(x, 5), rounded_at_random(x, 6))
    net = model(torch.bfloat16)
    optimizer, found = make(net, "sgd", in_backward=False), []
    start = {k: v.clone() for k, v in net.state_dict().items()}
    for step in (0, 0, 1):
        net.load_state_dict(start)
        for part in optimizer.parts:
            part.state.clear()
        optimizer.now = step
        for p in net.parameters():
            p.grad = torch.full_like(p, 1e-2)
        optimizer.step()
        found.append([p.detach().clone() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(found[0], found[2], strict=True))


def test_small_updates_are_not_lost():
    """200 steps of 1e-4 from 1: bfloat16 has nothing between 1 and 0.996, so the nearest is always 1."""
    p = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    optimizer = make_optimizer(
        Optimizer(kind="sgd", momentum=0.0, weight_decay=0.0), [{"name": "a", "params": [p], "lr": 1e-4}], CPU
    )
    nearest = torch.ones((), dtype=torch.bfloat16)
    for step in range(200):
        optimizer.now = step
        p.grad = torch.ones_like(p)
        optimizer.step()
        nearest = nearest - nearest.new_tensor(1e-4)
    assert nearest == 1
    assert float(p.detach().double().mean()) == pytest.approx(0.98, abs=2e-4)


def test_states_in_bf16_are_float32_and_the_weights_alone_are_held():
    net = model(torch.bfloat16)
    optimizer = make(net, "adamw", in_backward=False)
    walk(net, optimizer, range(2))
    assert all(s["exp_avg"].dtype == torch.float32 for part in optimizer.parts for s in part.state.values())
    assert sum(p.numel() for p in optimizer.moved) == 0 and all(p.grad is None for p in optimizer.moved)


def test_in_bf16_it_follows_the_same_training_in_float32():
    """On average: the mean over many seeds of where bf16 gets to is where float32 gets to."""
    x = torch.linspace(-1, 1, 512).bfloat16()
    exact = nn.Parameter(x.float())
    one = make_optimizer(Optimizer(weight_decay=0.0), [{"name": "a", "params": [exact], "lr": 1e-3}], CPU)
    ends = []
    for seed in range(40):
        p = nn.Parameter(x.clone())
        optimizer = make_optimizer(Optimizer(weight_decay=0.0), [{"name": "a", "params": [p], "lr": 1e-3}], CPU, seed=seed)
        for step in range(5):
            optimizer.now = step
            p.grad = torch.ones_like(p)
            optimizer.step()
        ends.append(p.detach().double())
    for _ in range(5):
        exact.grad = torch.ones_like(exact)
        one.step()
    drift = torch.stack(ends).mean(0) - exact.detach().double()
    assert abs(float(drift.mean())) < 5e-5 and float((exact.detach() - x.float()).mean()) == pytest.approx(-5e-3, abs=1e-5)
