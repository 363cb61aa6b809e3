"""How long a step takes on this machine: each operation that a ledger tells of is carried out, once for each shape, and timed.

What no time is left for, or would take too much memory, is told from the measured operations of its kind by the bytes it
touches and, for products and convolutions, by the multiplications it does.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from math import prod

import torch
from torch.utils._pytree import tree_unflatten

from limner.engine.ledger import Lies, Operation
from limner.models import prepacked

_MOST_BYTES = 1 << 30
_FREE = {"view", "_unsafe_view", "detach", "t", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze",
         "split", "split_with_sizes", "as_strided", "alias", "reshape", "chunk", "unbind"}  # fmt: skip
"""Operations that touch no numbers: they cost the processor a call."""


def seconds_of(operations: Mapping[Operation, int], device: torch.device, budget_seconds: float) -> float:
    """Of all operations together, each as often as it is counted; the costliest are measured first."""
    order = sorted(operations, key=lambda op: -_weight(op) * operations[op])
    began, total = time.monotonic(), 0.0
    rates: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    left = Counter[Operation]()
    for op in order:
        is_late = bool(rates) and time.monotonic() - began > budget_seconds
        if is_late or _num_bytes(op) > _MOST_BYTES or (taken := measure(op, device)) is None:
            left[op] = operations[op]
            continue
        total += taken * operations[op]
        rate = rates[_name(op)]
        rate[0] += taken
        rate[1] += _weight(op)
    every = [sum(column) for column in zip(*rates.values(), strict=True)] or [0.0, 1.0]
    for op, count in left.items():
        seconds, weight = rates.get(_name(op), every)
        total += count * _weight(op) * seconds / max(weight, 1.0)
    return total


def measure(op: Operation, device: torch.device) -> float | None:
    """Seconds that an operation takes, the better of two after one to warm up; None if it cannot be carried out alone."""
    func, told, spec = op
    try:
        args, kwargs = tree_unflatten([_made(a, device) if isinstance(a, Lies) else a for a in told], spec)
        is_laid_out = any(isinstance(a, Lies) and a.is_laid_out for a in told)
        call = (prepacked.packed_form(func, args) if is_laid_out else None) or (lambda: func(*args, **kwargs))
        with torch.no_grad():
            best, began = float("inf"), time.perf_counter()
            for turn in range(3):
                began = time.perf_counter()
                call()
                _wait(device)
                if turn or time.perf_counter() - began > 0.2:  # what takes long has no need to be warm
                    best = min(best, time.perf_counter() - began)
                    if best > 0.2:
                        break
        return best
    except (RuntimeError, NotImplementedError, TypeError, IndexError, ValueError):
        return None  # its arguments mean something to each other that shapes do not tell


def _made(lies: Lies, device: torch.device) -> torch.Tensor:
    made = torch.empty_strided(lies.shape, lies.strides, dtype=lies.dtype, device=device)
    # zeros and ones are as fast as other numbers, but numbers that are hardly any (denormal) are not
    return made.fill_(1) if lies.dtype != torch.float8_e4m3fn else made


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _name(op: Operation) -> str:
    return op[0].overloadpacket.__name__


def _num_bytes(op: Operation) -> int:
    return sum(a.num_bytes for a in op[1] if isinstance(a, Lies))


def _weight(op: Operation) -> float:
    """What the cost goes by: bytes, or where numbers are multiplied with each other a measure of how many are."""
    name, tensors = _name(op), [a for a in op[1] if isinstance(a, Lies)]
    if name in _FREE:
        return 1.0
    if name.startswith("convolution"):
        weight = tensors[2 if name == "convolution_backward" else 1].shape
        spread = prod(tensors[0].shape) / max(1, tensors[0].shape[1])
        return spread * prod(weight) * (2 if name == "convolution_backward" else 1)
    if name in ("mm", "addmm", "bmm", "baddbmm"):
        left, right = tensors[-2:]
        return float(prod(left.shape)) * right.shape[-1]
    if "attention" in name:
        query, key = tensors[0].shape, tensors[1].shape
        return 2.0 * prod(query) * key[-2]
    return float(_num_bytes(op))
