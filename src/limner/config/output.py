"""[output]: what is written, where, and what it says about itself."""

from __future__ import annotations

from typing import Literal

from limner.config.base import FilePath, Section, Text, Texts, option

_FILE = "not adapter.kind = none or output.layout = original"  # a diffusers folder has no place for these


class Output(Section):
    """Checkpoints, training states and the file's metadata."""

    name: Text = option("limner", kohya="output_name")
    """Name of the file that is made, without ending."""

    path: FilePath | None = option(None, kohya="output_dir")
    """Folder for the finished files. The run's own folder when not given."""

    save_every_steps: int | None = option(None, ge=1, le=10_000_000, kohya="save_every_n_steps")
    """Save a checkpoint (weights to use) every so many steps, besides the last one."""

    save_every_epochs: int | None = option(None, ge=1, le=100_000, kohya="save_every_n_epochs")
    """Save a checkpoint every so many epochs."""

    keep_last: int | None = option(None, ge=1, le=100_000, when="output.save_every_steps or output.save_every_epochs")
    """Keep only this many of the checkpoints saved on the way. All when not given."""

    state_every_steps: int = option(100, ge=1, le=10_000_000, kohya="save_state")
    """Save the training state (to resume from) every so many steps, besides at every checkpoint and stop. The newest two
    are kept."""

    dtype: Literal["fp32", "fp16", "bf16"] = option("fp16", kohya="save_precision")
    """Precision of the numbers in the file."""

    lora_names: Literal["kohya", "diffusers"] = option("kohya", when="not adapter.kind = none and not adapter.kind = embedding")
    """What the layers are called in a LoRA file: as kohya's trainer has it, which ComfyUI, A1111 and diffusers read, or as
    diffusers and PEFT do themselves."""

    layout: Literal["original", "diffusers"] = option("original", kohya="save_model_as", when="adapter.kind = none")
    """How a whole model is written: as the single file that ComfyUI and A1111 read, or as a diffusers folder."""

    title: Text | None = option(None, kohya="metadata_title", when=_FILE)
    """Title in the file's metadata. The name when not given."""

    author: Text | None = option(None, kohya="metadata_author", when=_FILE)
    """Author in the file's metadata."""

    description: Text | None = option(None, kohya="metadata_description", when=_FILE)
    """Description in the file's metadata."""

    license: Text | None = option(None, kohya="metadata_license", when=_FILE)
    """License in the file's metadata."""

    tags: Texts = option((), kohya="metadata_tags", when=_FILE)
    """Tags in the file's metadata."""
