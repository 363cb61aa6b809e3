"""How much arithmetic a micro-batch needs: floating-point operations, counted as they are carried out, by formula.

What is counted is what the method needs, whatever kernels do it: a multiplication and an addition are two operations; frozen
weights cost no gradient of their own; what checkpointing computes again is left out, and what attention kernels compute again
in their backward pass too ("model FLOPs" of arXiv:2204.02311, appendix B).
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from limner.models.again import is_computed_again

Formula = Callable[..., int]


def _attention(query: Any, key: Any, value: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    """softmax(q k') v of q (B, H, S, D), k (B, H, T, D), v (B, H, T, E)."""
    del out_val
    batch, heads, rows, size = query.shape
    return 2 * batch * heads * rows * key.shape[-2] * (size + value.shape[-1])


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    """Each of the two products has two gradients."""
    del grad, out_val
    return 2 * _attention(query, key, value)


def _linear(x: Any, weight: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    del weight
    return 2 * out_val.numel() * x.shape[-1]


def _linear_backward(x: Any, grad: Any, weight: Any, mask: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    del weight, out_val
    return 2 * grad.numel() * x.shape[-1] * (bool(mask[0]) + bool(mask[1]))


def _convolution(x: Any, weight: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    return 2 * out_val.numel() * x.shape[1] * math.prod(weight.shape[2:])


def _transposed_convolution(x: Any, weight: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    return 2 * x.numel() * out_val.shape[1] * math.prod(weight.shape[2:])


def _product_added(there: Any, left: Any, right: Any, *_: Any, **__: Any) -> int:
    del there
    return 2 * left.shape[0] * left.shape[1] * right.shape[1]


_SDPA = ("flash", "efficient", "cudnn", "fused", "flash_for_cpu")


def _name(kind: str, ending: str) -> str:
    """aten's names of the kernels behind scaled_dot_product_attention."""
    middle, tail = {"fused": ("fused", "_overrideable"), "flash_for_cpu": ("flash", "_for_cpu")}.get(kind, (kind, ""))
    return f"aten._scaled_dot_product_{middle}_attention{tail}{ending}"


_ADDED: dict[str, Formula] = {
    "aten.addmm_": _product_added,
    **{_name(kind, ""): _attention for kind in _SDPA},
    **{_name(kind, "_backward"): _attention_backward for kind in _SDPA},
    "aten.linear": _linear,  # one operation on MPS
    "aten.linear_backward": _linear_backward,
    # with weights laid out beforehand, on a CPU
    "mkldnn._linear_pointwise": _linear,
    "mkldnn._convolution_pointwise": _convolution,
    "mkldnn._convolution_transpose_pointwise": _transposed_convolution,
}
"""What torch's own table lacks, or counts otherwise. By name: an operator is not known to every build of torch."""


class Counter(TorchDispatchMode):
    """Adds up what is computed while it is entered, in the backward pass too. Changes nothing of it."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        """Floating-point operations."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        formula = _ADDED.get(str(packet)) or flop_registry.get(packet)
        if formula is not None and not is_computed_again():
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


@contextlib.contextmanager
def counting() -> Iterator[Counter]:
    """Count what is computed inside; what was compiled is computed as it was written meanwhile, or nobody could see it."""
    with contextlib.ExitStack() as stack:
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield stack.enter_context(Counter())
