"""LoRA files under kohya's names or those of diffusers and PEFT, in another precision."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from limner import parsing
from limner.adapters.peft_names import to_diffusers
from limner.adapters.stacks import apart, by_layer, joined, layer_name, parted
from limner.config.tools.files import Convert
from limner.errors import Finding, UserError, printable, wrong
from limner.formats.header import Header
from limner.formats.known import FAMILIES
from limner.formats.lora_names import layer_and_tensor
from limner.formats.single import header_of
from limner.models.family import Target
from limner.models.weights import PRECISIONS, Weights
from limner.tools.lora_model import model_of, under_our_names
from limner.tools.lora_output import write
from limner.tools.pieces import overflows
from limner.tools.tool import Progress, Report, refuse_output

PEFT = "lora_adapter_metadata"
"""diffusers' key for what PEFT's LoraConfig says of each part."""
_LORA = {"lora_down.weight", "lora_up.weight", "alpha"}


def look(section: Convert) -> Report:
    _check(section)
    header = header_of(section.file, "convert.file")
    kind = "diffusers'" if _has_paths(header) else "kohya's"
    count = len({layer_and_tensor(name)[0] for name in header.tensors})
    lines = [f"A LoRA of {count} layers under {kind} names."]
    if (layout := _layout(section, header)) != "same":
        family = model_of(header, section.family, section.config, "convert")
        _places(header.tensors, family.adapter_targets(convolutions=True))
        new = {"original": "kohya's", "diffusers": "diffusers'"}[layout]
        lines.append(f"{FAMILIES[family.base.family].title}: gets {new} names.")
    return Report([section.output], lines)


def run(section: Convert, progress: Progress) -> Report:
    report, header = look(section), header_of(section.file, "convert.file")
    weights, state = Weights([section.file]), dict[str, Tensor]()
    try:
        for name in weights:
            progress(len(state), len(weights), "Reading")
            state[name] = weights[name]
    except (OSError, ValueError) as error:
        raise wrong("convert.file", f"{section.file.name} cannot be read: {error}.", "Download or copy it again.") from error
    kinds = Counter(t.dtype for n, t in state.items() if t.is_floating_point() and not n.endswith(".alpha"))
    metadata = {k: v for k, v in header.metadata.items() if not k.startswith("sshs_")}
    if (layout := _layout(section, header)) != "same":
        family = model_of(header, section.family, section.config, "convert")
        state, metadata = _renamed(section, state, metadata, layout, family.adapter_targets(convolutions=True))
    dtype = PRECISIONS.get(section.dtype) or kinds.most_common(1)[0][0]
    written, overflowed = dict[str, Tensor](), 0
    for name, tensor in state.items():
        is_number = tensor.is_floating_point() and not name.endswith(".alpha")  # alpha is the scale of everything
        keeps = section.dtype == "keep" and layout == "same"
        written[name] = (tensor.to(dtype) if is_number and not keeps else tensor).contiguous().clone()
        overflowed += is_number and overflows(tensor, written[name])
    progress(len(written), len(written), "Writing")
    write(section.output, written, metadata, "convert.output", hashed=layout != "diffusers")
    said = f"numbers of {overflowed} tensors are too large for fp16 and became infinite."
    return Report(report.files, report.lines, [Finding("convert.dtype", said, 'Use "bf16".', "warning")] if overflowed else [])


def _check(section: Convert) -> None:
    if section.part != "all":
        raise wrong("convert.part", "a LoRA has no parts that are converted alone.", "Remove it.")
    refuse_output(section.output, [section.file], section.overwrite, "convert.output")


def _has_paths(header: Header) -> bool:
    """Whether layers are told by the paths of modules, as diffusers and PEFT do."""
    return any("." in layer_and_tensor(name)[0] for name in header.tensors)


def _layout(section: Convert, header: Header) -> str:
    """What has to be done."""
    return "same" if section.layout == "diffusers" and _is_modern(header) else section.layout


def _is_modern(header: Header) -> bool:
    parts = ("unet.", "transformer.", "text_encoder")
    return all(".lora_A.weight" in n or ".lora_B.weight" in n for n in header.tensors) and all(
        n.startswith(parts) for n in header.tensors
    )


def _places(names: Mapping[str, Any], targets: list[Target]) -> None:
    """Raises UserError if a layer has no place in the model."""
    known = {t.in_file for t in targets} | {layer_name(t) for t in targets}
    paths = [t.in_diffusers.partition(".")[2].replace(".", "_") for t in targets]
    own = {prefix + path for path in paths for prefix in ("lycoris_", "lora_transformer_")}
    layers, others = by_layer(under_our_names(names, targets))
    if strange := [*others, *(layer for layer in layers if layer not in known | own)]:
        said = f"{len(strange)} of its layers have no place in this model, the first is {printable(strange[0], 80)}."
        remedy = "Set convert.family or convert.config, if it was taken for another model; else it cannot be converted."
        raise wrong("convert.file", said, remedy)


def _renamed(
    section: Convert, state: dict[str, Tensor], metadata: dict[str, str], layout: str, targets: list[Target]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    alphas, names = _noted_alphas(metadata), {layer_name(t): t for t in targets}
    metadata = {k: v for k, v in metadata.items() if k != PEFT}
    state = under_our_names(state, targets)
    in_files = {t.in_file for t in targets}
    layers, _ = by_layer(state)
    if layout == "original" and all(layer in in_files for layer in layers):  # stacks may share a matrix: not taken apart
        _complete(layers, alphas, names)
        return {f"{layer}.{key}": tensor for layer, tensors in layers.items() for key, tensor in tensors.items()}, metadata
    layers, _ = by_layer(parted(state, targets))
    if strange := [layer for layer in layers if layer not in names]:
        said = f"{printable(strange[0], 80)} stands for several layers and is not to be taken apart."
        raise wrong("convert.file", said, f"So it is with {len(strange)} layers; only plain LoRA can be.")
    _complete(layers, alphas, names)
    flat = {f"{layer}.{key}": tensor for layer, tensors in layers.items() for key, tensor in tensors.items()}
    used = {layer: names[layer] for layer in layers}
    if layout == "original":
        return joined(apart(flat, used, Counter(t.in_file for t in targets))), metadata
    if others := [layer for layer, tensors in layers.items() if tensors.keys() != _LORA]:
        said = f"{len(others)} layers are no plain LoRA, the first is {others[0]}; diffusers has no names for them."
        raise wrong("convert.file", said, "Load it with ComfyUI or A1111 as it is, or extract a LoRA from it.")
    metadata |= {"format": "pt"}
    if section.alpha == "keep":
        metadata[PEFT] = json.dumps(_peft_config(layers, used), indent=2, sort_keys=True)
        ones = {f"{layer}.alpha": torch.tensor(float(len(t["lora_down.weight"]))) for layer, t in layers.items()}
        return to_diffusers(flat | ones, used), metadata
    return to_diffusers({n: t.float() for n, t in flat.items()}, used), metadata


def _complete(layers: dict[str, dict[str, Tensor]], noted: Mapping[str, Any], names: Mapping[str, Target]) -> None:
    """Give layers without an alpha the one that is noted, or else their rank."""
    for name, tensors in layers.items():
        down, up, alpha = (tensors.get(key) for key in ("lora_down.weight", "lora_up.weight", "alpha"))
        is_product = down is None or up is None or (down.ndim > 1 < up.ndim and len(down) == up.shape[1] > 0)
        if not is_product or (alpha is not None and alpha.numel() != 1):
            said = f"the tensors of {printable(name, 80)} do not make a product."
            raise wrong("convert.file", said, "Download or copy it again.")
        if down is not None and alpha is None:
            rank = len(down)
            tensors["alpha"] = torch.tensor(_noted(noted, names[name], rank) if name in names else float(rank))


def _peft_config(layers: Mapping[str, Mapping[str, Tensor]], used: Mapping[str, Target]) -> dict[str, Any]:
    """PEFT's LoraConfig for each part: the commonest rank and alpha, and by name those of layers that have others."""
    ranks, alphas = dict[str, dict[str, int]](), dict[str, dict[str, float]]()
    for layer, tensors in layers.items():
        part, _, path = used[layer].in_diffusers.partition(".")
        ranks.setdefault(part, {})[path] = len(tensors["lora_down.weight"])
        alphas.setdefault(part, {})[path] = float(tensors["alpha"])
    out = dict[str, Any]()
    for part, its in ranks.items():
        rank = Counter(its.values()).most_common(1)[0][0]
        alpha = Counter(alphas[part].values()).most_common(1)[0][0]
        config = {"r": rank, "lora_alpha": alpha, "target_modules": sorted(its)}
        config["rank_pattern"] = {path: r for path, r in its.items() if r != rank}
        config["alpha_pattern"] = {path: a for path, a in alphas[part].items() if a != alpha}
        out |= {f"{part}.{key}": value for key, value in config.items()}
    return out


def _noted_alphas(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What the metadata say in diffusers' way. Raises UserError if it cannot be read: the scale would be wrong."""
    if PEFT not in metadata:
        return {}
    try:
        noted = parsing.json_value(metadata[PEFT])
    except ValueError:
        noted = None
    if not isinstance(noted, dict):
        raise wrong("convert.file", f"its metadata {PEFT} cannot be read.", "Remove it, if alpha is in the weights.")
    return noted


def _noted(noted: Mapping[str, Any], target: Target, rank: int) -> float:
    """A layer's alpha, so that alpha / rank is its scale."""
    part, _, path = target.in_diffusers.partition(".")
    if f"{part}.lora_alpha" not in noted:
        return float(rank)
    pattern = noted.get(f"{part}.alpha_pattern")
    of_layers = pattern if isinstance(pattern, dict) else {}
    fitting = [value for key, value in of_layers.items() if path == key or path.endswith(f".{key}")]
    alpha = fitting[0] if fitting else noted[f"{part}.lora_alpha"]
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise UserError([Finding("convert.file", f"its metadata {PEFT} give {printable(alpha, 40)!r} for an alpha.")])
    return float(alpha) * (math.sqrt(rank) if noted.get(f"{part}.use_rslora") is True else 1.0)
