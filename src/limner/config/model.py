"""[model]: which model is taught."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from limner.config.base import FilePath, Section, Text, Texts, files_with_strengths, option


class Model(Section):
    """The base model that is taught."""

    base: Text = option("pocket", kohya="pretrained_model_name_or_path", files=True)
    """The base model: a diffusers folder, a .safetensors or .ckpt file, a Hugging Face id (owner/name), or "pocket" for the
    small model that ships with Limner."""

    family: Literal["sd1", "sd2", "sdxl", "sd3", "flux"] | None = option(None)
    """The family of the base model. Recognised from the file when not given."""

    vae: FilePath | None = option(None, kohya="vae", advanced=True)
    """A VAE in a file of its own, in place of the model's (.safetensors; for Flux.1 usually ae.safetensors). Files of
    Stable Diffusion 3 and Flux.1 that hold only the transformer need one: it is looked for beside the model when not given,
    and where ComfyUI keeps it."""

    clip_l: FilePath | None = option(None, kohya="clip_l", advanced=True)
    """CLIP-L in a file of its own (Stable Diffusion 3, Flux.1). Looked for like the VAE."""

    clip_g: FilePath | None = option(None, kohya="clip_g", advanced=True)
    """CLIP-G in a file of its own (Stable Diffusion 3). Looked for like the VAE."""

    t5: FilePath | None = option(None, kohya="t5xxl", advanced=True)
    """T5-XXL in a file of its own (Stable Diffusion 3, Flux.1). Looked for like the VAE."""

    t5_tokenizer: FilePath | None = option(None, advanced=True)
    """T5's tokenizer.json, or the folder that it lies in. When not given: what lies in the model or beside T5; else it is
    fetched from the Hugging Face hub."""

    clip_skip: int | None = option(None, ge=1, le=12, kohya="clip_skip", advanced=True)
    """Which of CLIP's layers the model attends to, counted from the end: 1 is the last, 2 the one before. Usually 1; models
    that were taught with 2 (many of those for anime) want 2. Stable Diffusion 2 counts from the last layer that it has: it was
    made without CLIP's very last, so 1 is right there. Without effect for Stable Diffusion XL and 3 and Flux.1."""

    text_chunks: int = option(1, ge=1, le=10, kohya="max_token_length", advanced=True)
    """How many chunks of 75 tokens a caption is read in: 3 for captions of up to 225 tokens (kohya's max_token_length), about
    170 words. What does not fit is cut off. Stable Diffusion 1, 2 and XL; prompts are never cut."""

    merge: Texts = option((), kohya="base_weights", advanced=True, files=True)
    """LoRA files that are merged into the model before it is taught, each alone or with its strength: "style.safetensors @
    0.8"."""

    revision: Text | None = option(None, advanced=True)
    """Branch, tag or commit of a Hugging Face id."""

    config: FilePath | None = option(None, advanced=True)
    """A diffusers folder whose configuration files describe a single-file model of unusual shape."""


def merges(model: Model) -> list[tuple[Path, float]]:
    """The files of model.merge and their strengths. Raises UserError with all faults."""
    return files_with_strengths(model.merge, "model.merge")
