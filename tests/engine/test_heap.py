"""The heap of a process that gives nothing back."""

from __future__ import annotations

import random

from limner.engine.heap import Heap, heights
from limner.engine.ledger import Event

_HEAD = 64


def test_a_hole_serves_what_fits_and_only_that() -> None:
    heap = Heap()
    for number, size in enumerate((640, 1280, 640)):
        heap.take(number, size)
    assert heap.top == 640 + 1280 + 640 + 3 * _HEAD
    heap.give(1)
    before = heap.top
    heap.take(3, 600)  # into the hole, rounded up to 640
    heap.take(4, 1280 - 640 - _HEAD)  # what is left of it
    assert heap.top == before
    heap.take(5, 64)
    assert heap.top == before + 64 + _HEAD


def test_holes_beside_each_other_are_one_and_the_last_is_a_part_of_what_is_above() -> None:
    heap = Heap()
    for number in range(4):
        heap.take(number, 1024)
    for number in (1, 3, 2):
        heap.give(number)
    heap.take(9, 3 * 1024 + 2 * _HEAD)
    assert heap.top == 4 * (1024 + _HEAD)
    heap.give(9)
    heap.take(10, 8192)
    assert heap.top == 1024 + _HEAD + 8192 + _HEAD


def test_it_never_holds_two_at_one_place_nor_less_than_is_live() -> None:
    rng, heap = random.Random(0), Heap()
    live: dict[int, int] = {}
    for number in range(3000):
        if live and rng.random() < 0.48:
            gone = rng.choice(list(live))
            heap.give(gone)
            del live[gone]
        else:
            live[number] = rng.randrange(1, 1 << 16)
            heap.take(number, live[number])
        assert heap.top >= sum(live.values())
    places = sorted(heap._blocks[number] for number in live)
    assert all(a + size <= b for (a, size), (b, _) in zip(places, places[1:], strict=False))


def test_heights_by_heading() -> None:
    events = [Event(1, 1024, "one/a"), Event(1, -1024, "one/a"), Event(2, 2048, "two/b")]
    assert heights(events) == {"one": 1024 + _HEAD, "two": 2048 + _HEAD}
