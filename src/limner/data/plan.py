"""The order of everything: which pictures stand in which micro-batch of which step, as a pure function of the seed."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from math import ceil

from limner.randomness import permutation


@dataclass(frozen=True, eq=False)  # compared by identity: its sequences may be long
class Order:
    """Micro-batches of a data set, epoch after epoch, without end.

    `items` are picture indices, repeated as often as each is shown in an epoch; `buckets[i]` is the bucket of picture i.
    A micro-batch holds pictures of one bucket; the last one of a bucket may be smaller. The stream of micro-batches is cut
    into steps of `micro_batches_per_step` (accumulation x processes), across the ends of epochs.

    With class pictures (`class_items`, indices like the others) an epoch shows as many of them as of the others: they are taken
    from a stream of their own that shows each once, shuffled, before any comes again. So none is left out, however many there
    are; and since other ones are shown in another epoch, epochs may differ by a few micro-batches.
    """

    items: Sequence[int]
    buckets: Sequence[int]
    batch_size: int
    micro_batches_per_step: int
    seed: int
    class_items: Sequence[int] = ()

    @cached_property
    def num_micro_batches(self) -> int:
        """Micro-batches in the first epoch; without class pictures the same in every epoch."""
        return self._count(chain(self.items, self.class_share(0)))

    @cached_property
    def _starts(self) -> list[int]:
        """With class pictures: the micro-batches before each epoch, counted as far as somebody asked."""
        return [0, self.num_micro_batches]

    def _count(self, shown: Iterable[int]) -> int:
        return sum(ceil(n / self.batch_size) for n in Counter(map(self.buckets.__getitem__, shown)).values())

    def class_share(self, epoch: int) -> tuple[int, ...]:
        """The class pictures of an epoch: as many as there are others."""
        size, wanted = len(self.class_items), len(self.items)
        if not size or not wanted:
            return ()
        turns = range(epoch * wanted // size, -(-(epoch + 1) * wanted // size))
        stream = [i for turn in turns for i in _class_turn(self, turn)]
        first = epoch * wanted - turns[0] * size
        return tuple(stream[first : first + wanted])

    def _start(self, epoch: int) -> int:
        """Micro-batches before an epoch."""
        if not self.class_items:
            return epoch * self.num_micro_batches
        while len(self._starts) <= epoch:
            self._starts.append(self._starts[-1] + self._count(chain(self.items, self.class_share(len(self._starts) - 1))))
        return self._starts[epoch]

    def _epoch_at(self, number: int) -> int:
        """The epoch in which the micro-batch of that number stands."""
        if not self.class_items:
            return number // self.num_micro_batches
        while self._starts[-1] <= number:
            self._start(len(self._starts))
        return bisect_right(self._starts, number) - 1

    def steps(self, epochs: int) -> int:
        """Steps that show everything `epochs` times."""
        return ceil(self._start(epochs) / self.micro_batches_per_step)

    def epoch_of(self, step: int) -> int:
        """Epochs completed before step `step` (from 0)."""
        return self._epoch_at(step * self.micro_batches_per_step)

    def epoch_at(self, step: int, position: int) -> int:
        """The epoch (from 0) to which a place in a step's global batch belongs: a step may begin in one and end in the next."""
        first = step * self.micro_batches_per_step
        for number in range(first, first + self.micro_batches_per_step):
            position -= len(self._micro_batch(number))
            if position < 0:
                return self._epoch_at(number)
        raise IndexError("no such place in the step")

    def epoch(self, epoch: int) -> list[tuple[int, ...]]:
        """The micro-batches of one epoch: pictures shuffled within their buckets, then the batches shuffled."""
        laid = _laid_out(self, epoch)
        return [laid.batch(number) for number in range(len(laid.ends))]

    def _lay_out(self, epoch: int) -> _Epoch:
        shown = [*self.items, *self.class_share(epoch)] if self.class_items else self.items
        by_bucket: defaultdict[int, array[int]] = defaultdict(lambda: array("I"))
        for place in permutation(len(shown), self.seed, "order", epoch):
            by_bucket[self.buckets[shown[place]]].append(shown[place])
        members, starts = array("I"), list[int]()
        for _, of_bucket in sorted(by_bucket.items()):
            starts += range(len(members), len(members) + len(of_bucket), self.batch_size)
            members += of_bucket
        ends = [*starts[1:], len(members)]
        turns = permutation(len(starts), self.seed, "batches", epoch)
        return _Epoch(members, array("Q", (starts[i] for i in turns)), array("Q", (ends[i] for i in turns)))

    def step(self, step: int) -> list[tuple[int, ...]]:
        """The micro-batches of one step, in order."""
        first = step * self.micro_batches_per_step
        return [self._micro_batch(first + i) for i in range(self.micro_batches_per_step)]

    def _micro_batch(self, number: int) -> tuple[int, ...]:
        epoch = self._epoch_at(number)
        return _laid_out(self, epoch).batch(number - self._start(epoch))


@dataclass(frozen=True, slots=True)
class _Epoch:
    """The micro-batches of one epoch in numbers, since a tuple for each of a million would weigh ten times as much."""

    members: array[int]
    starts: array[int]
    ends: array[int]

    def batch(self, number: int) -> tuple[int, ...]:
        return tuple(self.members[self.starts[number] : self.ends[number]])


@lru_cache(maxsize=4)
def _class_turn(order: Order, turn: int) -> array[int]:
    """The class pictures once, in the order of one turn."""
    turned = permutation(len(order.class_items), order.seed, "class order", turn)
    return array("I", (order.class_items[place] for place in turned))


@lru_cache(maxsize=4)
def _laid_out(order: Order, epoch: int) -> _Epoch:
    return order._lay_out(epoch)


def repeated(repeats: Sequence[int], first: int = 0) -> array[int]:
    """Picture indices from `first` on, each as often as it is shown in an epoch."""
    return array("I", (i for i, n in enumerate(repeats, first) for _ in range(n)))
