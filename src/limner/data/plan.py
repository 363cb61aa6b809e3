"""The order of everything: which pictures stand in which micro-batch of which step, as a pure function of the seed."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import ceil

from limner.randomness import permutation


@dataclass(frozen=True, eq=False)  # compared by identity: its sequences may be long
class Order:
    """Micro-batches of a data set, epoch after epoch, without end.

    `items` are picture indices, repeated as often as each is shown in an epoch; `buckets[i]` is the bucket of picture i.
    A micro-batch holds pictures of one bucket; the last one of a bucket may be smaller. The stream of micro-batches is cut
    into steps of `micro_batches_per_step` (accumulation x processes), across the ends of epochs.
    """

    items: Sequence[int]
    buckets: Sequence[int]
    batch_size: int
    micro_batches_per_step: int
    seed: int

    @cached_property
    def num_micro_batches(self) -> int:
        """Micro-batches in an epoch; the same in every epoch."""
        counts: dict[int, int] = {}
        for i in self.items:
            counts[self.buckets[i]] = counts.get(self.buckets[i], 0) + 1
        return sum(ceil(n / self.batch_size) for n in counts.values())

    def steps(self, epochs: int) -> int:
        """Steps that show everything `epochs` times."""
        return ceil(epochs * self.num_micro_batches / self.micro_batches_per_step)

    def epoch_of(self, step: int) -> int:
        """Epochs completed before step `step` (from 0)."""
        return step * self.micro_batches_per_step // self.num_micro_batches

    def epoch_at(self, step: int, position: int) -> int:
        """The epoch (from 0) to which a place in a step's global batch belongs: a step may begin in one and end in the next."""
        first = step * self.micro_batches_per_step
        for number in range(first, first + self.micro_batches_per_step):
            position -= len(self._micro_batch(number))
            if position < 0:
                return number // self.num_micro_batches
        raise IndexError("no such place in the step")

    def epoch(self, epoch: int) -> list[tuple[int, ...]]:
        """The micro-batches of one epoch: pictures shuffled within their buckets, then the batches shuffled."""
        by_bucket: dict[int, list[int]] = {}
        for place in permutation(len(self.items), self.seed, "order", epoch):
            by_bucket.setdefault(self.buckets[self.items[place]], []).append(self.items[place])
        batches = [
            tuple(members[i : i + self.batch_size])
            for _, members in sorted(by_bucket.items())
            for i in range(0, len(members), self.batch_size)
        ]
        return [batches[i] for i in permutation(len(batches), self.seed, "batches", epoch)]

    def step(self, step: int) -> list[tuple[int, ...]]:
        """The micro-batches of one step, in order."""
        first = step * self.micro_batches_per_step
        return [self._micro_batch(first + i) for i in range(self.micro_batches_per_step)]

    def _micro_batch(self, number: int) -> tuple[int, ...]:
        epoch, place = divmod(number, self.num_micro_batches)
        return _cached_epoch(self, epoch)[place]


@lru_cache(maxsize=4)
def _cached_epoch(order: Order, epoch: int) -> list[tuple[int, ...]]:
    return order.epoch(epoch)


def repeated(repeats: Sequence[int]) -> array[int]:
    """Picture indices, each as often as it is shown in an epoch."""
    return array("I", (i for i, n in enumerate(repeats) for _ in range(n)))
