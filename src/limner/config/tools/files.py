"""[inspect], [convert], [metadata]: tools for single files, models and LoRAs alike."""

from __future__ import annotations

from typing import ClassVar, Literal

from limner.config.base import FilePath, Text, Texts, option
from limner.config.tools.base import ToolSection, Writing

FamilyName = Literal["sd1", "sd2", "sdxl", "sd3", "flux"]


class Inspect(ToolSection):
    """Say what a LoRA or a model file is, what it was trained with, whether its numbers are sound, and which programs load it.
    Writes nothing."""

    title: ClassVar[str] = "Inspect a file"
    group: ClassVar[str] = "Files"
    done_by: ClassVar[str] = "inspect"

    file: FilePath = option(kohya="lora_model")
    """The file: a LoRA or LyCORIS file, an embedding, or a model (.safetensors, .ckpt, .pt). Nothing in it is run."""

    family: FamilyName | None = option(None)
    """The family that a LoRA is for, where its layers do not tell."""

    config: FilePath | None = option(None, advanced=True)
    """A diffusers folder whose configuration files describe the model that the LoRA is for, if it is of unusual shape."""

    as_json: bool = option(False, advanced=True)
    """Say it as JSON, with every layer and all of the metadata, for other programs."""


class Convert(Writing):
    """Write a model or a LoRA anew: single file or diffusers folder, kohya's or diffusers' names, another precision, .ckpt as
    .safetensors, or one part alone. The source stays as it is."""

    title: ClassVar[str] = "Convert"
    group: ClassVar[str] = "Files"
    done_by: ClassVar[str] = "convert"

    file: FilePath = option(kohya="source_model_input")
    """What is converted: a LoRA, a model in a single file (.safetensors, .ckpt, .pt) or a diffusers folder."""

    output: FilePath = option(kohya="target_model_folder_input")
    """What is written: a .safetensors file, or for a diffusers model a folder."""

    layout: Literal["same", "original", "diffusers"] = option("same", kohya="target_model_type")
    """The form: as the source has it; original, a single file as ComfyUI and A1111 read it, of a LoRA kohya's names; or
    diffusers, a folder, of a LoRA diffusers' and PEFT's names."""

    dtype: Literal["keep", "fp32", "fp16", "bf16"] = option("keep", kohya="target_save_precision_type")
    """Precision of the numbers."""

    part: Literal["all", "denoiser", "vae"] = option("all")
    """Of a model all of it, or one part alone: the UNet or transformer, or the VAE."""

    ema: Literal["drop", "use", "keep"] = option("drop", advanced=True)
    """What becomes of the averaged weights (EMA) that some training checkpoints hold a second time: left out; put in the place
    of the others; or copied as they are, which only an original layout can."""

    alpha: Literal["fold", "keep"] = option("fold", advanced=True)
    """Of a LoRA that gets diffusers' names, which have no place for alpha: multiplied into the weights, which is right in every
    program; or kept as a note in the metadata, as diffusers does it itself, with the weights as they were. Only diffusers
    (from 0.34) heeds the note."""

    family: FamilyName | None = option(None, advanced=True)
    """The family that a LoRA is for, where its layers do not tell."""

    config: FilePath | None = option(None, advanced=True)
    """A diffusers folder whose configuration files describe a single file, or a LoRA's model, of unusual shape."""

    vae: FilePath | None = option(None, advanced=True)
    """The VAE, if the model has it in a file of its own. Looked for beside the model when not given; so with the next three."""

    clip_l: FilePath | None = option(None, advanced=True)
    """CLIP-L, if in a file of its own (Stable Diffusion 3, Flux.1)."""

    clip_g: FilePath | None = option(None, advanced=True)
    """CLIP-G, if in a file of its own (Stable Diffusion 3)."""

    t5: FilePath | None = option(None, advanced=True)
    """T5-XXL, if in a file of its own (Stable Diffusion 3, Flux.1)."""

    t5_tokenizer: FilePath | None = option(None, advanced=True)
    """T5's tokenizer.json, which a diffusers folder with a T5 needs, or the folder that it lies in."""


class Metadata(Writing):
    """Show or change what a safetensors file says about itself. Its tensors are copied byte by byte, so their hash stays."""

    title: ClassVar[str] = "Edit metadata"
    group: ClassVar[str] = "Files"
    done_by: ClassVar[str] = "metadata"

    file: FilePath = option()
    """A .safetensors file."""

    output: FilePath | None = option(None)
    """The file to write. When not given the file itself is changed, for which overwrite has to be set. If there is nothing to
    change, the metadata are shown."""

    name: Text | None = option(None, kohya="metadata_title")
    """Its title."""

    author: Text | None = option(None, kohya="metadata_author")
    """Who made it."""

    license: Text | None = option(None, kohya="metadata_license")
    """Its license."""

    description: Text | None = option(None, kohya="metadata_description")
    """What it is."""

    tags: Text | None = option(None, kohya="metadata_tags")
    """Its tags, parted by commas."""

    trigger: Text | None = option(None, kohya="metadata_trigger_phrase")
    """The words that call what it was taught."""

    usage: Text | None = option(None, kohya="metadata_usage_hint")
    """How to use it."""

    thumbnail: FilePath | None = option(None, kohya="metadata_thumbnail")
    """A picture that is put into the file, 256 px on its longest side."""

    set: Texts = option((), advanced=True)
    """Any other keys: "key=value"."""

    remove: Texts = option((), advanced=True)
    """Keys that are removed; with * for any letters: "ss_*"."""

    full: bool = option(False, advanced=True)
    """Show long values whole."""
