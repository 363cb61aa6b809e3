"""Orthogonal fine-tuning: outputs are turned in blocks (OFT, arXiv:2306.07280, eq. 4), or several times in blocks that overlap
(BOFT, arXiv:2311.06243, eq. 5), as LyCORIS files it ("diag-oft", "boft").

Each block has a skew-symmetric Q = B - B' and turns by Cayley's R = (I + Q)(I - Q)^-1. What is computed is R - I, that is
2 Q (I - Q)^-1, which is zero to the bit where Q is. Files hold B: three dimensions turn once, by R'; four turn once for each of
the first, by R.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from limner.adapters.layers import Layer, Sizes, Tensors, divisor

if TYPE_CHECKING:
    from limner.models.family import Target


class OftLayer(Layer):
    names = ("oft_blocks",)
    depends = ("butterfly",)

    oft_blocks: Tensor

    @classmethod
    def initial(cls, target: Target, sizes: Sizes, section: Any, source: torch.Generator) -> tuple[Tensors, float]:  # noqa: ARG003
        block = _butterfly(sizes.outputs, section.block) if section.butterfly and not sizes.halves else None
        if block is not None:
            count = sizes.outputs // block
            return {"oft_blocks": torch.zeros(count.bit_length(), count, block, block)}, 0.0
        block = divisor(sizes.outputs // (1 + sizes.halves), section.block)
        return {"oft_blocks": torch.zeros(sizes.outputs // block, block, block)}, 0.0

    def __init__(self, base: nn.Linear | nn.Conv2d, tensors: Mapping[str, Tensor], scale: float | None, device: Any) -> None:
        super().__init__(base, tensors, scale, device)
        if (limit := float(tensors.get("alpha", 0))) > 0:
            self._keep_to(limit)

    def scale_of(self, tensors: Any) -> float:  # noqa: ARG002
        # "alpha" is the limit of a constraint, which readers take in different ways: our files say 0, and keep to it
        return 0.0

    def uses(self, option: str) -> bool:  # noqa: ARG002
        return self.oft_blocks.ndim == 4

    def _skew(self) -> Tensor:
        return self.oft_blocks - self.oft_blocks.transpose(-1, -2)

    def _turn(self) -> Tensor:
        """R - I of each block."""
        skew = self._skew()
        eye = torch.eye(skew.shape[-1], device=skew.device, dtype=skew.dtype)
        return torch.linalg.solve(eye - skew, 2 * skew, left=False)

    def delta(self) -> Tensor:
        base, turn = self.weight().to(self.oft_blocks.device), self._turn()
        if turn.ndim == 3:
            rows = base.unflatten(0, turn.shape[:2])
            return torch.einsum("k n m, k n ... -> k m ...", turn, rows).flatten(0, 1)
        block, turned, change = turn.shape[-1], base, torch.zeros_like(base)
        for i, stage in enumerate(turn):
            # rows that are so far apart meet in one block
            apart = 2**i * block // 2
            rows = turned.unflatten(0, (-1, 2, apart)).transpose(1, 2).flatten(0, 2).unflatten(0, (-1, block))
            step = torch.einsum("b i j, b j ... -> b i ...", stage, rows).flatten(0, 1)
            step = step.unflatten(0, (-1, apart, 2)).transpose(1, 2).flatten(0, 2)
            turned, change = turned + step, change + step
        return change

    def restrain(self, section: Any) -> None:
        self._keep_to(section.constraint)

    @torch.no_grad()
    def _keep_to(self, constraint: float) -> None:
        # |Q| <= constraint * outputs, as LyCORIS and kohya train it; Q is linear in the blocks
        limit = constraint * self.sizes.outputs
        self.oft_blocks.mul_(limit / self._skew().norm().clamp(min=limit))


def _butterfly(outputs: int, most: int) -> int | None:
    """The largest even size of blocks up to `most` of which there are a power of two; None if there is none."""
    for block in range(most - most % 2, 0, -2):
        count = outputs // block
        if outputs % block == 0 and count > 1 and count & (count - 1) == 0:
            return block
    return None
