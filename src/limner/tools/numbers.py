"""The numbers in a file: whether they are sound, and how large the changes of a LoRA or the weights of a model are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from limner.adapters import reading
from limner.adapters.full import FullLayer
from limner.adapters.loha import LohaLayer
from limner.adapters.lokr import LokrLayer
from limner.adapters.lora import LoraLayer
from limner.adapters.stacks import parted
from limner.config.tools.files import Inspect
from limner.errors import Finding, UserError, printable, wrong
from limner.formats.header import Header
from limner.formats.lora_file import family_of_lora
from limner.formats.lora_names import layer_and_tensor
from limner.models.weights import Weights
from limner.tools.lora_model import model_of, under_our_names
from limner.tools.programs import verdicts
from limner.tools.tool import Progress

_KINDS = (
    ("dora_scale", "DoRA"), ("lora_mid.weight", "LoCon with Tucker"), ("lora_down.weight", "LoRA"), ("hada_w1_a", "LoHa"),
    ("lokr_w1", "LoKr"), ("lokr_w1_a", "LoKr"), ("oft_blocks", "OFT"), ("oft_diag", "OFT"), ("a1.weight", "GLoRA"),
    ("on_input", "IA3"), ("diff", "whole changes"),
)  # fmt: skip
_RANKS = {"lora_down.weight": 0, "hada_w1_b": 0, "lokr_w2_b": 0, "a1.weight": 0}
"""Tensor -> the dimension that is the rank."""
_CHEAP = (LoraLayer, LohaLayer, LokrLayer, FullLayer)
"""Kinds whose change needs no weight of the model."""
_BLOCK = re.compile(
    r"(?<![a-z])((?:down|up|input|output|double|single|joint|(?:single_|joint_)?transformer)_blocks[._]\d+"
    r"|mid_block|middle_block|resblocks[._]\d+|layers[._]\d+|(?:encoder|decoder)[._](?:(?:down|up)[._]\d+|mid))[._]"
)
_MOST_SHOWN = 5


def lora_facts(section: Inspect, header: Header) -> tuple[dict[str, Any], list[Finding]]:
    """What a LoRA's names and shapes tell, and who loads it."""
    layers = dict[str, dict[str, tuple[int, ...]]]()
    for name, info in header.tensors.items():
        layer, tensor = layer_and_tensor(name)
        layers.setdefault(layer, {})[tensor] = info.shape
    strange = layers.pop("", {})
    kinds = Counter(_kind(tensors) for tensors in layers.values())
    ranks = Counter(s[_RANKS[t]] for tensors in layers.values() for t, s in tensors.items() if t in _RANKS and s)
    parts = Counter(_part(layer) for layer in layers)
    family = section.family or family_of_lora(header)
    facts: dict[str, Any] = {"family": family, "kind": " and ".join(k for k, _ in kinds.most_common())}
    facts |= {"layers per part": dict(parts), "ranks": {f"rank {r}": f"{n} layers" for r, n in ranks.most_common()}}
    remarks = (
        [Finding("inspect.file", f"{len(strange)} of its tensors belong to no layer.", severity="warning")] if strange else []
    )
    if family is None:
        said = "its family cannot be told, so neither can who loads it."
        return facts, [*remarks, Finding("inspect.family", said, "Set it if you know it.", "note")]
    model = model_of(header, family, section.config, "inspect")
    facts["does it load"] = {v.program: ("yes, " if v.loads else "no: ") + v.words for v in verdicts(layers, model)}
    return facts, remarks


def _kind(tensors: Mapping[str, Any]) -> str:
    return next((kind for name, kind in _KINDS if name in tensors), "layers of no known kind")


def _part(layer: str) -> str:
    match = re.match(r"(lora_te\d?|text_encoder(?:_\d)?|text_encoders[._]\w+?)(?=[._]text|[._]transformer|[._])", layer)
    return match[1] if match else "denoiser"


def block_of(name: str) -> str:
    """The numbered block that a layer or tensor lies in, in words that sort; "others" outside of all."""
    match = _BLOCK.search(name)
    part = _part(name)
    block = match[1].replace(".", "_") if match else "others"
    return block if part == "denoiser" else f"{part} {block}"


# --- a LoRA -----------------------------------------------------------------------------------------------------------


