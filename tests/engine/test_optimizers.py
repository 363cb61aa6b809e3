"""Optimisers by their papers' formulas, and that each goes on from its state to the bit."""

from __future__ import annotations

import importlib.util
import json
import math

import pytest
import torch
from torch import nn

from limner.config import Optimizer
from limner.config.optimizers import TABLE
from limner.engine.one_by_one import OneByOne
from limner.engine.optimizer_state import pack, unpack
from limner.engine.optimizers import make_optimizer, set_learning_rates
from limner.errors import UserError

CPU = torch.device("cpu")
HAS_8BIT = importlib.util.find_spec("bitsandbytes") is not None
KINDS = [
    pytest.param(kind, marks=pytest.mark.skipif("8bit" in kind and not HAS_8BIT, reason="bitsandbytes is not installed"))
    for kind in TABLE
]
SHAPES = ((64, 72), (3, 4), (7,), (4, 2, 3, 3))  # the first is large enough for 8-bit states


def params(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    rng = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=rng).to(dtype)) for s in SHAPES]


def make(ps: list[nn.Parameter], **values) -> torch.optim.Optimizer | OneByOne:
    lr = 1.0 if TABLE.get(values.get("kind", ""), TABLE["adamw"]).finds_rate else 1e-2
    second = lr if lr == 1.0 else lr / 2
    groups = [{"name": "a", "params": ps[:2], "lr": lr}, {"name": "b", "params": ps[2:], "lr": second}]
    return make_optimizer(Optimizer(**values), groups, CPU, seed=5)


def gradients(ps: list[nn.Parameter], number: int) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(100 + number)
    return [(p.detach().float() + torch.randn(p.shape, generator=rng)).to(p.dtype) for p in ps]


def walk(ps: list[nn.Parameter], optimizer: torch.optim.Optimizer | OneByOne, numbers: range) -> None:
    for number in numbers:
        set_learning_rates(optimizer, (1 + number) / 12)
        if isinstance(optimizer, OneByOne):
            optimizer.now = number
        for p, g in zip(ps, gradients(ps, number), strict=True):
            p.grad = g
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def same(a: list[nn.Parameter], b: list[nn.Parameter]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# --- formulas ---------------------------------------------------------------------------------------------------------


def test_adamw_by_its_paper():
    """arXiv:1711.05101, algorithm 2, in float64."""
    ps = params()
    optimizer = make(ps, weight_decay=0.1, beta1=0.8, beta2=0.95, eps=1e-6)
    x, m, v = ps[0].detach().double(), 0.0, 0.0
    for number in range(5):
        g = gradients(ps, number)[0].double()
        walk(ps, optimizer, range(number, number + 1))
        rate, t = 1e-2 * (1 + number) / 12, number + 1
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        m_hat, v_hat = m / (1 - 0.8**t), v / (1 - 0.95**t)
        x = x - rate * (0.1 * x + m_hat / (v_hat.sqrt() + 1e-6))
    assert torch.allclose(ps[0].double(), x, rtol=1e-5, atol=1e-7)


def test_lion_by_its_paper():
    """arXiv:2302.06675, algorithm 2, in float64, with the paper's beta2."""
    ps = params()
    optimizer = make(ps, kind="lion", weight_decay=0.1)
    x, m = ps[0].detach().double(), 0.0
    for number in range(5):
        g = gradients(ps, number)[0].double()
        walk(ps, optimizer, range(number, number + 1))
        x = x - 1e-2 * (1 + number) / 12 * ((0.9 * m + 0.1 * g).sign() + 0.1 * x)
        m = 0.99 * m + 0.01 * g
    assert torch.allclose(ps[0].double(), x, rtol=1e-5, atol=1e-7)


def test_sgd_by_nesterov():
    """Momentum as in Sutskever et al. 2013 in the form of torch's documentation; decay is part of the gradient."""
    ps = params()
    optimizer = make(ps, kind="sgd", weight_decay=0.1, momentum=0.7)
    x, b = ps[0].detach().double(), None
    for number in range(5):
        g = gradients(ps, number)[0].double() + 0.1 * x
        walk(ps, optimizer, range(number, number + 1))
        b = g if b is None else 0.7 * b + g
        x = x - 1e-2 * (1 + number) / 12 * (g + 0.7 * b)
    assert torch.allclose(ps[0].double(), x, rtol=1e-4, atol=1e-6)


def test_adafactor_by_its_paper():
    """arXiv:1804.04235, algorithm 4, without momentum, at a given learning rate, in float64."""
    ps = params()
    optimizer = make(ps, kind="adafactor", weight_decay=0.0)
    x, row, col = ps[1].detach().double(), 0.0, 0.0
    for number in range(5):
        g = gradients(ps, number)[1].double()
        walk(ps, optimizer, range(number, number + 1))
        beta = 1 - (number + 1) ** -0.8
        square = g**2 + 1e-30
        row, col = beta * row + (1 - beta) * square.sum(1), beta * col + (1 - beta) * square.sum(0)
        u = g / (row[:, None] * col[None] / row.sum()).sqrt()
        x = x - 1e-2 * (1 + number) / 12 * u / max(1.0, float(u.square().mean().sqrt()))
    assert torch.allclose(ps[1].double(), x, rtol=1e-5, atol=1e-6)


def test_muon_moves_matrices_along_orthogonal_ones_and_the_rest_as_adamw_does():
    """arXiv:2502.16982, eq. 4: the update is U V' of the momentum times 0.2 sqrt(longer side); five rounds of Newton and
    Schulz bring the singular values near 1."""
    ps = params()
    before, plain = [p.detach().clone() for p in ps], params()
    walk(ps, make(ps, kind="muon", weight_decay=0.0), range(11, 12))
    walk(plain, make(plain, weight_decay=0.0, beta2=0.95, eps=1e-10), range(11, 12))
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(ps[2:], plain[2:], strict=True))
    for p, start, g in zip(ps[:2], before, gradients([nn.Parameter(b) for b in before], 11), strict=False):
        moved = (start - p.detach()) / (1e-2 * 0.2 * math.sqrt(max(p.shape)))
        u, _, v = torch.linalg.svd(g.double(), full_matrices=False)
        values = (u.T @ moved.double() @ v.T).diagonal()  # g is the momentum's direction at the first step
        assert values.min() > 0.4 and values.max() < 1.3
        assert (moved.double() - u @ values.diag() @ v).norm() < 0.05 * moved.norm()


