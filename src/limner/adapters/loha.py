"""LoHa: the Hadamard product of two low-rank matrices (FedPara, arXiv:2108.06098, section 2.2), as LyCORIS (arXiv:2309.14859)
files it.

dW = scale * (w1_a w1_b) * (w2_a w2_b), scale = alpha / rank; of a convolution, over (out, in k k).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from limner.adapters.layers import Layer, Sizes, Tensors

if TYPE_CHECKING:
    from limner.models.family import Target


class LohaLayer(Layer):
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")

    hada_w1_a: Tensor
    hada_w1_b: Tensor
    hada_w2_a: Tensor
    hada_w2_b: Tensor

    @classmethod
    def initial(cls, target: Target, sizes: Sizes, section: Any, source: torch.Generator) -> tuple[Tensors, float]:  # noqa: ARG003
        rank, scale = section.rank_and_scale(spatial=sizes.is_spatial)

        def normal(rows: int, columns: int, deviation: float) -> Tensor:
            return torch.randn(rows, columns, generator=source) * deviation

        return {
            "hada_w1_a": normal(sizes.outputs, rank, 0.1),
            "hada_w1_b": normal(rank, sizes.columns, 1),
            "hada_w2_a": torch.zeros(sizes.outputs, rank),
            "hada_w2_b": normal(rank, sizes.columns, 1),
        }, scale

    @property
    def rank(self) -> int:
        return len(self.hada_w1_b)

    def delta(self) -> Tensor:
        first = self.masked(self.hada_w1_a) @ self.hada_w1_b
        return (self.scale * first * (self.hada_w2_a @ self.hada_w2_b)).view(self.sizes.weight)
