"""The micro-batches of the loop, made ahead where the loop would wait for them.

On a GPU a thread reads them from the caches, draws their noise and copies them to the device from page-locked memory, on a
stream of its own, while the device is at the batch before. All of it is a function of step and position, so a batch is the
same whoever makes it, and when. On a CPU nothing is gained: the thread would take its time from the step itself.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, is_dataclass
from itertools import accumulate, chain, count, groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from limner.config import Memory
from limner.data.cache import Cache
from limner.engine.objective import Question, ask
from limner.engine.samples import NotStored, Samples
from limner.engine.skips import shown

if TYPE_CHECKING:
    from limner.engine.training import Training

AHEAD = 2
"""Micro-batches that are made before they are asked for, on a GPU."""


class Place(NamedTuple):
    """Where a micro-batch stands."""

    step: int
    number: int
    """In its step, counted over all processes."""
    indices: tuple[int, ...]
    position: int
    """Of its first picture in the step."""


def places(job: Training, step: int) -> list[Place]:
    """This process's micro-batches of a step, without what is left out."""
    micro_batches = shown(job, step)
    starts = accumulate(map(len, micro_batches), initial=0)
    every = list(enumerate(zip(micro_batches, starts, strict=False)))
    parts = [
        Place(step, number, *part)
        for number, (indices, start) in every[job.runtime.rank :: job.runtime.world]
        for part in without_gaps(indices, start)
    ]
    return [piece for part in parts for piece in pieces(part, job.config.memory)]


def without_gaps(indices: Sequence[int | None], position: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """What of a micro-batch stands side by side, each with the position of its first."""
    for is_gap, some in groupby(indices, lambda i: i is None):
        part = tuple(some)
        if not is_gap:
            yield part, position  # type: ignore[misc]
        position += len(part)


def pieces(place: Place, memory: Memory) -> list[Place]:
    """A micro-batch as it is computed: in pieces of memory.micro_batch."""
    size = memory.micro_batch or len(place.indices)
    starts = range(0, len(place.indices), size)
    return [Place(*place[:2], place.indices[start : start + size], place.position + start) for start in starts]


class Feed:
    """Gives the loop what it asks for, made by a thread if that is possible."""

    def __init__(self, job: Training, ahead: int) -> None:
        self.job = job
        device = job.runtime.device
        self._ahead = 0 if job.samples.needs_model else ahead
        self._stream = torch.cuda.Stream(device) if self._ahead and device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, "feed") if self._ahead else None
        self._samples: Samples | None = None  # the thread's own: a connection to the index is for one thread
        self._following: Iterator[Place] = iter(())
        self._coming: deque[tuple[Place, Future[tuple[Question, Any]]]] = deque()

    def take(self, place: Place) -> Question:
        """The micro-batch of a place, on the device. Raises what its making raised."""
        if self._thread is None:
            return self._make(self.job.samples, place)
        if not self._coming or self._coming[0][0] != place:
            self._coming.clear()
            self._following = chain.from_iterable(places(self.job, step) for step in count(place.step))
            self._order(next(p for p in self._following if p == place))
        while len(self._coming) <= self._ahead:
            self._order(next(self._following))
        try:
            question, done = self._coming.popleft()[1].result()
        except NotStored:  # damaged since the start: made with the model, which is the loop's
            return self._make(self.job.samples, place)
        if done is not None:
            stream = torch.cuda.current_stream(self.job.runtime.device)
            stream.wait_event(done)
            for tensor in tensors_of(question):
                tensor.record_stream(stream)
        return question

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def _order(self, place: Place) -> None:
        assert self._thread is not None
        self._coming.append((place, self._thread.submit(self._make_ahead, place)))

    def _make_ahead(self, place: Place) -> tuple[Question, Any]:
        if self._samples is None:
            self._samples = copy.copy(self.job.samples)
            self._samples.cache, self._samples.lends_model = Cache(self.job.samples.cache.folder), False
        if self._stream is None:
            return self._make(self._samples, place), None
        with torch.cuda.stream(self._stream):
            return self._make(self._samples, place), self._stream.record_event()

    def _make(self, samples: Samples, place: Place) -> Question:
        return ask(self.job, samples.batch(place.indices, place.step, place.position), place.step)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors of a question, however deep they lie."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_of(getattr(value, field.name))
    elif isinstance(value, dict):
        for each in value.values():
            yield from tensors_of(each)
    elif isinstance(value, tuple):
        for each in value:
            yield from tensors_of(each)
