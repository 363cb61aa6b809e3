"""The order of pictures: fair, a pure function of the seed, and independent of how it is cut into steps."""

from __future__ import annotations

import tracemalloc
from array import array
from collections import Counter
from dataclasses import replace
from math import ceil

import pytest

from limner.config import files
from limner.data.dataset import assemble
from limner.data.plan import Order, repeated
from limner.data.scan import Picture
from limner.formats.base import Base

REPEATS = (1, 3, 2, 1, 0, 5, 1, 1, 2, 4)
BUCKETS = (0, 0, 1, 1, 2, 2, 2, 0, 1, 0)


def order(batch_size: int = 3, per_step: int = 1, seed: int = 7) -> Order:
    return Order(repeated(REPEATS), BUCKETS, batch_size, per_step, seed)


def flat(batches: list[tuple[int, ...]]) -> list[int]:
    return [i for b in batches for i in b]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
@pytest.mark.parametrize("epoch", [0, 1, 17])
def test_an_epoch_shows_each_picture_exactly_as_often_as_asked(batch_size: int, epoch: int) -> None:
    batches = order(batch_size).epoch(epoch)
    assert Counter(flat(batches)) == Counter({i: n for i, n in enumerate(REPEATS) if n})
    assert len(batches) == order(batch_size).num_micro_batches
    assert len(batches) == sum(
        ceil(sum(n for n, b in zip(REPEATS, BUCKETS, strict=True) if b == k) / batch_size) for k in range(3)
    )
    assert all(len({BUCKETS[i] for i in b}) == 1 and 0 < len(b) <= batch_size for b in batches)


def test_the_same_seed_gives_the_same_order_and_another_another() -> None:
    assert [order().epoch(e) for e in range(5)] == [order().epoch(e) for e in range(5)]
    assert order().epoch(0) != order().epoch(1)
    assert order().epoch(0) != order(seed=8).epoch(0)


def test_the_order_of_a_seed_is_for_ever() -> None:
    """A golden value: changing it changes every training."""
    plain = Order(repeated([1] * 8), (0,) * 8, 1, 1, 0)
    assert flat(plain.epoch(0)) == [6, 0, 3, 4, 2, 5, 1, 7]


@pytest.mark.parametrize("per_step", [1, 2, 3, 5, 40])
def test_cutting_into_steps_changes_nothing(per_step: int) -> None:
    whole, cut = order(per_step=1), order(per_step=per_step)
    expected = [b for e in range(12) for b in whole.epoch(e)]
    steps = len(expected) // per_step
    assert [b for s in range(steps) for b in cut.step(s)] == expected[: steps * per_step]
    assert [cut.step(s) for s in (3, 0, 3)] == [cut.step(3), cut.step(0), cut.step(3)]


def test_steps_and_epochs_count_alike() -> None:
    o = replace(order(batch_size=4, per_step=2), items=repeated([1] * 8 + [5] + [1] * 7), buckets=(0, 1) * 8)
    assert o.num_micro_batches == 5
    assert [o.steps(e) for e in (1, 2, 3)] == [3, 5, 8]
    assert [replace(o, micro_batches_per_step=3).steps(e) for e in (1, 2, 3)] == [2, 4, 5]
    assert [o.epoch_of(s) for s in (0, 2, 3, 4, 5)] == [0, 0, 1, 1, 2]
    for per_step in (1, 2, 3, 5, 11):
        cut = replace(o, micro_batches_per_step=per_step)
        for epochs in (1, 2, 3):
            assert cut.epoch_of(cut.steps(epochs)) >= epochs
            assert cut.epoch_of(cut.steps(epochs) - 1) < epochs


def test_assembling_a_config_and_pictures() -> None:
    raw = {"train": {"batch_size": 2, "accumulation": 2, "epochs": 3}, "data": {"resolution": 64}}
    base = Base("x", None, "folder", "sd1", "epsilon", 512, 8, 2)
    sizes = [(64, 64), (128, 64), (64, 128), (640, 640), (130, 65)]
    pictures = [Picture(f"{i}.png", w, h, "", i + 1) for i, (w, h) in enumerate(sizes)]
    data = assemble(files.build(raw, {}), base, pictures)
    assert data.buckets.resolution == 64 and (data.buckets.minimum, data.buckets.maximum, data.buckets.step) == (32, 128, 8)
    assert data.bucket_counts() == {(64, 64): 5, (88, 40): 7, (40, 88): 3}
    assert data.fits[0].bucket == data.fits[3].bucket == (64, 64)
    assert data.order.num_micro_batches == sum(ceil(n / 2) for n in data.bucket_counts().values())
    assert data.total_steps == ceil(3 * data.order.num_micro_batches / 2)
    assert [b["count"] for b in data.bucket_info()["buckets"].values()] == [n for _, n in sorted(data.bucket_counts().items())]


@pytest.mark.parametrize(
    ("given", "num_pictures", "steps"),
    [
        ({"steps": 7}, 20, 7),
        ({}, 20, 2000),
        ({}, 2, 500),
        ({}, 1000, 3000),
        ({"batch_size": 4}, 100, 2500),
        ({"epochs": 2}, 20, 40),
    ],
)
def test_the_length_follows_the_pictures_unless_given(given: dict, num_pictures: int, steps: int) -> None:
    base = Base("x", None, "folder", "sd1", "epsilon", 512, 64, 8)
    pictures = [Picture(f"{i}.png", 512, 512, "", 1) for i in range(num_pictures)]
    assert assemble(files.build({"train": given}, {}), base, pictures).total_steps == steps


def test_an_epoch_of_many_is_held_in_numbers() -> None:
    count = 30_000
    many = Order(repeated([1] * count), array("I", (i % 3 for i in range(count))), 1, 1, 0)
    many.num_micro_batches  # noqa: B018
    tracemalloc.start()
    first = many.step(0)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert many.epoch(0)[0] == first[0] and held / count < 40
