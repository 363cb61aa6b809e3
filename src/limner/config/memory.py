"""[memory]: what is kept, what is computed again, what is stored on disk."""

from __future__ import annotations

from typing import Literal

from limner.config.base import FilePath, Section, option


class Memory(Section):
    """What to keep in memory, and what to compute once and keep on disk."""

    fit: Literal["off", "auto"] = option("off")
    """auto: before the start, and again should memory run out, choose the fastest way in which the run fits into memory, from
    the options below that are left as they are. The log says what was chosen and why."""

    checkpointing: bool = option(False, kohya="gradient_checkpointing")
    """Compute activations again in the backward pass instead of keeping them: less memory, about a third slower."""

    checkpoint_every: int = option(1, ge=1, le=1000, advanced=True, when="memory.checkpointing")
    """Compute only every so many-th layer again, and keep the activations of the others: less is saved, less time is lost."""

    micro_batch: int | None = option(None, ge=1, le=4096, advanced=True)
    """Compute a batch in pieces of at most so many pictures: less memory, and what is learnt is the same. The whole batch at
    once when not given."""

    quantize: Literal["off", "fp8", "int8", "nf4"] = option("off", kohya="fp8_base", advanced=True)
    """Store the denoiser's frozen layers in 8 bits (fp8, int8) or in 4 (nf4): half or a quarter of the memory of bf16. A LoRA
    learns beside them all the same, a little less exactly."""

    swap_blocks: int = option(0, ge=0, le=200, kohya="blocks_to_swap", advanced=True)
    """Keep so many of the denoiser's last blocks in the computer's memory and bring each to the device when its turn comes:
    slower, but a large model fits a small GPU. Needs memory.checkpointing."""

    vae_dtype: Literal["fp32", "fp16", "bf16"] = option("fp32", kohya="no_half_vae", advanced=True)
    """Precision of the VAE. SDXL's first VAE makes no numbers in fp16."""

    vae_tiling: bool = option(False, advanced=True)
    """Encode and decode large pictures in tiles: less memory, faintly other colours from tile to tile."""

    cache_latents: bool = option(True, kohya="cache_latents_to_disk")
    """Encode each picture once and keep the result on disk."""

    cache_text: bool = option(True, kohya="cache_text_encoder_outputs", when="not adapter.text_encoder")
    """Encode each caption once and keep the result on disk. Not possible while the text encoder is trained."""

    verify: bool = option(False, advanced=True)
    """Read every picture, model file and stored result again at the start. Without, a file whose size, time and inode are
    those of the last look counts as unchanged, and what is stored is checked when it is used."""

    cache_path: FilePath | None = option(None, advanced=True)
    """Folder of the caches. In Limner's home when not given."""
