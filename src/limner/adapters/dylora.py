"""DyLoRA: a LoRA of which any smaller rank is good by itself (arXiv:2210.07558, algorithm 1). It is filed as a LoRA.

At each step a rank b is drawn, a multiple of the unit; the layer is what its first b ranks make of it, scaled by alpha / b, and
the last unit of these alone learns (the paper's "frozen" way). Cut to any such rank, with the same alpha, the file is what was
trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limner.adapters.lora import LoraLayer


class DyloraLayer(LoraLayer):
    """Each unit is a parameter of its own, so that optimisers leave those alone that were not drawn."""

    drawn: int | None = None
    """Which unit learns in this step."""

    def settle(self, section: Any, seed: int) -> None:
        super().settle(section, seed)
        self._part(self.tensors(), section.unit)

    def hold(self, tensors: Mapping[str, Tensor]) -> None:
        self._part(tensors, len(tensors["lora_down.weight"]))

    def _part(self, tensors: Mapping[str, Tensor], unit: int) -> None:
        self.unit = unit
        self.downs = nn.ParameterList(t.detach().clone() for t in tensors["lora_down.weight"].split(unit))
        self.ups = nn.ParameterList(t.detach().clone() for t in tensors["lora_up.weight"].split(unit, dim=1))

    @property
    def lora_down(self) -> Tensor:  # type: ignore[override]
        return torch.cat(list(self.downs))

    @property
    def lora_up(self) -> Tensor:  # type: ignore[override]
        return torch.cat(list(self.ups), dim=1)

    def write(self, name: str, tensor: Tensor) -> None:
        parts, dim = (self.downs, 0) if name == "lora_down.weight" else (self.ups, 1)
        for own, new in zip(parts, tensor.split(self.unit, dim), strict=True):
            own.copy_(new)

    def begin(self, *moment: int) -> None:
        super().begin(*moment)
        # one unit a step, whatever the number of its micro-batches
        self.drawn = int(torch.randint(len(self.downs), (), generator=self.draw("unit", moment[0])))

    def end(self) -> None:
        super().end()
        self.drawn = None

    def forward(self, x: Tensor) -> Tensor:
        if self.drawn is None or self.left_out:
            return super().forward(x)
        frozen, count = range(self.drawn), self.drawn + 1
        down = torch.cat([*(self.downs[i].detach() for i in frozen), self.downs[self.drawn]])
        up = torch.cat([*(self.ups[i].detach() for i in frozen), self.ups[self.drawn]], dim=1)
        scale = self.scale * len(self.downs) / count
        return self.plain(x) + self.update(x, down, up) * (scale * self.strength)
