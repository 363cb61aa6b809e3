"""LoRA files in kohya's names stack layers that Limner adapts apart: query, key and value of Flux and Stable Diffusion 3.

Layers that a file stacks are called `<name in the file>.<number>`. Together they are exactly one LoRA of the stacked layer,
of as many times the rank: the down matrices below each other, the up matrices on a diagonal. kohya's trainer writes this,
too, when it trains them apart; when it trains them as one, they share one down matrix, which each of ours then gets.

A layer whose outputs have their halves the other way round in the file is called `<name in the file>.swapped`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from limner.models.family import Target

_SWAPPED = re.compile(r"(.+)\.swapped\.(lora_down\.weight|lora_up\.weight|alpha)")
_STACKED = re.compile(r"(.+)\.(\d+)\.(lora_down\.weight|lora_up\.weight|alpha)")


def joined(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors from the adapter's: n layers' down (r, in) and up (out, r) become (n r, in) and (n out, n r)."""
    out, stacks = dict[str, Tensor](), dict[str, dict[int, Tensor]]()
    for name, tensor in state.items():
        match = _STACKED.fullmatch(name)
        if swapped := _SWAPPED.fullmatch(name):
            out[f"{swapped[1]}.{swapped[2]}"] = _halves_swapped(swapped[2], tensor)
        elif match:
            stacks.setdefault(f"{match[1]}.{match[3]}", {})[int(match[2])] = tensor
        else:
            out[name] = tensor
    for name, numbered in stacks.items():
        parts = [numbered[i] for i in sorted(numbered)]
        if name.endswith("lora_down.weight"):
            out[name] = torch.cat(parts)
        elif name.endswith("lora_up.weight"):
            out[name] = torch.block_diag(*parts)
        else:  # the scale is alpha / rank, and the rank has grown
            out[name] = parts[0] * len(parts)
    return out


def parted(state: Mapping[str, Tensor], targets: Iterable[Target]) -> dict[str, Tensor]:
    """The inverse, for the layers of a family."""
    stacks = dict[str, dict[int, int]]()
    out = dict(state)
    for target in targets:
        if target.piece == "swapped":
            for key in ("lora_down.weight", "lora_up.weight", "alpha"):
                if (tensor := out.pop(f"{target.in_file}.{key}", None)) is not None:
                    out[f"{target.in_file}.swapped.{key}"] = _halves_swapped(key, tensor)
        if target.piece.isdigit():
            stacks.setdefault(target.in_file, {})[int(target.piece)] = target.module.out_features  # type: ignore[assignment]
    for name, outputs in stacks.items():
        if f"{name}.lora_up.weight" not in state or f"{name}.lora_down.weight" not in state:
            continue
        if len(state[f"{name}.lora_up.weight"]) != sum(outputs.values()):
            continue  # another model's: whoever loads it says so
        up, down = out.pop(f"{name}.lora_up.weight"), out.pop(f"{name}.lora_down.weight")
        alpha = out.pop(f"{name}.alpha", torch.tensor(float(len(down))))
        rows, count = up.split([outputs[i] for i in sorted(outputs)]), len(outputs)
        columns = up.shape[1] // count
        apart = up.shape[1] % count == 0 and all(
            not row[:, : i * columns].any() and not row[:, (i + 1) * columns :].any() for i, row in enumerate(rows)
        )
        for i, row in enumerate(rows):
            own = slice(i * columns, (i + 1) * columns) if apart else slice(None)
            out[f"{name}.{i}.lora_up.weight"] = row[:, own].contiguous()
            out[f"{name}.{i}.lora_down.weight"] = down[own].clone()
            out[f"{name}.{i}.alpha"] = alpha / count if apart else alpha.clone()
    return out


def _halves_swapped(key: str, tensor: Tensor) -> Tensor:
    return torch.cat(tensor.chunk(2)[::-1]) if key == "lora_up.weight" else tensor
