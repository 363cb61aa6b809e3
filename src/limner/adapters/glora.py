"""GLoRA: W = W0 + scale * (W0 A + B), A = a1 a2 and B = b1 b2 of low rank (arXiv:2306.07967, section 3.2, without its vectors),
as LyCORIS files it and ComfyUI reads it: a1 (in, r), a2 (r, in), b1 (out, r), b2 (r, in).

A changes the layer's input, so y = W0 (x + scale * a1 a2 x) + scale * b1 b2 x: nothing is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limner.adapters.layers import Layer, Sizes, Tensors, kaiming

if TYPE_CHECKING:
    from limner.models.family import Target


class GloraLayer(Layer):
    names = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")

    a1: Tensor
    a2: Tensor
    b1: Tensor
    b2: Tensor

    @classmethod
    def initial(cls, target: Target, sizes: Sizes, section: Any, source: torch.Generator) -> tuple[Tensors, float]:  # noqa: ARG003
        rank, scale = section.rank_and_scale(spatial=sizes.is_spatial)
        return {
            "a1.weight": kaiming((sizes.inputs, rank, *sizes.ones), source),
            "a2.weight": torch.zeros(rank, sizes.inputs, *sizes.ones),
            "b1.weight": kaiming((sizes.outputs, rank, *sizes.ones), source),
            "b2.weight": torch.zeros(rank, sizes.inputs, *sizes.kernel),
        }, scale

    @property
    def rank(self) -> int:
        return len(self.a2)

    def delta(self) -> Tensor:
        inner = self.a1.flatten(1) @ self.a2.flatten(1)
        own = torch.einsum("o i ..., i j -> o j ...", self.weight().to(inner.device), inner)
        return self.scale * (own + (self.b1.flatten(1) @ self.b2.flatten(1)).view(own.shape))

    def forward(self, x: Tensor) -> Tensor:
        if self.left_out:
            return self.plain(x)
        scale, pointwise = self.scale * self.strength, F.linear if self.a1.ndim == 2 else F.conv2d
        inner = pointwise(pointwise(x, self.a2), self.a1)
        return self.plain(x + inner * scale) + pointwise(self.through(x, self.b2), self.b1) * scale
