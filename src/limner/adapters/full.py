"""The whole change of a layer's weight and bias: LyCORIS' "full" (arXiv:2309.14859), `diff` and `diff_b` in files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from limner.adapters.layers import Layer, Sizes, Tensors

if TYPE_CHECKING:
    from limner.models.family import Target


class FullLayer(Layer):
    names = ("diff", "diff_b")
    has_alpha = False

    diff: Tensor

    @classmethod
    def initial(cls, target: Target, sizes: Sizes, section: Any, source: torch.Generator) -> tuple[Tensors, float]:  # noqa: ARG003
        bias = {"diff_b": torch.zeros(sizes.outputs)} if getattr(target.module, "bias", None) is not None else {}
        return {"diff": torch.zeros(sizes.weight), **bias}, 1.0

    def delta(self) -> Tensor:
        return self.diff

    def bias_delta(self) -> Tensor | None:
        return getattr(self, "diff_b", None)
