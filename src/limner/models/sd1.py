"""Stable Diffusion 1: a UNet that predicts noise, CLIP-L for the text."""

from __future__ import annotations

from transformers import CLIPTextModel

from limner.formats.original import text_names
from limner.models.stable_diffusion import StableDiffusion, TextEncoder
from limner.models.text import END


class StableDiffusion1(StableDiffusion):
    """The family `sd1`."""

    pipeline = "StableDiffusionPipeline"
    text_parts = (TextEncoder("text_encoder", "tokenizer", CLIPTextModel, text_names, END, "lora_te"),)