def test_schedule_free_by_its_paper():
    """arXiv:2405.15682, algorithm 1, in float64: trained at y, used at x."""
    ps = params()
    optimizer = make(ps, kind="schedule_free", weight_decay=0.1)
    x = z = y = ps[0].detach().double()
    v, weight_sum = 0.0, 0.0
    for number in range(6):
        g = gradients(ps, number)[0].double()
        walk(ps, optimizer, range(number, number + 1))
        rate, t = 1e-2 * (1 + number) / 12, number + 1
        v = 0.999 * v + 0.001 * g**2
        step = g / ((v / (1 - 0.999**t)).sqrt() + 1e-8) + 0.1 * y
        z = z - rate * step
        weight_sum += rate**2
        x = (1 - rate**2 / weight_sum) * x + rate**2 / weight_sum * z
        y = 0.1 * z + 0.9 * x
    assert torch.allclose(ps[0].double(), y, rtol=1e-4, atol=1e-6)
    optimizer.eval()
    assert torch.allclose(ps[0].double(), x, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["prodigy", "dadapt_adam", "dadapt_lion"])
def test_the_rate_in_effect_is_the_one_found_times_the_one_set(kind):
    """It grows from a millionth; every step of a sign method is exactly so long."""
    ps = params()
    optimizer, rates = make(ps, kind=kind, weight_decay=0.0), []
    for number in range(40):
        found = optimizer.param_groups[1]["d"]
        rates.append(set_learning_rates(optimizer, 0.5))
        assert rates[-1] == {"a": 0.5 * found, "b": 0.5 * found}
        before = ps[1].detach().double()
        for p, g in zip(ps, gradients(ps, number % 3), strict=True):
            p.grad = g
        optimizer.step()
        if kind == "dadapt_lion":
            assert torch.allclose((ps[1].double() - before).abs(), torch.tensor(0.5 * found).double(), atol=2e-7)
    assert rates[0]["a"] == pytest.approx(5e-7) and rates[-1]["a"] > 100 * rates[0]["a"]


# --- states -----------------------------------------------------------------------------------------------------------


def through_files(optimizer, folder):
    from safetensors.torch import load_file, save_file

    tensors, told = pack(optimizer)
    save_file(tensors, folder / "o.safetensors")
    return load_file(folder / "o.safetensors"), json.loads(json.dumps(told))


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_optimizer_goes_on_from_its_files_to_the_bit(kind, tmp_path):
    whole = params()
    optimizer = make(whole, kind=kind)
    walk(whole, optimizer, range(12))
    ps = params()
    half = make(ps, kind=kind)
    walk(ps, half, range(6))
    others = [nn.Parameter(p.detach().clone()) for p in ps]
    fresh = make(others, kind=kind)
    unpack(fresh, *through_files(half, tmp_path))
    walk(others, fresh, range(6, 12))
    assert same(whole, others)
    assert not same(whole, ps)
    (a, told_a), (b, told_b) = pack(optimizer), pack(fresh)
    assert told_a == told_b and a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


@pytest.mark.parametrize("kind", ["adamw", "prodigy", "schedule_free", "came"])
def test_without_its_state_it_would_not(kind):
    whole = params()
    optimizer = make(whole, kind=kind)
    walk(whole, optimizer, range(6))
    others = [nn.Parameter(p.detach().clone()) for p in whole]
    walk(whole, optimizer, range(6, 12))
    walk(others, make(others, kind=kind), range(6, 12))
    assert not same(whole, others)


