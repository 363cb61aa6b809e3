"""Blocks whose frozen weights stay in the computer's memory and are on the device only while they are used.

While one block computes, the next is already on its way: copied from page-locked memory on a stream of its own. The copies
are dropped after use, never written back. In the backward pass blocks are computed again (checkpointing) from the last to the
first, and so the one before is fetched. A block must be what is computed again as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class BlockSwap:
    """The blocks, in order of use, whose weights are on the CPU. Installs itself in them."""

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._places = [list(_places_of(block)) for block in blocks]
        self._home: list[list[Tensor]] = []
        for places in self._places:
            self._home.append([self._pinned(table[name]) for table, name in places])
            self._leave(len(self._home) - 1)  # at once: what was not page-locked is let go
        self._coming: dict[int, list[Tensor]] = {}
        self._done: Any = None  # a CUDA event behind the block that was left last
        self._last = -1
        for number, block in enumerate(blocks):
            block.register_forward_pre_hook(lambda *_, n=number: self._enter(n))
            # a recomputation ends by an exception as soon as it has what it needs
            block.register_forward_hook(lambda *_, n=number: self._leave(n), always_call=True)

    def _pinned(self, tensor: Tensor) -> Tensor:
        kept = tensor.detach().pin_memory() if self._stream is not None else tensor
        return nn.Parameter(kept, requires_grad=False) if isinstance(tensor, nn.Parameter) else kept

    def _fetch(self, number: int) -> list[Tensor]:
        """Begin to copy a block's weights; `_enter` waits for them."""
        if self._stream is None:
            return [tensor.detach().to(self.device, copy=True) for tensor in self._home[number]]
        with torch.cuda.stream(self._stream):
            return [tensor.detach().to(self.device, non_blocking=True) for tensor in self._home[number]]

    def _enter(self, number: int) -> None:
        here = self._coming.pop(number, None) or self._fetch(number)
        if self._stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self._stream)
            for tensor in here:
                tensor.record_stream(current)
        for (table, name), home, tensor in zip(self._places[number], self._home[number], here, strict=True):
            table[name] = nn.Parameter(tensor, requires_grad=False) if isinstance(home, nn.Parameter) else tensor
        following = number + (1 if number >= self._last else -1)
        self._last = number
        self._coming.clear()  # of a pass that was broken off
        if 0 <= following < len(self._home):
            if self._done is not None:  # else this process would order all blocks while the device is at the first
                self._done.synchronize()
            self._coming[following] = self._fetch(following)

    def _leave(self, number: int) -> None:
        for (table, name), home in zip(self._places[number], self._home[number], strict=True):
            table[name] = home
        if self._stream is not None:
            self._done = torch.cuda.current_stream(self.device).record_event()


def _places_of(block: nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    """(table, name) of each of a block's tensors: what its modules look them up in."""
    for module in block.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    yield table, name
