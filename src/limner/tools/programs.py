"""Which programs find a layer of the model for every layer of a LoRA file: their rules as names. Facts of 2026.

ComfyUI, and Forge, which took over its table: kohya's names with underscores after the original layout and, for UNets, after
diffusers'; `diffusion_model.<original path>`; diffusers' paths, with `unet.` or `transformer.` or bare; `lycoris_` and, for
transformers, `lora_transformer_` with diffusers' names. CLIP's layers as kohya's and as diffusers'. No IA3.
A1111: kohya's names alone, of Stable Diffusion 1, 2 and XL (and of 3 where they follow the original layout).
diffusers 0.42: its own paths with PEFT's matrices; kohya's names of plain LoRA and DoRA for UNets and Flux, all or none; no
LyCORIS.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from limner.errors import printable

_LORA = frozenset({"lora_down.weight", "lora_up.weight", "alpha", "dora_scale"})
_UNETS = ("sd1", "sd2", "sdxl")
_TEXT = ("lora_te", "text_encoder")


@dataclass(frozen=True)
class Verdict:
    """What one program makes of a file."""

    program: str
    loads: bool
    words: str


def verdicts(layers: Mapping[str, Collection[str]], family: Any) -> list[Verdict]:
    """`layers`: each layer's name in the file, and what its tensors are called; `family`: the model, on the meta device."""
    name = family.base.family
    paths, originals = _weights(family)
    text, text_paths = _text(family)
    flat = {_flat(p) for p in paths}
    after_original = {f"lora_unet_{_flat(p)}" for p in originals}
    after_own = {f"lora_unet_{p}" for p in flat} if name in _UNETS else set()
    comfy = after_original | after_own | text | text_paths | paths
    comfy |= {f"diffusion_model.{p}" for p in originals} | {f"lycoris_{p}" for p in flat}
    comfy |= {f"{family.denoiser_folder}.{p}" for p in paths}
    comfy |= {f"lora_transformer_{p}" for p in flat} if name not in _UNETS else set()
    kohya = after_original | after_own | text
    own = {f"{family.denoiser_folder}.{p}" for p in paths} | text_paths
    not_ia3 = _all_but("on_input", "IA3")
    out = [_verdict("ComfyUI and Forge", layers, comfy, not_ia3)]
    if name == "flux":
        out.append(Verdict("A1111", False, "it has no Flux.1"))
    else:
        out.append(_verdict("A1111", layers, kohya, lambda _: ""))
    is_dotted = all("." in layer for layer in layers)
    if name == "sd3" and not is_dotted:
        out.append(Verdict("diffusers", False, "it reads only its own names for Stable Diffusion 3; convert it"))
    elif name == "flux" and not is_dotted:
        out.append(_verdict("diffusers", layers, {n for n in after_original | text if "lora_te2" not in n}, _only_lora))
    elif not is_dotted and any("." in layer for layer in layers):
        out.append(Verdict("diffusers", False, "its layers are named in two ways; convert it"))
    else:
        original_paths = {f"diffusion_model.{p}" for p in originals} if name == "flux" else set()
        out.append(_verdict("diffusers", layers, own | original_paths if is_dotted else kohya, _only_lora))
    return out


def _verdict(
    program: str, layers: Mapping[str, Collection[str]], known: Collection[str], why_not: Callable[[Collection[str]], str]
) -> Verdict:
    strangers = [layer for layer in layers if layer not in known]
    refused = [why for tensors in layers.values() if (why := why_not(tensors))]
    if strangers:
        share = "none" if len(strangers) == len(layers) else f"{len(layers) - len(strangers)} of {len(layers)}"
        return Verdict(program, False, f"finds {share} of its layers; it does not know {printable(strangers[0], 90)}")
    if refused:
        return Verdict(program, False, f"{len(refused)} of {len(layers)} layers are {refused[0]}, which it does not read")
    return Verdict(program, True, f"finds all {len(layers)} layers")


def _all_but(tensor: str, kind: str) -> Callable[[Collection[str]], str]:
    return lambda tensors: kind if tensor in tensors else ""


def _only_lora(tensors: Collection[str]) -> str:
    return "" if set(tensors) <= _LORA else "no plain LoRA"


def _flat(path: str) -> str:
    return path.replace(".", "_")


def _weights(family: Any) -> tuple[set[str], set[str]]:
    """The denoiser's modules with a weight: by their paths in diffusers, and in the original layout."""
    places = type(family).denoiser_names(family.denoiser.state_dict())
    weights = {own: place.name for own, place in places.items() if own.endswith(".weight")}
    return {own.removesuffix(".weight") for own in weights}, {there.removesuffix(".weight") for there in weights.values()}


def _text(family: Any) -> tuple[set[str], set[str]]:
    """CLIP's layers: as kohya's, and as diffusers'."""
    targets = [t for t in family.adapter_targets(convolutions=True) if t.part != "denoiser"]
    first = {t.in_file.replace("lora_te1_", "lora_te_", 1) for t in targets if t.part == "text_encoder"}
    first |= {name.replace("lora_te_", "lora_te1_", 1) for name in first}
    return {t.in_file for t in targets} | first, {t.in_diffusers for t in targets}
