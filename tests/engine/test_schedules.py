"""Learning-rate schedules against those of transformers and diffusers, step by step."""

from __future__ import annotations

import math

import diffusers.optimization as diffusers_schedules
import pytest
import torch
import transformers

from limner.config import Optimizer
from limner.engine.schedules import schedule_factor

TOTAL = 40
LR = 0.5


def theirs(make) -> list[float]:
    """The factors of a scheduler of torch's kind over all steps and two beyond."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=LR)
    schedule, out = make(optimizer), []
    for _ in range(TOTAL + 3):
        out.append(schedule.get_last_lr()[0] / LR)
        optimizer.step()
        schedule.step()
    return out


def ours(**values) -> list[float]:
    return [schedule_factor(Optimizer(**values), s, TOTAL) for s in range(TOTAL + 3)]


def named(name: str, warmup: int, **specific):
    return lambda o: transformers.get_scheduler(name, o, warmup, TOTAL, scheduler_specific_kwargs=specific)


WARMUPS = [0, 1, 7]
CASES = [
    ("constant", {}, lambda w: named("constant_with_warmup", w)),
    ("linear", {}, lambda w: named("linear", w)),
    ("cosine", {}, lambda w: named("cosine", w)),
    ("cosine", {"schedule_floor": 0.2}, lambda w: named("cosine_with_min_lr", w, min_lr_rate=0.2)),
    ("cosine_restarts", {"schedule_cycles": 3}, lambda w: named("cosine_with_restarts", w, num_cycles=3)),
    ("polynomial", {"schedule_power": 2.5, "schedule_floor": 0.1}, lambda w: named("polynomial", w, power=2.5, lr_end=LR / 10)),
    ("inverse_sqrt", {}, lambda w: named("inverse_sqrt", w)),
    ("inverse_sqrt", {"schedule_timescale": 12}, lambda w: named("inverse_sqrt", w, timescale=12)),
    ("warmup_stable_decay", {"decay_share": 0.3}, lambda w: named("warmup_stable_decay", w, num_decay_steps=12)),
]  # fmt: skip


@pytest.mark.parametrize("warmup", WARMUPS)
@pytest.mark.parametrize(("schedule", "options", "oracle"), CASES, ids=[f"{s} {o}" for s, o, _ in CASES])
def test_as_transformers_has_it(schedule, options, oracle, warmup):
    found = ours(schedule=schedule, warmup_steps=warmup, **options)
    # after the last step a cosine of theirs rises again, ours stays where it ended
    assert found[: TOTAL + 1] == pytest.approx(theirs(oracle(warmup))[: TOTAL + 1], rel=1e-12, abs=1e-15)
    assert schedule == "inverse_sqrt" or found[TOTAL:] == [found[TOTAL]] * 3


def test_stable_decay_with_a_floor_after_the_warm_up():
    """Its warm-up begins at the floor in transformers, and at zero here."""
    expected = theirs(named("warmup_stable_decay", 6, num_decay_steps=8, min_lr_ratio=0.25))
    found = ours(schedule="warmup_stable_decay", warmup_steps=6, decay_share=0.2, schedule_floor=0.25)
    assert found[6:] == pytest.approx(expected[6:], rel=1e-12)
    assert found[:7] == pytest.approx([s / 6 for s in range(7)])


@pytest.mark.parametrize("warmup", [0, 4])
def test_pieces_as_diffusers_has_them(warmup):
    rules = "1.5:10,0.1:25,0.01"
    expected = theirs(lambda o: diffusers_schedules.get_scheduler("piecewise_constant", o, step_rules=rules))
    found = ours(
        schedule="piecewise", pieces=tuple(":".join(reversed(p.split(":"))) for p in rules.split(",")), warmup_steps=warmup
    )
    ramp = [min(1.0, s / warmup) if warmup else 1.0 for s in range(TOTAL + 3)]
    assert found == pytest.approx([r * e for r, e in zip(ramp, expected, strict=True)], rel=1e-12)


@pytest.mark.parametrize("step", [1, 2, 9_999, 10_000, 10_001, 40_000, 1_000_000])
def test_adafactor_by_its_paper(step):
    """arXiv:1804.04235, algorithm 5: rho_t = min(1e-2, 1 / sqrt(t)); at lr = 1e-2 it is the paper's to the last digit."""
    found = 1e-2 * schedule_factor(Optimizer(schedule="adafactor"), step - 1, 2_000_000)
    assert found == pytest.approx(min(1e-2, 1 / math.sqrt(step)), rel=1e-12)


def test_a_share_of_warm_up_is_so_many_steps():
    assert ours(warmup_share=0.175) == ours(warmup_steps=7)
    assert Optimizer(warmup_share=0.175).num_warmup_steps(TOTAL) == 7


@pytest.mark.parametrize("total", [1, 2, 10])
@pytest.mark.parametrize("warmup", [0, 1, 50])
def test_factors_stay_between_zero_and_one(warmup, total):
    for schedule in ("constant", "linear", "cosine", "cosine_restarts", "polynomial", "inverse_sqrt", "warmup_stable_decay"):
        section = Optimizer(schedule=schedule, warmup_steps=warmup, schedule_cycles=2, decay_share=1.0)
        assert all(0 <= schedule_factor(section, s, total) <= 1 for s in range(2 * total + 1))


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ((), "there are none"),
        (("1:0.5",), "the last is a factor alone"),
        (("0.5", "0.1"), "not of the form"),
        (("5:1", "5:0.5", "0.1"), "do not rise"),
        (("9:1", "5:0.5", "0.1"), "do not rise"),
        (("0:1", "0.1"), "do not rise"),
        (("5:x", "0.1"), "not of the form"),
        (("5:-1", "0.1"), "not between"),
        (("5:nan", "0.1"), "not between"),
    ],
)
def test_pieces_that_are_none(pieces, said):
    with pytest.raises(ValueError, match=said):
        Optimizer(pieces=pieces).parsed_pieces()
