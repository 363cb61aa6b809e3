"""An optimiser's state as tensors and plain JSON, and back to the bit. No pickle.

`Optimizer.load_state_dict` is passed by: it casts states to their weights' precision, and each package overrides it in its
own way. What is saved here is what lay there: every entry of every weight's state, and what the groups hold beside it
(a distance found, sums of weights, counts), each number as it is, each tensor with its dtype and place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from limner.engine.shards import is_sharded, share_like, whole

_CONFIGURED = ("params", "name", "lr", "base_lr", "finds_rate")


def on_cpu(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def pack(optimizer: Any, copied: Callable[[Tensor], Tensor] = on_cpu) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(copies of its tensors, the rest as JSON). Of weights that are shared out among processes all must ask.

    Raises TypeError for a state that is neither numbers, texts nor tensors.
    """
    tensors: dict[str, Tensor] = {}
    told: dict[str, Any] = {"weights": {}, "groups": []}
    for i, (part, p) in enumerate(_weights(optimizer)):
        if p in part.state:  # asking would make an entry
            told["weights"][str(i)] = _packed(dict(part.state[p]), str(i), tensors, copied)
    for i, group in enumerate(optimizer.param_groups):
        rest = {k: v for k, v in group.items() if k not in _CONFIGURED}
        told["groups"].append(_packed(rest, f"group {i}", tensors, copied))
    return tensors, told


def unpack(optimizer: Any, tensors: Mapping[str, Tensor], told: dict[str, Any]) -> None:
    """Take over what `pack` gave; learning rates stay as configured. Raises KeyError or ValueError if it does not fit."""
    weights, groups = list(_weights(optimizer)), optimizer.param_groups
    if len(told["groups"]) != len(groups) or any(int(i) >= len(weights) for i in told["weights"]):
        raise ValueError("the optimiser's state is that of other weights")
    for i, (part, p) in enumerate(weights):
        part.state.pop(p, None)
        if str(i) in told["weights"]:
            part.state[p] = _unpacked(told["weights"][str(i)], tensors, p, part)
    for group, saved in zip(groups, told["groups"], strict=True):
        group.update(_unpacked(saved, tensors, group["params"][0], optimizer))


def tensors_of(optimizer: Any) -> Iterator[Tensor]:
    """The tensors of its state, as they are."""
    for part, p in _weights(optimizer):
        if p in part.state:
            yield from _tensors_in(dict(part.state[p]))
    for group in optimizer.param_groups:
        yield from _tensors_in({k: v for k, v in group.items() if k not in _CONFIGURED})


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(each)


def _weights(optimizer: Any):
    """(the optimiser that moves it, weight), in the groups' order."""
    for part in getattr(optimizer, "parts", [optimizer]):
        for group in part.param_groups:
            for p in group["params"]:
                yield part, p


def _packed(value: Any, key: str, tensors: dict[str, Tensor], copied: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[key] = copied(whole(value))
        # counts lie on the CPU beside weights on a device; bitsandbytes' paged tensors lie in both
        place = "paged" if getattr(value, "is_paged", False) else value.device.type
        # a product of matrices may differ in its last bit with how they lie in memory
        return {"tensor": key, "place": place, "strides": None if value.is_contiguous() else value.stride()}
    if isinstance(value, dict):
        return {"dict": [[k, _packed(v, f"{key}.{k}", tensors, copied)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        name = "list" if isinstance(value, list) else "tuple"
        return {name: [_packed(v, f"{key}.{i}", tensors, copied) for i, v in enumerate(value)]}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"a state of type {type(value).__name__} ({key}) cannot be saved")


def _unpacked(value: Any, tensors: Mapping[str, Tensor], p: Tensor, optimizer: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        saved = tensors[value["tensor"]]
        if value["place"] == "paged":
            return optimizer.get_state_buffer(p, dtype=saved.dtype).copy_(saved)
        if is_sharded(p) and saved.shape == p.shape:
            return share_like(saved, p)
        device = torch.device("cpu") if value["place"] == "cpu" else p.device
        strides = value["strides"] or saved.stride()
        return torch.empty_strided(saved.shape, strides, dtype=saved.dtype, device=device).copy_(saved)
    if "dict" in value:
        return {k: _unpacked(v, tensors, p, optimizer) for k, v in value["dict"]}
    (name, items), *_ = value.items()
    return (tuple if name == "tuple" else list)(_unpacked(v, tensors, p, optimizer) for v in items)
