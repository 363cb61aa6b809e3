"""Writing off the critical path: what is to be saved is copied at its step, and one thread writes the copies.

No more than one save is under way: the next waits for it. Nothing is told of a file before it is whole and has been read
back, and a write that failed ends the run with its own words.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

MOST_BYTES = 2 << 30
"""How much is copied to be written aside; what is more is written in the loop, since there may be no room for it twice."""

Told = dict[str, Any]
"""An event: its name under "kind", and what it says."""


class Copies:
    """Copies of tensors on the CPU, on their way from a GPU until `wait`."""

    def __init__(self) -> None:
        self._arrived: Any = None

    def take(self, tensor: Tensor) -> Tensor:
        """A contiguous copy, not to be read before `wait`."""
        tensor = tensor.detach()
        if tensor.device.type != "cuda":
            return tensor.to("cpu", copy=True).contiguous()
        out = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        out.copy_(tensor, non_blocking=True)
        self._arrived = torch.cuda.current_stream(tensor.device).record_event()
        return out

    @property
    def have_arrived(self) -> bool:
        """Whether all are there."""
        return self._arrived is None or self._arrived.query()

    def wait(self) -> None:
        """Until all are there: the last is, so that those before are."""
        if self._arrived is not None:
            self._arrived.synchronize()


class Saver:
    """The thread that writes, and what it has to tell."""

    def __init__(self, tell: Callable[..., None], waiting: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self._tell, self._waiting = tell, waiting
        self._thread = ThreadPoolExecutor(1, "saving")
        self._writing: deque[Future[Told | None]] = deque()
        self._has_failed = False

    def do(self, write: Callable[[], Told | None], *, aside: bool) -> None:
        """Run `write`, which returns what is to be told of it: in the thread, or now."""
        if aside:
            self._writing.append(self._thread.submit(self._write, write))
            return
        self._say(write())

    def _write(self, write: Callable[[], Told | None]) -> Told | None:
        """Nothing behind what failed: a run goes on from a state, and would not write the checkpoint before it again."""
        if self._has_failed:
            return None
        try:
            return write()
        except BaseException:
            self._has_failed = True
            raise

    def collect(self, *, wait: bool = False) -> None:
        """Tell what is done, or all once it is. Raises what a write raised."""
        with self._waiting() if wait and self._writing else nullcontext():
            while self._writing and (wait or self._writing[0].done()):
                self._say(self._writing.popleft().result())

    def close(self) -> None:
        """Let what is being written get to its end."""
        with self._waiting() if self._writing else nullcontext():
            self._thread.shutdown()

    def _say(self, told: Told | None) -> None:
        if told is not None:
            self._tell(**told)


def fits_aside(params: Iterable[Tensor]) -> bool:
    """Whether the copies of a checkpoint and a training state of these are small: weights twice, optimiser, average."""
    return 5 * sum(p.nbytes for p in params) <= MOST_BYTES
