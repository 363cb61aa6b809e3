"""What a computation holds in memory, written down while it is carried out on tensors without numbers.

Under torch's FakeTensorMode every operation gives tensors of the right shape, dtype and device that hold nothing, at once. The
ledger stands above it, and notes each storage when it comes and when it goes, and each operation with the shapes of its
arguments: what a run will hold, in the order in which it will ask for it, and what it will compute.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

Operation = tuple[Any, tuple[Any, ...], Any]
"""(what is called, its flattened arguments with `Lies` in the place of tensors, how they were nested)."""


@dataclass(frozen=True)
class Lies:
    """A tensor without its numbers."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    is_laid_out: bool = False
    """Whether it is a weight that is laid out once, as `models.prepacked` does."""

    @property
    def num_bytes(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count * self.dtype.itemsize


@dataclass(frozen=True)
class Event:
    """A storage comes (num_bytes > 0) or goes."""

    number: int
    num_bytes: int
    what: str
    """The heading under which it was noted."""


@dataclass
class Ledger(TorchDispatchMode):
    """`events` in order; `operations`: how often each was carried out, under the heading of `counting`."""

    device: torch.device
    events: list[Event] = field(default_factory=list)
    operations: dict[str, Counter[Operation]] = field(default_factory=dict)
    what: str = ""
    counting: str = ""
    laid_out: Sequence[Tensor] = ()
    """Weights that are laid out once where the model is really trained."""

    def __post_init__(self) -> None:
        super().__init__()
        self._refs: dict[int, tuple[Any, Event]] = {}
        self._next = 0

    def __hash__(self) -> int:
        return id(self)

    @contextmanager
    def under(self, what: str) -> Iterator[None]:
        """Inside, what comes is noted under this heading."""
        before, self.what = self.what, what
        yield
        self.what = before

    def note(self, num_bytes: int) -> Event:
        """Something comes that no tensor tells of; `forget` it when it goes."""
        self._next += 1
        event = Event(self._next, num_bytes, self.what)
        self.events.append(event)
        return event

    def forget(self, event: Event) -> None:
        self.events.append(Event(event.number, -event.num_bytes, event.what))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(out)[0]:
            if isinstance(tensor, Tensor) and tensor.device.type == self.device.type:
                self._see(tensor)
        if self.device.type == "cpu":
            for event in [self.note(count) for count in scratch_of(func, args, out)]:
                self.forget(event)
        if self.counting:
            self._count(func, args, kwargs or {})
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._refs and self._refs[key][0]() is storage:
            return
        event = self.note(storage.nbytes())

        def gone(ref: Any) -> None:
            if self._refs.get(key, (None,))[0] is ref:
                del self._refs[key]
            self.forget(event)

        self._refs[key] = weakref.ref(storage, gone), event

    def _count(self, func: Any, args: Any, kwargs: Any) -> None:
        flat, spec = tree_flatten((args, kwargs))
        told = tuple(self._told(a) if isinstance(a, Tensor) else _plain(a) for a in flat)
        if any(isinstance(a, Lies) for a in told):
            self.operations.setdefault(self.counting, Counter())[func, told, spec] += 1

    def _told(self, tensor: Tensor) -> Lies:
        is_laid_out = any(tensor is weight for weight in self.laid_out)
        return Lies(tuple(tensor.shape), tensor.stride(), tensor.dtype, is_laid_out)


def _plain(value: Any) -> Any:
    """An argument that can be looked up."""
    return None if isinstance(value, torch.Generator) else value


def scratch_of(func: Any, args: Any, out: Any) -> list[int]:
    """What a convolution on a CPU takes while it computes, bytes: oneDNN lays input, weight and output out anew."""
    packet = func.overloadpacket
    if packet is torch.ops.aten.convolution:
        return [_num_bytes(t) for t in (*args[:2], out)]
    if packet is torch.ops.aten.convolution_backward:
        gradient, images, weight, mask = *args[:3], args[-1]
        passes = [(gradient, weight, images)] if mask[0] else []
        passes += [(gradient, images, weight)] if mask[1] else []
        # one after the other
        return max(([_num_bytes(t) for t in tensors] for tensors in passes), key=sum, default=[])
    return []


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
