"""How high a heap rises under a sequence of requests: what a process that never gives memory back will have held.

glibc's malloc as a run on a CPU is told to use it (`launch.environment`): one heap that only grows. A request is served from the
smallest hole that is large enough, the rest of which stays a hole; what is given back is joined with the holes beside it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

from limner.engine.ledger import Event

_ALIGNED = 64
_HEAD = 64  # torch asks for 64-byte alignment, which costs as much before each block


class Heap:
    """Addresses only; nothing is stored."""

    def __init__(self) -> None:
        self.top = 0
        """How high it has risen, bytes."""
        self._holes: list[tuple[int, int]] = []  # (size, begin), the smallest first
        self._begins: dict[int, int] = {}  # of holes: begin -> size
        self._ends: dict[int, int] = {}  # of holes: end -> begin
        self._blocks: dict[int, tuple[int, int]] = {}

    def take(self, number: int, num_bytes: int) -> None:
        size = -(-num_bytes // _ALIGNED) * _ALIGNED + _HEAD
        place = bisect_left(self._holes, (size, 0))
        if place < len(self._holes):
            hole, begin = self._holes[place]
            self._fill(hole, begin)
            if hole > size:
                self._open(begin + size, hole - size)
        else:
            begin = self.top
            if (last := self._ends.get(self.top)) is not None:  # the hole below the top is a part of it
                begin = last
                self._fill(self.top - last, last)
            self.top = begin + size
        self._blocks[number] = begin, size

    def give(self, number: int) -> None:
        begin, size = self._blocks.pop(number)
        if (before := self._ends.get(begin)) is not None:
            self._fill(begin - before, before)
            begin, size = before, size + begin - before
        if (after := self._begins.get(begin + size)) is not None:
            self._fill(after, begin + size)
            size += after
        self._open(begin, size)

    def _open(self, begin: int, size: int) -> None:
        insort(self._holes, (size, begin))
        self._begins[begin], self._ends[begin + size] = size, begin

    def _fill(self, size: int, begin: int) -> None:
        del self._holes[bisect_left(self._holes, (size, begin))]
        del self._begins[begin], self._ends[begin + size]


def heights(events: Iterable[Event]) -> dict[str, int]:
    """Under each heading of events, how high the heap has risen by its last event, bytes."""
    heap, out = Heap(), dict[str, int]()
    for event in events:
        if event.num_bytes > 0:
            heap.take(event.number, event.num_bytes)
        elif event.num_bytes < 0:
            heap.give(event.number)
        out[event.what.partition("/")[0]] = heap.top
    return out
