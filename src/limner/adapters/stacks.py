"""Names of layers in files, where files in kohya's names stack what Limner adapts apart: query, key and value of Flux and SD 3.

Layers that a file stacks are called `<name in the file>.<number>` here. Together, LoRAs of one scale are exactly one LoRA of
the stacked layer, whose rank is all of theirs: the down matrices below each other, the up matrices on a diagonal. kohya's
trainer writes this, too, when it trains them apart; when it trains them as one, they share one down matrix, which each of ours
then gets, and which stays one. Whole changes ("full") stand behind each other. Everything else goes out as the layers that they
are, under the names `lycoris_<diffusers' name>`, which ComfyUI knows for parts of a stacked layer.

A layer whose outputs have their halves the other way round in the file is called `<name in the file>.swapped`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from limner.models.family import Target

TENSORS = (
    "lora_down.weight", "lora_up.weight", "dora_scale", "alpha", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "lokr_w1",
    "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "oft_blocks", "a1.weight", "a2.weight", "b1.weight",
    "b2.weight", "weight", "on_input", "diff", "diff_b",
)  # fmt: skip
"""What the tensors of a layer are called, of every kind."""
_OF_OUTPUTS = {
    "lora_up.weight", "hada_w1_a", "hada_w2_a", "lokr_w1", "lokr_w1_a", "oft_blocks", "b1.weight", "diff", "diff_b",
}  # fmt: skip
"""Those whose first dimension goes by the outputs."""
_LORA, _WHOLE = {"lora_down.weight", "lora_up.weight", "alpha"}, {"diff", "diff_b"}
_NAME = re.compile(f"(.+?)\\.({'|'.join(map(re.escape, TENSORS))})")
_PREFIXES = ("lycoris_", "lora_transformer_")


def layer_name(target: Target) -> str:
    """What an adapter calls a layer."""
    return f"{target.in_file}.{target.piece}" if target.piece else target.in_file


def num_stacked(targets: Iterable[Target]) -> dict[str, int]:
    """How many layers files have under each name."""
    return Counter(t.in_file for t in targets)


def by_layer(state: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """({layer: {tensor's name: tensor}}, names that are none of the known ones)."""
    out, others = dict[str, dict[str, Tensor]](), list[str]()
    for name, tensor in state.items():
        if match := _NAME.fullmatch(name):
            out.setdefault(match[1], {})[match[2]] = tensor
        else:
            others.append(name)
    return out, others


def apart(state: Mapping[str, Tensor], targets: Mapping[str, Target], stacks: Mapping[str, int]) -> dict[str, Tensor]:
    """The adapter's tensors, the layers of stacks that cannot be joined under names of their own. `stacks`: how many layers
    each name in a file has."""
    layers, _ = by_layer(state)
    numbered = dict[str, list[str]]()
    for name, target in targets.items():
        if target.piece.isdigit():
            numbered.setdefault(target.in_file, []).append(name)
    names = dict[str, str]()
    for stack, members in numbered.items():
        if not (len(members) == stacks[stack] and _can_be_joined([layers[m] for m in members])):
            names |= {member: _own_name(targets[member]) for member in members}
    return {f"{names.get(layer, layer)}.{key}": t for layer, tensors in layers.items() for key, t in tensors.items()}


def _own_name(target: Target) -> str:
    return f"lycoris_{target.in_diffusers.partition('.')[2].replace('.', '_')}"


def _can_be_joined(members: list[dict[str, Tensor]]) -> bool:
    if all(m.keys() <= _WHOLE for m in members):
        return len({frozenset(m) for m in members}) == 1
    # ranks may differ, but there is one scale
    return (
        all(m.keys() == _LORA for m in members) and len({float(m["alpha"]) / len(m["lora_down.weight"]) for m in members}) == 1
    )


def joined(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors from the adapter's: n layers' down (r, in) and up (out, r) become (n r, in) and (n out, n r); those that
    share one down matrix keep it, and become (r, in) and (n out, r)."""
    layers, others = by_layer(state)
    out = {name: state[name] for name in others}
    stacks = dict[tuple[str, str], dict[int, Tensor]]()
    for layer, tensors in layers.items():
        name, _, piece = layer.rpartition(".")
        for key, tensor in (_swapped(tensors) if piece == "swapped" else tensors).items():
            if piece.isdigit():
                stacks.setdefault((name, key), {})[int(piece)] = tensor
            else:
                out[f"{name if piece == 'swapped' else layer}.{key}"] = tensor
    shared = {name for (name, key), downs in stacks.items() if key == "lora_down.weight" and _are_equal(list(downs.values()))}
    for (name, key), numbered in stacks.items():
        parts = [numbered[i] for i in sorted(numbered)]
        if name in shared and key in ("lora_down.weight", "alpha"):
            out[f"{name}.{key}"] = parts[0]
        elif key == "lora_up.weight" and name not in shared:
            out[f"{name}.{key}"] = torch.block_diag(*parts)
        elif key == "alpha":  # the scale is alpha / rank, and the rank has grown
            out[f"{name}.{key}"] = parts[0] * len(parts) if _are_equal(parts) else torch.stack(parts).sum()
        else:
            out[f"{name}.{key}"] = torch.cat(parts)
    return out


def _are_equal(tensors: list[Tensor]) -> bool:
    return all(torch.equal(t, tensors[0]) for t in tensors[1:])


def parted(state: Mapping[str, Tensor], targets: Iterable[Target]) -> dict[str, Tensor]:
    """The inverse, for the layers of a family. What belongs to none of them keeps its name: whoever loads it says so."""
    layers, others = by_layer(state)
    stacks = dict[str, dict[int, int]]()
    for target in targets:
        own = _own_name(target)
        for prefix in _PREFIXES:
            if (tensors := layers.pop(own.replace("lycoris_", prefix, 1), None)) is not None:
                layers[layer_name(target)] = tensors
        if target.piece == "swapped" and target.in_file in layers:
            layers[layer_name(target)] = _swapped(layers.pop(target.in_file))
        if target.piece.isdigit():
            stacks.setdefault(target.in_file, {})[int(target.piece)] = target.module.out_features  # type: ignore[assignment]
    for name, outputs in stacks.items():
        if name in layers and (parts := _split(layers[name], [outputs[i] for i in sorted(outputs)])):
            del layers[name]
            layers |= {f"{name}.{i}": part for i, part in enumerate(parts)}
    out = {f"{layer}.{key}": tensor for layer, tensors in layers.items() for key, tensor in tensors.items()}
    return out | {name: state[name] for name in others}


def _split(tensors: dict[str, Tensor], outputs: list[int]) -> list[dict[str, Tensor]] | None:
    """A stacked layer's tensors for each of its members; None if it is another model's, or cannot be split."""
    if tensors.keys() <= _WHOLE:
        if any(len(t) != sum(outputs) for t in tensors.values()):
            return None
        return [dict(zip(tensors, row, strict=True)) for row in zip(*(t.split(outputs) for t in tensors.values()), strict=True)]
    if not {"lora_down.weight", "lora_up.weight"} <= tensors.keys() <= _LORA or len(tensors["lora_up.weight"]) != sum(outputs):
        return None
    up, down, count = tensors["lora_up.weight"], tensors["lora_down.weight"], len(outputs)
    alpha = tensors.get("alpha", torch.tensor(float(len(down)))).float()  # a third of it is none of 16 bits
    rows, columns = up.split(outputs), up.shape[1] // count
    are_apart = up.shape[1] % count == 0 and all(
        not row[:, : i * columns].any() and not row[:, (i + 1) * columns :].any() for i, row in enumerate(rows)
    )
    out = []
    for i, row in enumerate(rows):
        own = slice(i * columns, (i + 1) * columns) if are_apart else slice(None)
        part = {"lora_up.weight": row[:, own].contiguous(), "lora_down.weight": down[own].clone()}
        out.append(part | {"alpha": alpha / count if are_apart else alpha.clone()})
    return out


def _swapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: torch.cat(t.chunk(2)[::-1]) if k in _OF_OUTPUTS else t for k, t in tensors.items()}