def numbers_of_a_lora(section: Inspect, header: Header, progress: Progress) -> tuple[dict[str, Any], list[Finding]]:
    """The norm of each layer's change; what is wrong with numbers; whether the shapes fit the model."""
    state, sound = _read(section, header, progress, keep=True)
    norms, remarks, alphas = dict[str, float](), sound.remarks(), Counter[float]()
    for name, tensor in state.items():
        if name.endswith(".alpha") and tensor.numel() == 1:
            alphas[round(float(tensor), 6)] += 1
    family = section.family or family_of_lora(header)
    if family is not None and not sound.faulty:
        model = model_of(header, family, section.config, "inspect")
        targets = model.adapter_targets(convolutions=True)
        own = {n: t.float() if t.is_floating_point() else t for n, t in under_our_names(state, targets).items()}
        try:
            for i, (name, _, layer) in enumerate(reading.layers_of(model, parted(own, targets), "inspect.file")):
                progress(i, len(own), "Measuring")
                if isinstance(layer, _CHEAP):
                    norms[name] = float(layer.norm().detach())
        except UserError as error:
            remarks += [Finding(f.field, f.message, f.remedy, "warning") for f in error.findings]
    facts: dict[str, Any] = {"alphas": {f"alpha {a:g}": f"{n} layers" for a, n in alphas.most_common(_MOST_SHOWN)}}
    return facts | _norms(norms, "of the change"), remarks


def _norms(norms: Mapping[str, float], of: str) -> dict[str, Any]:
    if not norms:
        return {}
    blocks = dict[str, list[float]]()
    for name, norm in norms.items():
        blocks.setdefault(block_of(name), []).append(norm)
    strongest = sorted(norms, key=lambda name: -norms[name])[:_MOST_SHOWN]
    rows = {
        b: f"mean {sum(v) / len(v):.4g}, max {max(v):.4g}, {len(v)} layers" for b, v in sorted(blocks.items(), key=_by_number)
    }
    return {
        f"average norm {of}": sum(norms.values()) / len(norms),
        "strongest layers": {name: norms[name] for name in strongest},
        f"norms {of} by block": rows,
        "layers": dict(norms),
    }


def _by_number(entry: tuple[str, Any]) -> tuple[str, int]:
    word, _, number = entry[0].rpartition("_")
    return (word, int(number)) if number.isdigit() else (entry[0], 0)


# --- a model ----------------------------------------------------------------------------------------------------------


def numbers_of_a_model(section: Inspect, header: Header, progress: Progress) -> tuple[dict[str, Any], list[Finding]]:
    """The norm of each weight, one tensor in memory at a time."""
    norms = dict[str, float]()

    def measure(name: str, tensor: Tensor) -> None:
        if tensor.ndim >= 2 and tensor.is_floating_point():
            norms[name] = float(tensor.float().norm())

    _, sound = _read(section, header, progress, keep=False, measure=measure)
    return _norms(norms, "of the weights"), sound.remarks()


class _Sound:
    """What is wrong with numbers."""

    def __init__(self) -> None:
        self.faulty: list[str] = []
        self.zero: list[str] = []

    def look_at(self, name: str, tensor: Tensor) -> None:
        if not tensor.is_floating_point() or not tensor.numel():
            return
        values = tensor if tensor.itemsize >= 2 else tensor.float()
        if not bool(values.isfinite().all()):
            self.faulty.append(name)
        elif tensor.ndim >= 2 and not bool(values.any()):
            self.zero.append(name)

    def remarks(self) -> list[Finding]:
        out = list[Finding]()
        if self.faulty:
            said = (
                f"{len(self.faulty)} tensors hold numbers that are none (NaN) or infinite, the first is {_short(self.faulty)}."
            )
            out.append(Finding("inspect.file", said, "It cannot be used as it is: take an earlier checkpoint."))
        if self.zero:
            said = f"{len(self.zero)} tensors hold nothing but zeros, the first is {_short(self.zero)}."
            out.append(Finding("inspect.file", said, "Where it is a LoRA's up matrix, its layer changes nothing.", "note"))
        return out


def _short(names: list[str]) -> str:
    return printable(names[0], 100)


def _read(
    section: Inspect, header: Header, progress: Progress, *, keep: bool, measure: Callable[[str, Tensor], None] | None = None
) -> tuple[dict[str, Tensor], _Sound]:
    weights, state, sound = Weights([section.file]), dict[str, Tensor](), _Sound()
    try:
        with torch.no_grad():
            for i, name in enumerate(header.tensors):
                progress(i, len(header.tensors), "Reading")
                tensor = weights[name]
                sound.look_at(name, tensor)
                if measure is not None:
                    measure(name, tensor)
                if keep:
                    state[name] = tensor
    except (OSError, ValueError) as error:
        raise wrong("inspect.file", f"it cannot be read: {error}.", "Download or copy it again.") from error
    return state, sound
