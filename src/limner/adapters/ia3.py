"""(IA)^3: one factor for each output of keys and values, and for each input of the second layer of a feed-forward network
(arXiv:2205.05638, section 3.3), as LyCORIS files it: `weight` is the factor less one, `on_input` says which. The bias has no
part in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from limner.adapters.layers import Layer, Sizes, Tensors

if TYPE_CHECKING:
    from limner.models.family import Target

_OUTPUTS = re.compile(r".*\.(to_[kv]|add_[kv]_proj|[kv]_proj)")
_INPUTS = re.compile(r".*\.(ff(_context)?\.net\.2|mlp\.fc2|single_transformer_blocks\.\d+\.proj_out)")


class Ia3Layer(Layer):
    names = ("weight",)
    has_alpha = False

    factors: Tensor

    def __init__(self, base: nn.Linear | nn.Conv2d, tensors: Mapping[str, Tensor], scale: float | None, device: Any) -> None:
        super().__init__(base, {}, 1.0 if scale is None else scale, device)
        self.on_input = bool(tensors["on_input"])
        self.factors = nn.Parameter(tensors["weight"].flatten().to(device))

    @classmethod
    def adapts(cls, target: Target) -> bool:
        return bool(_OUTPUTS.fullmatch(target.in_diffusers) or _INPUTS.fullmatch(target.in_diffusers))

    @classmethod
    def initial(cls, target: Target, sizes: Sizes, section: Any, source: torch.Generator) -> tuple[Tensors, float]:  # noqa: ARG003
        on_input = bool(_INPUTS.fullmatch(target.in_diffusers))
        return {"weight": torch.zeros(sizes.inputs if on_input else sizes.outputs), "on_input": torch.tensor(on_input)}, 1.0

    def tensors(self) -> Tensors:
        return {"weight": self.factors, "on_input": torch.tensor(int(self.on_input))}

    def write(self, name: str, tensor: Tensor) -> None:  # noqa: ARG002
        self.factors.copy_(tensor)

    def delta(self) -> Tensor:
        ones = self.sizes.ones
        factors = self.factors.view(1, -1, *ones) if self.on_input else self.factors.view(-1, 1, *ones)
        return self.weight().to(factors.device) * factors

    def forward(self, x: Tensor) -> Tensor:
        if self.left_out:
            return self.plain(x)
        factors = (self.factors * self.strength).to(x.dtype).view(-1, *self.sizes.ones)
        if self.on_input:
            return self.plain(x + x * factors)
        y, bias = self.plain(x), self.base[0].bias
        return y + (y if bias is None else y - bias.view(-1, *self.sizes.ones)) * factors.to(y.dtype)
