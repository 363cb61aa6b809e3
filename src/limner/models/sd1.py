"""Stable Diffusion 1: CLIP-L for the text."""

from __future__ import annotations

from limner.models.encoders import clip_l
from limner.models.stable_diffusion import StableDiffusion


class StableDiffusion1(StableDiffusion):
    """The family `sd1`."""

    text_parts = (clip_l("CLIPTextModel", "lora_te"),)
