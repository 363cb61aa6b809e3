"""LoRA files in the names of diffusers and PEFT: one entry a layer, under the path of its module, without an alpha.

The scale alpha / rank is multiplied into `lora_B`, so that every reader that takes alpha = rank has the right one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from limner.adapters.stacks import layer_name

if TYPE_CHECKING:
    from limner.models.family import Target

_MATRICES = {"lora_A": "lora_down", "lora_B": "lora_up"}


def to_diffusers(state: Mapping[str, Tensor], names: Mapping[str, Target]) -> dict[str, Tensor]:
    """A file's tensors from the adapter's; `names` are the adapter's layers."""
    out = dict[str, Tensor]()
    for name, target in names.items():
        down, up = state[f"{name}.lora_down.weight"], state[f"{name}.lora_up.weight"]
        scale = state[f"{name}.alpha"].to(up.device) / len(down)
        out[f"{target.in_diffusers}.lora_A.weight"] = down
        out[f"{target.in_diffusers}.lora_B.weight"] = up * scale
    return out


def is_in_diffusers_names(state: Iterable[str]) -> bool:
    return any(".lora_A." in name for name in state)


def from_diffusers(state: Mapping[str, Tensor], targets: Iterable[Target]) -> dict[str, Tensor]:
    """The adapter's tensors from a file's. What belongs to no target keeps its name: whoever loads it says so."""
    own = {t.in_diffusers: layer_name(t) for t in targets}
    out = dict[str, Tensor]()
    for name, tensor in state.items():
        layer, _, rest = name.rpartition(".lora_")
        matrix = _MATRICES.get(f"lora_{rest.removesuffix('.weight')}")
        # PEFT's own files begin with the level that its wrapper adds
        layer = layer.removeprefix("base_model.model.")
        if layer in own and matrix:
            out[f"{own[layer]}.{matrix}.weight"] = tensor
            if matrix == "lora_down":
                out[f"{own[layer]}.alpha"] = torch.tensor(float(len(tensor)))
        else:
            out[name] = tensor
    return out