def test_the_state_of_other_weights_is_refused():
    ps = params()
    optimizer = make(ps)
    walk(ps, optimizer, range(1))
    tensors, told = pack(optimizer)
    few = make_optimizer(Optimizer(), [{"name": "a", "params": params()[:2], "lr": 1.0}], CPU)
    with pytest.raises(ValueError, match="other weights"):
        unpack(few, tensors, told)


def test_a_state_that_cannot_be_written_is_refused():
    ps = params()
    optimizer = make(ps)
    walk(ps, optimizer, range(1))
    optimizer.state[ps[0]]["what"] = object()
    with pytest.raises(TypeError, match=r"object \(0.what\)"):
        pack(optimizer)


# --- classes by their path --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "arguments"),
    [
        ("torch.optim.RAdam", ("decoupled_weight_decay=True",)),
        ("pytorch_optimizer.SOAP", ("precondition_frequency=2",)),
        ("pytorch_optimizer.ScheduleFreeRAdam", ()),
        ("pytorch_optimizer.AdEMAMix", ("alpha=3.0",)),
        ("transformers.optimization.Adafactor", ("relative_step=False", "scale_parameter=True")),
    ],
)
def test_a_class_by_its_path(path, arguments):
    ps = params()
    optimizer = make(ps, kind="other", class_path=path, arguments=arguments)
    assert f"{type(optimizer).__module__}".split(".")[0] == path.split(".")[0]
    for text in arguments:
        name, value = text.split("=")
        assert str(optimizer.param_groups[0].get(name, value)) == value
    walk(ps, optimizer, range(8))
    assert not same(ps, params())


def refused(**values) -> str:
    with pytest.raises(UserError) as caught:
        make(params(), **values)
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"class_path": "torch.optim.AdamWW"}, "torch.optim has no AdamWW"),
        ({"class_path": "torch.optim.lr_scheduler.LambdaLR"}, "is no optimiser"),
        ({"class_path": "torch.optim.swa_utils.swap_tensors"}, "has no swap_tensors"),
        ({"class_path": "torch.optim.LBFGS"}, "per-parameter options"),
        ({"class_path": "pytorch_optimizer.SAM"}, "cannot be made so"),
        ({"class_path": "torch.optim.SparseAdam"}, "in a trial of a few steps it failed"),
        ({"class_path": "prodigyopt.Prodigy"}, "pip install prodigyopt"),
        ({"class_path": "torch.optim.Adam", "arguments": ("amsgrd=True",)}, "has no amsgrd. Did you mean amsgrad?"),
        ({"class_path": "torch.optim.Adam", "arguments": ("betas=1",)}, "cannot be made so"),
        ({"class_path": "torch.optim.Adam", "arguments": ("lr=1",)}, "has no lr"),
        ({"class_path": "transformers.optimization.Adafactor"}, "takes no notice of the learning rate"),
        ({"class_path": "torch.optim.Rprop", "weight_decay": 0.5}, "has none"),
    ],
)
def test_classes_that_are_refused(values, said):
    assert said in refused(kind="other", **values)


def test_arguments_of_a_named_one():
    ps = params()
    assert make(ps, kind="prodigy", arguments=("d_coef=2.0",)).param_groups[0]["d_coef"] == 2.0
    assert "decided by optimizer.eps" in refused(kind="prodigy", arguments=("eps=1e-6",))
    assert "Did you mean d_coef?" in refused(kind="prodigy", arguments=("dcoef=2",))


class Forgetful(torch.optim.SGD):
    """Counts its steps where no state is kept."""

    def step(self, closure=None):
        self.count = getattr(self, "count", 0) + 1
        for group in self.param_groups:
            group["lr"] *= self.count
        return super().step(closure)


class Noisy(torch.optim.SGD):
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.add_(torch.randn(p.shape))
        return super().step(closure)


@pytest.mark.parametrize("kind", [Forgetful, Noisy])
def test_one_that_does_not_resume_exactly_is_found_out(kind, monkeypatch):
    monkeypatch.setattr(torch.optim, kind.__name__, kind, raising=False)
    before = torch.get_rng_state()
    assert "trial of 6 and 6 steps came out otherwise" in refused(kind="other", class_path=f"torch.optim.{kind.__name__}")
    assert torch.equal(torch.get_rng_state(), before)


# --- fp16 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_scaled_for_fp16_come_to_the_same_and_infinite_ones_move_nothing(kind):
    """A scale is a power of two, so scaling and unscaling change no bit."""
    plain, scaled = params(), params()
    one, other = make(plain, kind=kind), make(scaled, kind=kind)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for number in range(4):
        walk(plain, one, range(number, number + 1))
        for is_sound in (False, True):
            set_learning_rates(other, (1 + number) / 12)
            for p, g in zip(scaled, gradients(scaled, number), strict=True):
                p.grad = g * scaler.scale(torch.ones(()))
            before = [p.detach().clone() for p in scaled]
            if not is_sound:
                scaled[1].grad[0, 0] = float("inf")
            scaler.unscale_(other)
            scaler.step(other)
            scaler.update()
            other.zero_grad(set_to_none=True)
            assert is_sound != all(torch.equal(a, b) for a, b in zip(before, scaled, strict=True))
    assert same(plain, scaled)
