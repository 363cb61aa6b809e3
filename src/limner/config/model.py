"""[model]: which model is taught."""

from __future__ import annotations

from typing import Literal

from limner.config.base import FilePath, Section, Text, option


class Model(Section):
    """The base model that is taught."""

    base: Text = option("pocket", kohya="pretrained_model_name_or_path")
    """The base model: a diffusers folder, a .safetensors file, a Hugging Face id (owner/name), or "pocket" for the small
    model that ships with Limner."""

    family: Literal["sd1", "sd2", "sdxl", "sd3", "flux"] | None = option(None)
    """The family of the base model. Recognised from the file when not given."""

    revision: Text | None = option(None, advanced=True)
    """Branch, tag or commit of a Hugging Face id."""

    config: FilePath | None = option(None, advanced=True)
    """A diffusers folder whose configuration files describe a single-file model of unusual shape."""
