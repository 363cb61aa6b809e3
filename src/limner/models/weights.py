"""Weights straight from memory-mapped files into models that were built without any, and back into a file's layout.

A model is built on the meta device, which takes no memory and no time, and each of its tensors is then read once, into its
dtype and onto its device: beside the part itself, never more than one tensor is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from limner.formats.openclip import is_transposed
from limner.formats.original import original_shape


class Weights(Mapping[str, Tensor]):
    """The tensors of safetensors files by name, read when they are asked for; later files win. Raises what safetensors does."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._where: dict[str, Any] = {}
        for file in files:
            opened = safe_open(file, framework="pt")
            self._where |= dict.fromkeys(opened.keys(), opened)

    def __getitem__(self, name: str) -> Tensor:
        return self._where[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


Names = Callable[[Iterable[str]], Mapping[str, str]]
"""All names of a model's tensors -> for each its name in the file. Those that share one there are its rows, in this order."""


def build(
    make: Callable[[], nn.Module], weights: Mapping[str, Tensor], names: Names, dtype: torch.dtype, device: torch.device
) -> Any:
    """A model with its weights, frozen and in eval mode. Raises ValueError that names what is missing or misshapen."""
    with torch.device("meta"):
        model = make()
    own, together = model.state_dict(), dict[str, list[str]]()
    for name, there in names(own).items():
        together.setdefault(there, []).append(name)
    if lacking := sorted(together.keys() - weights.keys()):
        raise ValueError(f"{len(lacking)} tensors are missing, the first is {lacking[0]}")
    state = {}
    for there, members in together.items():
        whole = weights[there].T if is_transposed(there) else weights[there]
        needed = sum(own[m].numel() for m in members)
        if whole.numel() != needed:
            raise ValueError(f"{there} has shape {tuple(whole.shape)}, {needed} numbers are needed")
        parts = whole.split([len(own[m]) for m in members]) if len(members) > 1 else [whole]
        for member, part in zip(members, parts, strict=True):
            # a copy always: a mapped file may be replaced under our feet
            kept = dtype if part.is_floating_point() else part.dtype
            state[member] = part.reshape(own[member].shape).contiguous().to(device, kept, copy=True)
    model.load_state_dict(state, strict=False, assign=True)
    if own.keys() - state.keys():
        model.tie_weights()  # type: ignore[operator]
    for name, buffer in model.named_buffers():
        if buffer.is_meta:  # in no file: transformers makes it when a model is built
            assert name.endswith("position_ids"), name
            owner = model.get_submodule(name.rpartition(".")[0])
            owner.register_buffer("position_ids", torch.arange(buffer.shape[-1], device=device)[None], persistent=False)
    return model.eval().requires_grad_(False)


def laid_out(state: Mapping[str, Tensor], names: Names, dtype: torch.dtype) -> dict[str, Tensor]:
    """The inverse of `build`: a model's tensors as they stand in a file, on the CPU in `dtype`, copies where need be."""
    together = dict[str, list[Tensor]]()
    for name, there in names(state).items():
        together.setdefault(there, []).append(state[name].detach().to("cpu", dtype))
    out = {}
    for there, parts in together.items():
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        whole = whole.T if is_transposed(there) else whole
        out[there] = whole.reshape(original_shape(there, tuple(whole.shape))).contiguous()
    return out
