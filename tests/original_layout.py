"""A second opinion on the original layouts: tiny models' tensors as they stand in the files that people have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from limner.formats import flux, openclip, original, sd3
from limner.formats.layout import Names, There

_UNET = {"unet": (original.UNET, original.unet_names), "vae": (original.VAE, original.vae_names)}
_CLIP_3, _T5_3 = ("text_encoders.clip_l.transformer.", original.text_names), "text_encoders.t5xxl.transformer."
LAYOUTS: dict[str, dict[str, tuple[str, Names]]] = {
    "sd1": _UNET | {"text_encoder": (original.TEXT, original.text_names)},
    "sd2": _UNET | {"text_encoder": (original.OPEN_TEXT, openclip.openclip_names)},
    "sdxl": _UNET
    | {
        "text_encoder": (original.SDXL_TEXT, original.text_names),
        "text_encoder_2": (original.SDXL_OPEN_TEXT, openclip.openclip_names),
    },
    "sd3": {
        "transformer": (original.UNET, sd3.transformer_names),
        "vae": (original.VAE, original.vae_names),
        "text_encoder": _CLIP_3,
        "text_encoder_2": ("text_encoders.clip_g.transformer.", original.text_names),
        "text_encoder_3": (_T5_3, lambda names: {n: There(n) for n in names}),
    },
    "flux": {
        "transformer": (original.UNET, flux.transformer_names),
        "vae": ("vae.", original.vae_names),
        "text_encoder": _CLIP_3,
        "text_encoder_2": (_T5_3, lambda names: {n: There(n) for n in names}),
    },
}
"""How all parts of a family lie in one file: part -> (the first words of its names, the rule of the rest)."""


def as_file(
    family: str, states: Mapping[str, Mapping[str, Tensor]], laid: Mapping[str, str] | None = None
) -> dict[str, Tensor]:
    """The tensors of a family's parts in the original layout, behind the usual prefixes or those of `laid`."""
    state: dict[str, Tensor] = {}
    for part, (usual, rule) in LAYOUTS[family].items():
        if part not in states:
            continue
        prefix = usual if laid is None else laid[part]
        for name, place in rule(states[part]).items():
            there, value = prefix + place.name, states[part][name]
            if place.lies == "transposed":
                value = value.T
            elif place.lies == "pointwise" and value.ndim == 2:
                value = value[:, :, None, None]
            elif place.lies == "swapped":
                half = len(value) // 2
                value = torch.cat([value[half:], value[:half]])
            state[there] = torch.cat([state[there], value]) if there in state else value
    return {k: v.contiguous() for k, v in state.items()}


def in_folder(folder: Path, family: str) -> dict[str, dict[str, Tensor]]:
    """The tensors of a diffusers folder, part by part."""
    parts = LAYOUTS[family]
    return {part: load_file(next((folder / part).glob("*.safetensors"))) for part in parts}


def as_single_file(folder: Path, family: str) -> dict[str, Tensor]:
    """A diffusers folder's tensors in the original layout."""
    return as_file(family, in_folder(folder, family))
