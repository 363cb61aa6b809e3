"""The model that a LoRA file is for, at its full size and without memory; and its layers found under any trainer's names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from limner.adapters.stacks import layer_name
from limner.errors import wrong
from limner.formats.header import Header
from limner.formats.known import FAMILIES
from limner.formats.lora_file import family_of_lora
from limner.formats.lora_names import layer_and_tensor
from limner.models import family as families
from limner.models.family import Keep, Target
from limner.tools.outline import usual

T = TypeVar("T")
_SD3_LARGE = 2432
_VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "": {},
    "3.5 large": {"transformer": {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": _SD3_LARGE}},
    "3.5 medium": {"transformer": {"dual_attention_layers": tuple(range(13))}},
}
"""How Stable Diffusion 3's variants differ from 3 medium."""


def model_of(header: Header, given: str | None, config: Path | None, tool: str) -> Any:
    """The family, its denoiser and CLIPs on the meta device. Raises UserError, under the tool's options, if it is unclear."""
    name = given or family_of_lora(header)
    if name is None:
        said = "cannot be told from the names and widths of its layers."
        raise wrong(f"{tool}.family", said, f"Set it to one of {', '.join(FAMILIES)}, if it is for one of these.")
    known = FAMILIES[name]
    if config is not None and not (config / known.denoiser / "config.json").is_file():
        said = f"{config} does not describe a model of {known.title}."
        raise wrong(f"{tool}.config", said, "Give the diffusers folder of the model that the LoRA is for.")
    return _made(name, config, _variant(header) if name == "sd3" and config is None else "")


@lru_cache(maxsize=2)  # asked for the names, and again for the numbers
def _made(name: str, config: Path | None, variant: str) -> Any:
    known = FAMILIES[name]
    t5 = tuple(part for part, stored in known.parts.items() if stored.option == "t5")
    base = replace(usual(name, config), described=_VARIANTS[variant], absent=t5)
    family: Any = families.make(base, Keep())
    parts = family.empty()
    family.denoiser = parts.pop(known.denoiser)
    family.text_encoders |= {name: part for name, part in parts.items() if name != "vae"}
    return family


def _variant(header: Header) -> str:
    """Which Stable Diffusion 3 it is for; only 3.5 medium attends twice."""
    if any(i.shape[1] == _SD3_LARGE for n, i in header.tensors.items() if "blocks" in n and len(i.shape) == 2):
        return "3.5 large"
    return "3.5 medium" if any("attn2" in name for name in header.tensors) else ""


def under_our_names(state: Mapping[str, T], targets: Sequence[Target]) -> dict[str, T]:
    """A file's tensors as `<layer, as adapters call it>.<tensor>`; layers that a file stacks still under the stack's name, and
    what belongs to no layer under its own."""
    known = {t.in_file: t.in_file for t in targets}
    for t in targets:
        path = t.in_diffusers.partition(".")[2].replace(".", "_")
        is_denoiser = t.part == "denoiser"
        for alias in (t.in_diffusers, f"lora_unet_{path}" if is_denoiser else f"lora_te_{path}"):
            if is_denoiser or t.part == "text_encoder" or alias == t.in_diffusers:
                known.setdefault(alias, layer_name(t))
    out = dict[str, T]()
    for name, tensor in state.items():
        layer, kind = layer_and_tensor(name)
        flat = re.sub(r"^diffusion_model_", "lora_unet_", layer.replace(".", "_"))
        found = known.get(layer) or known.get(flat)
        out[f"{found}.{kind}" if found else name] = tensor
    return out
