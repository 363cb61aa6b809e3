"""The order with class pictures: as many as of the others in every epoch, and none left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from limner.data.plan import Order, repeated

OWN = (2, 1, 3)  # repeats: 6 showings an epoch


def order(num_class: int, batch_size: int = 2, per_step: int = 1, seed: int = 3) -> Order:
    buckets = (0, 1, 0, *(i % 3 for i in range(num_class)))
    return Order(repeated(OWN), buckets, batch_size, per_step, seed, repeated([1] * num_class, 3))


def flat(batches: list[tuple[int, ...]]) -> list[int]:
    return [i for b in batches for i in b]


@pytest.mark.parametrize("num_class", [1, 2, 5, 6, 7, 40])
def test_each_epoch_shows_as_many_class_pictures_as_others(num_class: int) -> None:
    o = order(num_class)
    told = Counter[int]()
    for epoch in range(num_class):  # 6 times each in all
        shown = Counter(flat(o.epoch(epoch)))
        assert {i: n for i, n in shown.items() if i < 3} == dict(enumerate(OWN))
        assert sum(n for i, n in shown.items() if i >= 3) == 6
        told.update({i: n for i, n in shown.items() if i >= 3})
        # no class picture is shown again before all others were
        assert max(told.values()) - min(told.get(i, 0) for i in range(3, 3 + num_class)) <= 1
    assert told == {i: 6 for i in range(3, 3 + num_class)}


def test_repeats_of_a_folder_count_among_class_pictures() -> None:
    o = replace(order(2), class_items=repeated([1, 2], 3))
    shown = Counter(i for e in range(2) for i in flat(o.epoch(e)) if i >= 3)
    assert shown == {3: 4, 4: 8}


def test_batches_keep_to_their_buckets_and_mix_both_kinds() -> None:
    o = order(40, batch_size=3)
    batches = [b for e in range(30) for b in o.epoch(e)]
    assert all(len({o.buckets[i] for i in b}) == 1 and 0 < len(b) <= 3 for b in batches)
    assert any(min(b) < 3 <= max(b) for b in batches)
    lengths = {len(o.epoch(e)) for e in range(30)}
    assert len(lengths) > 1, "the case that epochs differ is not in this test"


@pytest.mark.parametrize("per_step", [1, 2, 3, 7])
def test_steps_go_through_epochs_of_different_lengths(per_step: int) -> None:
    o = order(40, batch_size=3, per_step=per_step)
    stream = [b for e in range(12) for b in o.epoch(e)]
    steps = len(stream) // per_step
    jumped = [order(40, 3, per_step).step(steps - 1), order(40, 3, per_step).step(0)]  # asked out of order, of a fresh one
    assert [b for s in range(steps) for b in o.step(s)] == stream[: steps * per_step]
    assert jumped == [o.step(steps - 1), o.step(0)]
    ends = [0]
    for e in range(12):
        ends.append(ends[-1] + len(o.epoch(e)))
    for epoch in range(1, 12):
        assert o.steps(epoch) == -(-ends[epoch] // per_step)
        assert o.epoch_of(o.steps(epoch)) >= epoch > o.epoch_of(o.steps(epoch) - 1)
    for step in range(steps):
        assert o.epoch_of(step) == max(e for e in range(12) if ends[e] <= step * per_step)


def test_without_class_pictures_the_order_is_as_before() -> None:
    plain = Order(repeated([1] * 8), (0,) * 8, 1, 1, 0)
    assert flat(plain.epoch(0)) == [6, 0, 3, 4, 2, 5, 1, 7] and plain.class_share(3) == ()
