"""One layer of several adapters as one: exactly, or cut to a rank.

The factors of a sum are not the sums of the factors: (A + B)(C + D) is not A C + B D. So matrices are put side by side, or the
sum's singular values are taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from limner.adapters.full import FullLayer
from limner.adapters.layers import Sizes
from limner.adapters.loha import LohaLayer
from limner.adapters.lokr import LokrLayer
from limner.adapters.lora import LoraLayer
from limner.tools import low_rank
from limner.tools.low_rank import Product

if TYPE_CHECKING:
    from limner.adapters.reading import Found
    from limner.tools.loras import Given

_LINEAR = (LoraLayer, FullLayer, LohaLayer, LokrLayer)
"""Kinds whose change depends on nothing but their own tensors."""
Parts = Sequence[tuple["Found", "Given"]]


@dataclass(frozen=True)
class Summed:
    """What becomes of a layer: its tensors, as files call them."""

    tensors: Mapping[str, Tensor]
    rank: int | None = None
    lost: float = 0.0
    """Share of the change that was cut off, as a ratio of Frobenius norms."""


def is_lora(parts: Parts) -> bool:
    return all(found.kind is LoraLayer for found, _ in parts)


def fault(name: str, parts: Parts, *, is_cut: bool) -> str | None:
    """Why a layer cannot be merged, in words; None if it can."""
    kinds = {found.kind for found, _ in parts}
    titles = ", ".join(sorted(f"{kind.__name__.removesuffix('Layer')} in {its.path.name}" for kind, its in _others(parts)))
    if not is_cut:
        if kinds <= {LoraLayer} or kinds == {FullLayer} or _is_kept(parts):
            return None
        return f"{name}: {titles} cannot be put side by side with others"
    if not kinds <= set(_LINEAR):
        return f"{name}: what {titles} does depends on the model, and is no LoRA's change"
    if any("diff_b" in found.tensors for found, _ in parts):
        return f"{name}: a bias is changed, which a LoRA cannot hold"
    return None


def remedy(*, is_cut: bool) -> str:
    """What to do about a fault."""
    into = "merge the files into a model instead (merge_model)"
    return f"Leave the file out, or {into}." if is_cut else f"Set method to svd, or {into}."


def _others(parts: Parts) -> list[tuple[type, Given]]:
    return [(found.kind, its) for found, its in parts if found.kind is not LoraLayer]


def _is_kept(parts: Parts) -> bool:
    """Whether a layer can go into the new file as it is: nothing else changes it. A strength can be multiplied into those
    kinds that are linear in one of their tensors."""
    (found, its), *others = parts
    return not others and (its.strength == 1 or found.kind in _LINEAR)


def common_scale(layers: Iterable[Parts]) -> float:
    """The scale alpha / rank of all LoRA layers that are made: the largest that is put in, strengths included. So matrices stay
    of the size that 16 bits hold, those of the file with this scale as they are."""
    scales = [abs(its.strength) * _scale(found) for parts in layers for found, its in parts if found.kind is LoraLayer]
    return max(scales, default=1.0) or 1.0


def add(parts: Parts, scale: float) -> Summed:
    """The exact sum, a LoRA's with this scale. Asked of layers without a fault."""
    if is_lora(parts):
        products = [_product(found, its.strength / scale) for found, its in parts]
        return _as_lora(low_rank.side_by_side(products), parts, scale)
    if all(found.kind is FullLayer for found, _ in parts):
        out = dict[str, Tensor]()
        for found, its in parts:
            for key in FullLayer.names:
                if key in found.tensors:
                    tensor = found.tensors[key].float() * its.strength
                    out[key] = out[key] + tensor if key in out else tensor
        return Summed(out)
    ((found, its),) = parts
    tensors = {k: v.float() if v.is_floating_point() else v for k, v in found.tensors.items()}
    if its.strength != 1:
        outer = next(key for key in ("hada_w2_a", "lokr_w2", "lokr_w2_a") if key in tensors)
        tensors[outer] = tensors[outer] * its.strength
    return Summed(tensors, found.build(torch.device("cpu")).rank)


def cut(parts: Parts, rank: int, scale: float) -> Summed:
    """The nearest LoRA of a rank, or of the layer's own if that is less, with this scale."""
    if is_lora(parts):
        found = low_rank.singular_of_sum([_product(found, its.strength / scale) for found, its in parts])
    else:
        whole = sum(its.strength / scale * found.build(torch.device("cpu")).delta().detach() for found, its in parts)
        assert isinstance(whole, Tensor)
        found = low_rank.singular(whole.flatten(1))
    norm, rest = float(found.values.norm()), float(found.values[rank:].norm())
    rank = min(rank, len(found.values))
    return _as_lora(found.cut(rank), parts, scale, rest / norm if norm else 0.0)


def _scale(found: Found) -> float:
    rank = len(found.tensors["lora_down.weight"])
    return float(found.tensors.get("alpha", rank)) / rank


def _product(found: Found, strength: float) -> Product:
    """A LoRA's product with its scale, of whose size each matrix takes the root: so those that share one of them still do."""
    down, up = (found.tensors[name].float() for name in LoraLayer.names)
    scale = strength * _scale(found)
    root = math.sqrt(abs(scale))
    return low_rank.product_of(down * root, up, math.copysign(root, scale))


def _as_lora(product: Product, parts: Parts, scale: float, lost: float = 0.0) -> Summed:
    sizes = Sizes.of(parts[0][0].target.module)  # type: ignore[arg-type]
    down, up = low_rank.shaped(product, sizes.kernel)
    tensors = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(product.rank * scale)}
    return Summed(tensors, product.rank, lost)
