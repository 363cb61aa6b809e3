"""Embedding files (textual inversion) as A1111, ComfyUI and diffusers read them: tensors (vectors, width) for each encoder. No
torch.

One encoder: `emb_params`. Stable Diffusion XL: `clip_l` and `clip_g`. What a file calls its word is its own name, there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from limner.errors import wrong

_NAMES = {1: ("emb_params",), 2: ("clip_l", "clip_g")}

T = TypeVar("T")


def file_name(name: str) -> str:
    """The file of an embedding that was learnt beside something else, whose checkpoint is called `name`."""
    return f"{name.removesuffix('.safetensors')}_embedding.safetensors"


def named(encoders: Mapping[str, T]) -> dict[str, T]:
    """A file's tensors from those of the family's text encoders, in the family's order."""
    return dict(zip(_NAMES[len(encoders)], encoders.values(), strict=True))


def by_encoder(tensors: Mapping[str, T], encoders: Sequence[str], where: str) -> dict[str, T]:
    """The inverse of `named`. Raises UserError (under `where`) if the file has other tensors."""
    names = _NAMES[len(encoders)]
    if len(names) == 1 and len(tensors) == 1:
        return dict(zip(encoders, tensors.values(), strict=True))  # diffusers calls it as its word
    if tensors.keys() != set(names):
        needed = " and ".join(names)
        raise wrong(where, f"this model needs {needed}, the file holds others.", "Give an embedding for this kind of model.")
    return {encoder: tensors[name] for encoder, name in zip(encoders, names, strict=True)}
