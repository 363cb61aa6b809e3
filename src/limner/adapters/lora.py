"""LoRA for Linear and Conv2d layers (arXiv:2106.09685), with rank-stabilised scaling, DoRA and LoRA-FA as options.

y = W0 x + scale * up(down(x)), scale = alpha / rank (or alpha / sqrt(rank), arXiv:2312.03732, section 3).
DoRA (arXiv:2402.09353, eq. 5): W = m * V / |V|, V = W0 + scale * up down, the norm of each column, that is of each input's
weights. So do A1111 and ComfyUI; where a file's magnitudes go by outputs, A1111 cannot read it and ComfyUI and Forge divide
by |W0| instead of |V|.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.adapters import fused
from limner.adapters.layers import Layer, Sizes, Tensors, kaiming
from limner.config import Lora

if TYPE_CHECKING:
    from limner.models.family import Target


class LoraLayer(Layer):
    """The low-rank update of one layer; its change is never built while it is trained."""

    names = ("lora_down.weight", "lora_up.weight")
    fast = ("lora_up.weight",)

    lora_down: Tensor
    lora_up: Tensor

    @classmethod
    def initial(cls, target: Target, sizes: Sizes, section: Any, source: torch.Generator) -> tuple[Tensors, float]:  # noqa: ARG003
        rank, scale = section.rank_and_scale(spatial=sizes.is_spatial)
        down = kaiming((rank, sizes.inputs, *sizes.kernel), source)
        return {"lora_down.weight": down, "lora_up.weight": torch.zeros(sizes.outputs, rank, *sizes.ones)}, scale

    @property
    def rank(self) -> int:
        return len(self.lora_down)

    def delta(self) -> Tensor:
        # a 1x1 convolution after a kxk one is one kxk convolution
        return self.scale * (self.masked(self.lora_up.flatten(1)) @ self.lora_down.flatten(1)).view(self.sizes.weight)

    def forward(self, x: Tensor) -> Tensor:
        if self.left_out:
            return self.plain(x)
        scale = self.scale * self.strength
        if self.rank_mask is None and not self.drops and fused.fits(self.base[0]):
            return fused.adapted(self.base[0], x, self.lora_down, self.lora_up, scale)
        return self.plain(x) + self.update(x, self.lora_down, self.lora_up) * scale

    def update(self, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        hidden = self.through(x, down)
        is_linear = up.ndim == 2
        if self.rank_mask is not None:
            hidden = hidden * self.rank_mask.view(-1 if is_linear else (-1, 1, 1)).to(hidden.dtype)
        if self.drops:
            hidden = hidden * self.kept(hidden)
        return F.linear(hidden, up) if is_linear else F.conv2d(hidden, up)

    @property
    def drops(self) -> bool:
        """Whether single values are left out just now."""
        return self.dropout > 0 and self.moment is not None

    def kept(self, hidden: Tensor) -> Tensor:
        """Which of these values are kept, scaled to keep their mean. Drawn on the device, there are many; from a seed of its
        own each time, so that what is computed again in the backward pass leaves out the same."""
        source = torch.Generator(hidden.device).manual_seed(self.draw("values").initial_seed())
        drawn = torch.rand(hidden.shape, generator=source, device=hidden.device)
        return (drawn >= self.dropout).to(hidden.dtype) / (1 - self.dropout)

    def norm(self) -> Tensor:
        # |up down|^2 is the sum over (up' up) * (down down'), which are rank x rank
        up, down = self.lora_up.flatten(1), self.lora_down.flatten(1)
        return self.scale * ((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt()


class DoraLayer(LoraLayer):
    """LoRA whose direction and magnitude are learnt apart."""

    names = (*LoraLayer.names, "dora_scale")

    dora_scale: Tensor

    def __init__(self, base: nn.Linear | nn.Conv2d, tensors: Mapping[str, Tensor], scale: float | None, device: Any) -> None:
        super().__init__(base, tensors, scale, device)
        if "dora_scale" not in tensors:
            # of the weight as it counts, where it is: that of a swapped block is on the CPU
            self.dora_scale = nn.Parameter(self._norm(self.weight().detach()).to(device))

    @staticmethod
    def _norm(weight: Tensor) -> Tensor:
        """The norm of each input's weights, shape (1, inputs, ...); ComfyUI adds the same epsilon."""
        norm = weight.transpose(0, 1).flatten(1).norm(dim=1).view(1, -1, *[1] * (weight.ndim - 2))
        return norm + torch.finfo(torch.float32).eps

    def delta(self) -> Tensor:
        base = self.weight()
        change = super().delta()
        direction = base.to(change.device) + change
        # the norm is held constant in the backward pass (section 4.3): as good, and far less memory
        return direction * (self.dora_scale / self._norm(direction).detach()) - base

    def forward(self, x: Tensor) -> Tensor:
        return Layer.forward(self, x)


def layer_class(section: Lora) -> type[LoraLayer]:
    return DoraLayer if section.dora else LoraLayer
