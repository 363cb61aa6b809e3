"""The layers of a LoRA file, told by its names alone and in the names that it has: for what works on one layer after the other.

A layer of low rank is a pair of matrices, in the names of kohya, of PEFT, or of older versions of diffusers; with them may lie
an alpha, a matrix in the middle (a convolution between two of 1x1) and DoRA's magnitudes. A dense one is made of other tensors
that give the whole change: LoHa, LoKr, "full". Others change the model by formulas that ask for its weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from limner import parsing
from limner.errors import Finding, UserError, printable, wrong
from limner.formats.header import Header

_DOWN = re.compile(
    r"(.+?)(\.lora_down|\.lora_A|\.lora_A\.default|\.lora\.down|_lora\.down|\.lora_linear_layer\.down)\.weight", re.S
)
_UP = {"down": "up", "lora_A": "lora_B"}
_DENSE = {"hada_w1_a": "LoHa", "lokr_w1": "LoKr", "lokr_w1_a": "LoKr", "diff": "full"}
_REFUSED = {
    "oft_blocks": "OFT", "oft_diag": "OFT", "on_input": "(IA)^3", "a1.weight": "GLoRA", "hada_t1": "LoHa with a Tucker core",
    "lokr_t2": "LoKr with a Tucker core", "diff.indices": "a sparse change", "diff_indices": "a sparse change",
}  # fmt: skip
"""Tensors by which layers are known that are no matrix that can be cut: because it depends on the model's weight, or is not
read yet."""
PEFT_SAYS = "lora_adapter_metadata"


@dataclass(frozen=True)
class Pair:
    """A layer of low rank, by the names of its tensors."""

    name: str
    down: str
    up: str
    alpha: str
    """Whether or not it is there."""
    middle: str = ""
    """Empty if there is none."""


@dataclass
class Found:
    """What a file holds."""

    pairs: list[Pair] = field(default_factory=list)
    dense: dict[str, str] = field(default_factory=dict)
    """Layers that are whole changes -> their kind."""
    magnitudes: int = 0
    """How many pairs have DoRA's."""
    others: list[str] = field(default_factory=list)
    """Tensors that belong to neither, and stay as they are."""


def sort(names: Iterable[str], where: str) -> Found:
    """Raises UserError, under `where`, for layers that cannot be cut to a rank, by their kind, and for halves of pairs."""
    names, found, taken, faults = set(names), Found(), set[str](), list[str]()
    for name in sorted(names):
        if match := _DOWN.fullmatch(name):
            pair = _pair(name, match[1], match[2], names)
            if pair.up not in names:
                faults.append(f"{name} has no counterpart {pair.up}")
            found.pairs.append(pair)
            taken |= {pair.down, pair.up, pair.alpha, pair.middle}
            found.magnitudes += f"{pair.name}.dora_scale" in names
    layers = dict[str, set[str]]()
    for name in sorted(names - taken):
        layer, _, rest = name.partition(".")
        layers.setdefault(layer, set()).add(rest)
    for layer, rests in layers.items():
        if kind := next((kind for rest, kind in _REFUSED.items() if rest in rests), None):
            faults.append(f"{layer} is {kind}, which has no singular values to go by")
        elif kind := next((kind for rest, kind in _DENSE.items() if rest in rests), None):
            found.dense[layer] = kind
        else:
            found.others += [f"{layer}.{rest}" if rest else layer for rest in sorted(rests)]
    if not faults and not found.pairs and not found.dense:
        faults.append("holds no LoRA that Limner knows")
    if faults:
        more = [Finding(where, f"{len(faults) - 3} more layers cannot be, either.", severity="note")] if len(faults) > 3 else []
        remedy = "Give a file of LoRA, LoCon, DoRA, LoHa, LoKr or full layers."
        raise UserError([*(Finding(where, f"{fault}.", remedy) for fault in faults[:3]), *more])
    return found


def _pair(down: str, layer: str, ending: str, names: set[str]) -> Pair:
    up = re.sub(r"down|lora_A", lambda match: _UP[match[0]], ending)
    middle = f"{layer}.lora_mid.weight"
    return Pair(layer, down, f"{layer}{up}.weight", f"{layer}.alpha", middle if middle in names else "")


def peft_scales(header: Header, where: str) -> Mapping[str, float]:
    """First word of the layers' names -> alpha / rank, where diffusers has written PEFT's configuration into the metadata.

    Raises UserError, under `where`, if that gives layers of one part different ones.
    """
    if PEFT_SAYS not in header.metadata:
        return {}
    try:
        said = parsing.json_value(header.metadata[PEFT_SAYS])
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise wrong(where, f"its metadata {PEFT_SAYS} are not a table.", "Remove them, or save the file again.")
    out = dict[str, float]()
    for part in {key.partition(".")[0] for key in said}:
        if any(said.get(f"{part}.{key}") for key in ("alpha_pattern", "rank_pattern", "use_rslora")):
            text = f"its metadata give the layers of {printable(part, 40)} different scales, which is not read yet."
            raise wrong(where, text, "Save it in kohya's names.")
        rank, alpha = said.get(f"{part}.r"), said.get(f"{part}.lora_alpha", said.get(f"{part}.r"))
        if isinstance(rank, int) and isinstance(alpha, int | float) and rank > 0 and math.isfinite(alpha):
            out[part] = alpha / rank
    return out
