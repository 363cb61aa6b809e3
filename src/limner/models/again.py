"""Layers that are computed again in the backward pass, so that their activations need not be kept (arXiv:1604.06174)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

_depth = 0


def is_computed_again() -> bool:
    """Whether what is computed now was computed before. (A layer's own autograd.Function cannot be told otherwise from one that
    computes gradients.)"""
    return _depth > 0


def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What torch's checkpoint enters for the first time, and for the second."""
    return nullcontext(), _again()


@contextmanager
def _again() -> Iterator[None]:
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


def sparsely(every: int) -> Callable[..., Any]:
    """What diffusers' models call for each layer that can be computed again: does so for every so many-th."""
    numbers = dict[nn.Module, int]()

    def call(layer: nn.Module, *args: Any) -> Any:
        if numbers.setdefault(layer, len(numbers)) % every:
            return layer(*args)
        # layers draw nothing but what adapters draw from seeds of their own; to keep the state costs time, and no graph can
        return checkpoint(layer, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)

    return call
