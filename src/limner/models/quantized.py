"""Frozen linear layers in 8 or 4 bits: half or a quarter of bf16's memory. Products are computed in the run's precision.

fp8 (e4m3, values up to 448) and int8 (-127 to 127) have one scale for each output. nf4 has 16 levels, the quantiles of a
normal distribution, and a scale for every 64 weights (QLoRA, arXiv:2305.14314, section 3 and appendix E). Gradients flow
through the layers to what is trained before them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kind = Literal["fp8", "int8", "nf4"]
_LARGEST = {"fp8": 448.0, "int8": 127.0}
_DTYPES = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
_GROUP = 64
_LEVELS = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip


class QuantizedLinear(nn.Linear):
    """A linear layer whose weight is stored in few bits. `take` gives it one; until then it is on the meta device."""

    scale: Tensor

    def __init__(self, inputs: int, outputs: int, bias: bool, kind: Kind) -> None:
        super().__init__(inputs, outputs, bias)
        self.kind: Kind = kind

    def take(self, weight: Tensor) -> None:
        """Store a whole weight, (out, in)."""
        stored, scale = _pack(weight) if self.kind == "nf4" else _narrow(weight, self.kind)
        self.weight = nn.Parameter(stored, requires_grad=False)
        self.register_buffer("scale", scale, persistent=False)  # in float32: as float16 it could vanish

    def whole(self, dtype: torch.dtype) -> Tensor:
        """The weight as it counts, (out, in)."""
        return self.held()(dtype)

    def held(self) -> Callable[[torch.dtype], Tensor]:
        """As `whole`, of the numbers that lie here now."""
        return partial(_whole, self.weight, self.scale, (self.out_features, self.in_features))

    def forward(self, input: Tensor) -> Tensor:
        kind = input.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        shape = self.out_features, self.in_features
        return _Product.apply(input.to(dtype), self.weight, self.scale, bias, shape)  # type: ignore[return-value]


class _Product(torch.autograd.Function):
    """x W' + b. The whole weight is made anew in the backward pass rather than kept for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stored: Tensor, scale: Tensor, bias: Tensor | None, shape: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(stored, scale)
        ctx.shape = shape
        return F.linear(x, _whole(stored, scale, shape, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        stored, scale = ctx.saved_tensors
        return grads[0] @ _whole(stored, scale, ctx.shape, grads[0].dtype), None, None, None, None


def _narrow(weight: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """8 bits: (out, in) and scales (out, 1)."""
    largest = _LARGEST[kind]
    scale = weight.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / largest
    scaled = (weight.float() / scale).clamp(-largest, largest)
    return (scaled.round() if kind == "int8" else scaled).to(_DTYPES[kind]), scale


def _pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """NF4: two weights to a byte, (out in / 2), filled up to whole groups, and scales (groups, 1)."""
    flat = weight.float().flatten()
    groups = F.pad(flat, (0, -len(flat) % _GROUP)).view(-1, _GROUP)
    scale = groups.abs().amax(dim=1, keepdim=True).clamp(min=1e-30)
    between = ((_LEVELS[1:] + _LEVELS[:-1]) / 2).to(weight.device)
    codes = torch.bucketize((groups / scale).flatten(), between).to(torch.uint8)
    return codes[0::2] << 4 | codes[1::2], scale


def _whole(stored: Tensor, scale: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    if stored.dtype != torch.uint8:
        return (stored.float() * scale).to(dtype)
    levels = _levels(stored.device)
    weights = torch.stack([levels[(stored >> 4).int()], levels[(stored & 15).int()]], dim=1).view(-1, _GROUP)
    return (weights * scale).to(dtype).flatten()[: shape[0] * shape[1]].view(shape)


@cache
def _levels(device: torch.device) -> Tensor:
    return _LEVELS.to(device)


def replace_linears(model: nn.Module, kind: Kind, blocks: Sequence[str]) -> None:
    """Put layers that store less in the place of the linear ones inside blocks of these classes. On the meta device."""
    with torch.device("meta"):
        for block in [m for m in model.modules() if type(m).__name__ in blocks]:
            for parent in list(block.modules()):
                for name, layer in parent.named_children():
                    if type(layer) is nn.Linear:
                        setattr(
                            parent, name, QuantizedLinear(layer.in_features, layer.out_features, layer.bias is not None, kind)
                        )
