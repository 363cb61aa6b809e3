"""A model of which each process keeps a share (launch.shard): FSDP2, arXiv:2304.11277 and torch.distributed.fsdp.fully_shard.

A weight is cut along its first dimension, one slice for each process (a DTensor). While a block computes, all have it whole;
afterwards it is forgotten but for the own slice, and its gradients are added up over the processes slice by slice. So
weights, gradients and states of the optimiser take 1/n, and the messages of one block travel while another computes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limner.engine.runtime import Runtime
from limner.errors import wrong
from limner.models.family import Family

Tensors = Mapping[str, Tensor]


def shard(family: Family, runtime: Runtime) -> None:
    """Share out the loaded denoiser, block by block.

    Not text encoders: they are small, and their layers are called one by one, where FSDP2 fetches weights only for the whole.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(runtime.device.type, (runtime.world,))
    # forgotten after use, the outermost weights too: weights are swapped between steps (for the moving average's), and what a
    # module still had whole would be the old ones
    for module in (*family.blocks_of(family.denoiser), family.denoiser):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for module in family.denoiser.modules():
        if isinstance(module, FSDPModule):
            # losses are divided by the pictures of the whole step: gradients are added up, not averaged
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process has: a view."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[operator]


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local")


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor. All processes must ask for it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[operator]


def whole_like(own: Tensor, p: Tensor) -> Tensor:
    """The whole of what each process keeps beside its part of `p`. All must ask for it."""
    if not is_sharded(p):
        return own
    from torch.distributed.tensor import DTensor

    mesh, places = p.device_mesh, p.placements  # type: ignore[attr-defined]
    there = own.to(local(p).device)
    return DTensor.from_local(there, mesh, places, run_check=False, shape=p.shape, stride=p.stride()).full_tensor()


def share_like(tensor: Tensor, p: Tensor) -> Tensor:
    """A whole tensor shared out as `p` is; every process has it whole."""
    from torch.distributed.tensor import distribute_tensor

    mesh, places = p.device_mesh, p.placements  # type: ignore[attr-defined]
    return distribute_tensor(tensor.to(local(p).device), mesh, places, src_data_rank=None)


@torch.no_grad()
def load(own: Mapping[str, Tensor], state: Tensors) -> None:
    """Take over whole weights into shares. Raises UserError if they are others'."""
    if own.keys() != state.keys():
        raise wrong("adapter", "the saved weights are those of another model.", "Start a new run.")
    for name, p in own.items():
        tensor = state[name]
        if tensor.shape != p.shape:
            raise wrong("adapter", "the saved weights are those of another model.", "Start a new run.")
        local(p).copy_(local(share_like(tensor.to(p.dtype), p)) if is_sharded(p) else tensor)


@contextlib.contextmanager
def gathered(model: nn.Module, dtype: torch.dtype, runtime: Runtime) -> Iterator[None]:
    """Inside, the main process's `model.state_dict()` is whole, on the CPU in `dtype`. All must enter it; one weight after the
    other is fetched, so that beside the copy nothing more is in memory."""
    found: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        there = whole(tensor.detach())
        if runtime.is_main:
            found[name] = there.to("cpu", dtype if there.is_floating_point() else there.dtype, copy=True)

    def fill(module: nn.Module, state: dict[str, Any], prefix: str, told: Any) -> None:  # noqa: ARG001
        state.update({prefix + name: tensor for name, tensor in found.items()})

    hook = model.register_state_dict_post_hook(fill)
    try:
        yield
    finally:
        hook.remove()
