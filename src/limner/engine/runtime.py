"""Where the trainer runs: device, precision, this process among the others. The only importer of accelerate."""

from __future__ import annotations

import contextlib
import datetime
import os
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limner import disk
from limner.errors import UserError
from limner.models.weights import PRECISIONS

_MESSAGE_NUMBERS = 16 << 20
"""Gradients are added up in messages of so many numbers: large enough to use the line, and little beside the model."""


@dataclass(frozen=True)
class Runtime:
    """This process."""

    device: torch.device
    precision: str
    rank: int = 0
    world: int = 1
    local_rank: int = 0
    """Among those of this machine."""
    local_world: int = 1
    is_sharded: bool = False
    """Whether each process has only a share of the weights (`engine.shards`): all of them must then compute the model equally
    often, each its own batch."""

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
        """Add up the gradients of all processes. What has none in any of them has none then either: optimisers leave it alone.

        Those of adapters are one message, those of a whole model a few. They are sent when all are there: to send them while
        others are computed needs a fixed order of them, which layers that are left out break; FSDP2 does so (launch.shard).
        """
        if self.world == 1 or self.is_sharded:
            return
        params = list(params)
        counts = torch.tensor([p.grad is not None for p in params], dtype=torch.int32, device=self.device)
        torch.distributed.all_reduce(counts)
        for some in _in_messages([p for p, count in zip(params, counts.tolist(), strict=True) if count]):
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in some])
            torch.distributed.all_reduce(flat)
            for p, part in zip(some, flat.split([p.numel() for p in some]), strict=True):
                p.grad = part.view_as(p)

    def sum_scalar(self, value: Tensor) -> Tensor:
        if self.world > 1:
            torch.distributed.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process, so that all act alike."""
        if self.world == 1:
            return flag
        return bool(self.sum_scalar(torch.tensor(float(flag), device=self.device)))

    def most(self, count: int) -> int:
        """The largest of what the processes have."""
        if self.world == 1:
            return count
        value = torch.tensor(count, device=self.device)
        torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
        return int(value)

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

    def shares(self, value: Any) -> list[Any]:
        """What each process has, in their order, in all of them."""
        if self.world == 1:
            return [value]
        box = [None] * self.world
        torch.distributed.all_gather_object(box, value)
        return box

    def share_tensors(self, tensors: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """The tensors that the main process has, on the CPU of all."""
        told = self.share({k: (v.dtype, v.shape) for k, v in tensors.items()} if tensors is not None else None)
        out = {}
        for name, (dtype, shape) in told.items():
            tensor = tensors[name] if tensors is not None else torch.empty(shape, dtype=dtype)
            there = tensor.to(self.device, copy=True).contiguous()
            torch.distributed.broadcast(there, src=0)
            out[name] = there.cpu()
        return out

    def sharers(self, folder: Path) -> tuple[int, int]:
        """(number, count) of this process among those that work into the same folder: all, if all see the same one, else those
        of this machine."""
        if self.world == 1:
            return 0, 1
        if self.local_world == self.world:
            return self.rank, self.world
        folder.mkdir(parents=True, exist_ok=True)
        token = folder / f".seen-{self.share(secrets.token_hex(8))}"
        if self.is_main:
            disk.write_text(token, "")
        self.barrier()
        alone = self.any(not token.exists())
        if self.is_main:
            token.unlink(missing_ok=True)
        return (self.local_rank, self.local_world) if alone else (self.rank, self.world)

    def close(self) -> None:
        if self.world > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _in_messages(params: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Neighbours together, up to the size of a message, each of one dtype."""
    some, size = list[nn.Parameter](), 0
    for p in params:
        if some and (size + p.numel() > _MESSAGE_NUMBERS or p.dtype != some[0].dtype):
            yield some
            some, size = [], 0
        some.append(p)
        size += p.numel()
    if some:
        yield some


def start(device: str, precision: str, timeout_seconds: float) -> Runtime:
    """Join the other processes if there are any. One that does not answer for so long makes the others fail."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Runtime(torch.device(device), precision)
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu", timeout=datetime.timedelta(seconds=timeout_seconds))
    assert state.device is not None
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
    return Runtime(
        state.device, precision, state.process_index, state.num_processes, state.local_process_index, local_world
    )  # fmt: skip


def lost(error: BaseException) -> str:
    """In words, if an error only says that another process is gone or does not answer; else ""."""
    words = str(error)
    if isinstance(error, UserError) or not isinstance(error, RuntimeError):
        return ""
    if any(w in words for w in ("Timed out waiting", "timed out", "Timeout(ms)", "Watchdog caught collective")):
        return "another process gave no answer for launch.timeout_seconds"
    ends = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited", "Connection refused")
    if any(w in words for w in ends) or isinstance(error, torch.distributed.DistBackendError):
        return "another process was lost"
    return ""
