"""Where the trainer runs: device, precision, this process among the others. The only importer of accelerate."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limner.models.weights import PRECISIONS


@dataclass(frozen=True)
class Runtime:
    """This process."""

    device: torch.device
    precision: str
    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of frozen weights."""
        return PRECISIONS[self.precision]

    def autocast(self) -> contextlib.AbstractContextManager:
        """Arithmetic in the chosen precision around weights kept in float32."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def barrier(self) -> None:
        if self.world > 1:
            torch.distributed.barrier()

    def sum_gradients(self, params: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of all processes, in one message. What has none in any of them has none then either: optimisers
        leave it alone."""
        if self.world == 1:
            return
        params = list(params)
        has = torch.tensor([p.grad is not None for p in params], device=self.device)
        flat = torch.cat([has, *((torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in params)])
        torch.distributed.all_reduce(flat)
        counts, *parts = flat.split([len(params), *(p.numel() for p in params)])
        for p, part, count in zip(params, parts, counts.tolist(), strict=True):
            p.grad = part.view_as(p).to(p.dtype) if count else None

    def sum_scalar(self, value: Tensor) -> Tensor:
        if self.world > 1:
            torch.distributed.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process, so that all act alike."""
        if self.world == 1:
            return flag
        return bool(self.sum_scalar(torch.tensor(float(flag), device=self.device)))

    def agree(self, flags: list[bool]) -> list[bool]:
        """Each flag, set if it is set in any process: one message for all of them."""
        if self.world == 1:
            return flags
        return [bool(v) for v in self.sum_scalar(torch.tensor(flags, dtype=torch.float32, device=self.device)).tolist()]

    def share(self, value: Any) -> Any:
        """What the main process has, in all."""
        if self.world == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def close(self) -> None:
        if self.world > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def start(device: str, precision: str) -> Runtime:
    """Join the other processes if there are any."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Runtime(torch.device(device), precision)
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu")
    assert state.device is not None
    return Runtime(state.device, precision, state.process_index, state.num_processes)
