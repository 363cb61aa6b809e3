"""LoKr: a Kronecker product (KronA, arXiv:2212.10650, eq. 6), one or both of its matrices of low rank, as LyCORIS files it.

dW = scale * w1 (x) w2, w1 (l, m) and w2 (k, n), l k the outputs, m n the inputs, l and m the smaller ones. w2 is a product of
low rank where the rank is below half its longer side, w1 too if asked. Of a convolution w2 has the kernel. If neither is a
product, there is no rank, and the scale is 1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from limner.adapters.layers import Layer, Sizes, Tensors, divisor, kaiming

if TYPE_CHECKING:
    from limner.models.family import Target


class LokrLayer(Layer):
    names = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
    depends = ("decompose_both", "alpha", "conv_alpha", "rank_dropout")

    @classmethod
    def initial(cls, target: Target, sizes: Sizes, section: Any, source: torch.Generator) -> tuple[Tensors, float]:  # noqa: ARG003
        rank, scale = section.rank_and_scale(spatial=sizes.is_spatial)
        rows, more_rows = _parts(sizes.outputs, section.factor, sizes.halves)
        columns, more_columns = _parts(sizes.inputs, section.factor)
        out = Tensors()
        if section.decompose_both and rank < max(rows, columns) / 2:
            out |= {"lokr_w1_a": kaiming((rows, rank), source), "lokr_w1_b": kaiming((rank, columns), source)}
        else:
            out["lokr_w1"] = kaiming((rows, columns), source)
        if rank < max(more_rows, more_columns) / 2:
            out["lokr_w2_a"] = torch.zeros(more_rows, rank)
            out["lokr_w2_b"] = kaiming((rank, more_columns * math.prod(sizes.kernel)), source)
        else:
            out["lokr_w2"] = torch.zeros(more_rows, more_columns, *sizes.kernel)
        return out, scale if len(out) > 2 else 1.0

    @property
    def rank(self) -> int | None:
        small = getattr(self, "lokr_w2_b", getattr(self, "lokr_w1_b", None))
        return None if small is None else len(small)

    def uses(self, option: str) -> bool:
        if option == "decompose_both":
            return hasattr(self, "lokr_w1_a")
        return self.rank is not None

    def delta(self) -> Tensor:
        small, large = self._product("lokr_w1"), self._product("lokr_w2").flatten(1)
        return self.scale * torch.kron(small, large).view(self.sizes.weight)

    def _product(self, name: str) -> Tensor:
        if (whole := getattr(self, name, None)) is not None:
            return whole
        left, right = getattr(self, f"{name}_a"), getattr(self, f"{name}_b")
        # ranks are left out of one of the two: both together would be left out too often
        is_masked = name == "lokr_w2" or hasattr(self, "lokr_w2")
        return (self.masked(left) if is_masked else left) @ right

    def norm(self) -> Tensor:
        # |A (x) B| = |A| |B|
        return self.scale * self._product("lokr_w1").norm() * self._product("lokr_w2").norm()


def _parts(number: int, factor: int, halves: bool = False) -> tuple[int, int]:
    """(smaller, larger), their product the number; the smaller at most `factor`, and even where halves must change places."""
    most = math.isqrt(number) if factor < 0 else min(factor, math.isqrt(number))
    small = 2 * divisor(number // 2, max(1, most // 2)) if halves else divisor(number, max(1, most))
    return small, number // small
