"""Frozen linear layers in 8 or 4 bits: half to an eighth of the memory. Products are still computed in the run's precision.

8 bits: one scale for each output, and float8 (e4m3, for values up to 448) or whole numbers from -127 to 127. 4 bits: NF4
(QLoRA, arXiv:2305.14314, section 3), by bitsandbytes. Gradients flow through the layers to what is trained before them.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kind = Literal["fp8", "int8", "nf4"]
_LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}


class EightBitLinear(nn.Linear):
    """A linear layer whose weight is stored in 8 bits, (out, in), with a scale for each output, (out, 1)."""

    scale: Tensor

    def __init__(self, inputs: int, outputs: int, bias: bool, stored: torch.dtype) -> None:
        super().__init__(inputs, outputs, bias)
        self.stored = stored

    def take(self, weight: Tensor) -> None:
        """Store a whole weight."""
        largest = _LARGEST[self.stored]
        scale = weight.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / largest
        scaled = weight.float() / scale
        scaled = scaled.round() if self.stored == torch.int8 else scaled.clamp(-largest, largest)
        self.weight = nn.Parameter(scaled.to(self.stored), requires_grad=False)
        self.register_buffer("scale", scale.to(weight.dtype), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        kind = input.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return _Product.apply(input.to(dtype), self.weight, self.scale, bias)  # type: ignore[return-value]


class _Product(torch.autograd.Function):
    """x W' + b. The whole weight is made anew in the backward pass rather than kept for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return F.linear(x, weight.to(x.dtype) * scale.to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        weight, scale = ctx.saved_tensors
        return grads[0] @ (weight.to(grads[0].dtype) * scale.to(grads[0].dtype)), None, None, None


def replace_linears(model: nn.Module, kind: Kind, blocks: Sequence[str]) -> None:
    """Put layers that store less in the place of the linear ones inside blocks of these classes. On the meta device."""
    make = _four_bit() if kind == "nf4" else _eight_bit(kind)
    for block in [m for m in model.modules() if type(m).__name__ in blocks]:
        for parent in block.modules():
            for name, layer in parent.named_children():
                if type(layer) is nn.Linear:
                    setattr(parent, name, make(layer.in_features, layer.out_features, layer.bias is not None))


def _eight_bit(kind: Kind) -> Any:
    stored = torch.float8_e4m3fn if kind == "fp8" else torch.int8
    return lambda inputs, outputs, bias: EightBitLinear(inputs, outputs, bias, stored)


def _four_bit() -> Any:
    bnb = importlib.import_module("bitsandbytes")  # an extra, and slow to import

    class FourBitLinear(bnb.nn.Linear4bit):
        """A linear layer in NF4, 64 numbers to a scale."""

        def take(self, weight: Tensor) -> None:
            """Store a whole weight."""
            self.compute_dtype, self.compute_type_is_set = weight.dtype, True
            self.weight = bnb.nn.Params4bit(weight.cpu(), requires_grad=False, quant_type="nf4").to(weight.device)

    return lambda inputs, outputs, bias: FourBitLinear(inputs, outputs, bias, quant_type="nf4")
