"""[memory]: what is kept, what is computed again, what is stored on disk."""

from __future__ import annotations

from limner.config.base import FilePath, Section, option


class Memory(Section):
    """What to keep in memory, and what to compute once and keep on disk."""

    checkpointing: bool = option(False, kohya="gradient_checkpointing")
    """Compute activations again in the backward pass instead of keeping them: less memory, about a third slower."""

    cache_latents: bool = option(True, kohya="cache_latents_to_disk")
    """Encode each picture once and keep the result on disk."""

    cache_text: bool = option(True, kohya="cache_text_encoder_outputs", when="not adapter.text_encoder")
    """Encode each caption once and keep the result on disk. Not possible while the text encoder is trained."""

    cache_path: FilePath | None = option(None, advanced=True)
    """Folder of the caches. In Limner's home when not given."""
