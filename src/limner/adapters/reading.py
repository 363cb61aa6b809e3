"""Adapter files, by Limner or others: which layers of a model they change, and of which kind each of them is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from limner.adapters.full import FullLayer
from limner.adapters.glora import GloraLayer
from limner.adapters.ia3 import Ia3Layer
from limner.adapters.layers import Layer, Sizes
from limner.adapters.loha import LohaLayer
from limner.adapters.lokr import LokrLayer
from limner.adapters.lora import DoraLayer, LoraLayer
from limner.adapters.oft import OftLayer
from limner.adapters.peft_names import from_diffusers, is_in_diffusers_names
from limner.adapters.stacks import by_layer, layer_name, parted
from limner.errors import Finding, UserError, wrong
from limner.formats.header import read_header
from limner.formats.lora_file import require_family

if TYPE_CHECKING:
    from limner.models.family import Family, Target

_KINDS: tuple[tuple[frozenset[str], type[Layer]], ...] = (
    (frozenset({"lora_down.weight", "lora_up.weight", "dora_scale"}), DoraLayer),
    (frozenset({"lora_down.weight", "lora_up.weight"}), LoraLayer),
    (frozenset(LohaLayer.names), LohaLayer),
    (frozenset({"lokr_w1"}), LokrLayer),
    (frozenset({"lokr_w1_a", "lokr_w1_b"}), LokrLayer),
    (frozenset({"oft_blocks"}), OftLayer),
    (frozenset(GloraLayer.names), GloraLayer),
    (frozenset({"weight", "on_input"}), Ia3Layer),
    (frozenset({"diff"}), FullLayer),
)
"""The first whose tensors a layer has is its kind."""
TEXT, _DENOISER = ("lora_te", "text_encoder"), ("lora_unet", "lycoris_", "lora_transformer_", "unet.", "transformer.")


@dataclass(frozen=True)
class Found:
    """A layer that a file changes, not built yet: its tensors are as they are stored."""

    name: str
    target: Target
    kind: type[Layer]
    tensors: Mapping[str, Tensor]

    def build(self, device: torch.device) -> Layer:
        """In float32, not attached."""
        tensors = {k: v.float() if v.is_floating_point() else v for k, v in self.tensors.items()}
        return self.kind(self.target.module, tensors, None, device)  # type: ignore[arg-type]


def read(path: Path, family: Family, where: str) -> dict[str, Tensor]:
    """A file's tensors under the adapter's names, in float32; only those of parts that are loaded.

    Raises UserError, under `where`, if it cannot be read or is another family's.
    """
    return {k: v.float() if v.is_floating_point() else v for k, v in read_stored(path, family, where).items()}


def read_stored(path: Path, family: Family, where: str) -> dict[str, Tensor]:
    """The same in the precision of the file, which is mapped: numbers come into memory when they are used."""
    if not path.is_file():
        raise wrong(where, f"{path} is not a file.", "Give the path of a LoRA's .safetensors file.")
    require_family(read_header(path, where), family.base.family, path.name, where)
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise wrong(where, f"{path.name} cannot be read ({error}).", "Download or copy it again.") from None
    absent = (*(() if family.text_encoders else TEXT), *(() if hasattr(family, "denoiser") else _DENOISER))
    return own_names({k: v for k, v in state.items() if not k.startswith(absent)} if absent else state, family)


def own_names(state: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """A file's tensors under the names that adapters give them."""
    targets = family.adapter_targets(convolutions=True)
    return from_diffusers(state, targets) if is_in_diffusers_names(state) else parted(state, targets)


def layers_of(family: Family, state: Mapping[str, Tensor], where: str) -> Iterator[tuple[str, Target, Layer]]:
    """(name, target, layer) of each layer that a file changes, not attached. Raises UserError if something does not fit."""
    for found in fitting(family, state, where):
        yield found.name, found.target, found.build(family.device)


def fitting(family: Family, state: Mapping[str, Tensor], where: str) -> list[Found]:
    """Each layer that a file changes. Raises UserError if something does not fit."""
    layers, strangers = by_layer(state)
    if not any(_kind_of(tensors) for tensors in layers.values()):
        raise wrong(where, "holds no LoRA that Limner knows.", "Give a .safetensors file that Limner, kohya or LyCORIS wrote.")
    targets = {layer_name(t): t for t in family.adapter_targets(convolutions=True)}
    faults = [f"{name} has no place in this model" for name in (*strangers, *(n for n in layers if n not in targets))]
    faults += [f"{name}: {fault}" for name in layers if name in targets and (fault := _fault(targets[name], layers[name]))]
    if faults:
        more = [Finding(where, f"{len(faults) - 3} more do not fit.", severity="note")] if len(faults) > 3 else []
        remedy = "Give a LoRA that was made for this model."
        raise UserError([*(Finding(where, f"{fault}.", remedy) for fault in faults[:3]), *more])
    kinds = {name: _kind_of(tensors) for name, tensors in layers.items()}
    return [Found(name, targets[name], kind, layers[name]) for name, kind in kinds.items() if kind is not None]


def _kind_of(tensors: Mapping[str, Tensor]) -> type[Layer] | None:
    return next((kind for needed, kind in _KINDS if needed <= tensors.keys()), None)


def _fault(target: Target, tensors: Mapping[str, Tensor]) -> str | None:
    """What is wrong with a layer's tensors, tried without memory; None if they fit."""
    kind = _kind_of(tensors)
    if kind is None:
        return f"its tensors ({', '.join(sorted(tensors))}) are of no kind that Limner knows"
    if strange := tensors.keys() - {*kind.names, "alpha", "on_input"}:
        return f"{', '.join(sorted(strange))} is more than Limner knows"
    if whole := [name for name in kind.names if name in tensors and not tensors[name].is_floating_point()]:
        return f"{whole[0]} holds whole numbers"
    sizes = Sizes.of(target.module)  # type: ignore[arg-type]
    if "dora_scale" in tensors and tensors["dora_scale"].shape[:2] != (1, sizes.inputs):
        return "its magnitudes go by outputs, and only those by inputs mean the same everywhere"
    base: Any = nn.Linear(sizes.inputs, sizes.outputs, device="meta")
    if sizes.kernel:
        base = nn.Conv2d(sizes.inputs, sizes.outputs, sizes.kernel, device="meta")  # type: ignore[arg-type]
    try:
        layer = kind(base, {k: v.to("meta").float() if k in kind.names else v for k, v in tensors.items()}, None, "meta")
        made = layer.delta().shape
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError, ZeroDivisionError):
        made = None
    if made != torch.Size(sizes.weight) or not all(t.numel() for t in tensors.values()):
        shapes = ", ".join(f"{k} {tuple(t.shape)}" for k, t in sorted(tensors.items()) if k in kind.names)
        return f"{shapes} makes no change of a weight {sizes.weight}"
    return None
