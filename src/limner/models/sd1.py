"""Stable Diffusion 1: CLIP-L for the text."""

from __future__ import annotations

from functools import partial

from transformers import CLIPTextModel

from limner.formats.original import text_names
from limner.models.parts import TextEncoder
from limner.models.stable_diffusion import StableDiffusion
from limner.models.text import END, load_tokenizer

_TOKENIZER = partial(load_tokenizer, pad=END)


class StableDiffusion1(StableDiffusion):
    """The family `sd1`."""

    text_parts = (TextEncoder("text_encoder", "tokenizer", CLIPTextModel, _TOKENIZER, text_names, "lora_te"),)
