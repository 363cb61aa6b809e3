"""The protocol that every model family fills, and the table of families.

A family knows how its parts are loaded, what its text becomes, what its denoiser is asked, and which of its layers can be
adapted. It knows nothing of data, adapters, optimisers or runs.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from limner.diffusion.process import Discrete, Flow
from limner.formats.ahead import Ahead
from limner.formats.base import Base
from limner.models.quantized import Kind
from limner.models.words import Words

Part = Literal["text", "vae", "denoiser"]
Conditioning = dict[str, Tensor]
"""What captions become: tensors whose first dimension is the batch. Cacheable as it is. Before it is given to `predict`, the
engine adds `geometry` (B, 6), in px: the picture's height and width, top and left of the cut, the bucket's height and width;
and `guidance` (B,), what a denoiser that takes it is told."""


@dataclass(frozen=True)
class Target:
    """A layer that an adapter may change: a Linear or a Conv2d."""

    part: str
    """ "denoiser", or the name of a text encoder."""
    name: str
    in_file: str
    """Its name in a LoRA file, as kohya's."""
    piece: str
    """"0", "1", ...: which it is of the layers that the file has under this name as one, their outputs behind each other;
    "swapped": the file has the halves of its outputs the other way round."""
    in_diffusers: str
    """Its name in a LoRA file, as diffusers'."""
    module: nn.Module
    is_spatial: bool
    """A convolution that looks at more than one point (3x3)."""


@dataclass(frozen=True)
class Keep:
    """How a family keeps its parts in memory."""

    quantize: Kind | Literal["off"] = "off"
    """Of the denoiser's frozen layers."""
    swap_blocks: int = 0
    """How many of the denoiser's last blocks are on the device only while they are used."""
    checkpoint_every: int = 1
    vae_dtype: torch.dtype = torch.float32
    vae_tiling: bool = False
    channels_last: bool = False
    """The denoiser's and the VAE's convolutions have their channels side by side in memory."""


class Family(Protocol):
    """A model, part by part, so that memory can be used in phases. Parts are loaded frozen and in eval mode."""

    base: Base
    keep: Keep
    process: Discrete | Flow
    scheduler: dict
    device: torch.device
    """Where parts were loaded to last."""
    denoiser: nn.Module
    text_encoders: dict[str, nn.Module]
    trainable_text: Sequence[str]
    """Those of them that can be trained: T5 is not."""
    tokenizers: Mapping[str, Any]
    """Of each text encoder, loaded or not."""
    words: Words
    """What captions and prompts may hold besides the tokenizers' own words, where the denoiser attends to CLIP."""

    def load(self, part: Part, dtype: torch.dtype, device: torch.device) -> None:
        """Bring a part into memory, as `keep` has it. Raises UserError if its file does not hold what it should."""
        ...

    def free(self, part: Part) -> None:
        """Forget a part."""
        ...

    def has(self, part: Part) -> bool:
        """Whether a part is in memory."""
        ...

    def part_files(self, part: Part) -> list[Path]:
        """The files that decide what a part computes: what caches of its results depend on."""
        ...

    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, H, W) in [-1, 1] -> scaled mean and deviation of the posterior, each (B, C, H/f, W/f)."""
        ...

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Scaled latents -> pixels (B, 3, H, W) in [-1, 1], not clamped."""
        ...

    def encode_captions(self, captions: Sequence[str]) -> Conditioning:
        """Plain text, or with weights if the base says so, in as many chunks as it says; what does not fit is cut off."""
        ...

    def encode_prompt(self, prompt: str, negative: str) -> tuple[Conditioning, Conditioning]:
        """What a prompt and its negative prompt become, each a batch of one, both with equally many tokens.

        Where the denoiser attends to CLIP they have weights (see `models.emphasis`) and may be of any length.
        """
        ...

    def is_too_long(self, caption: str) -> bool:
        """Whether the end of a caption does not fit into the text encoder and is cut off."""
        ...

    def predict(self, noisy: Tensor, timesteps: Tensor, cond: Conditioning) -> Tensor:
        """The denoiser's prediction, of `noisy`'s shape."""
        ...

    def blocks_of(self, denoiser: Any) -> list[nn.Module]:
        """Those modules of a denoiser that are computed again, swapped or compiled as a whole, in order of use."""
        ...

    def enable_checkpointing(self, *, text: bool) -> None:
        """Compute activations again in the backward pass: in the denoiser, and in the text encoders if asked."""
        ...

    def adapter_targets(self, convolutions: bool) -> list[Target]:
        """The layers of the loaded parts that adapters change; with the 3x3 convolutions if asked (LoCon)."""
        ...

    def save(self, path: Path, dtype: torch.dtype) -> None:
        """Write the whole model as a diffusers folder."""
        ...

    def save_file(self, path: Path, dtype: torch.dtype, metadata: dict[str, str]) -> None:
        """Write the whole model as a single file in the family's original layout; what its source held besides is kept."""
        ...


FAMILIES: dict[str, str] = {
    "sd1": "limner.models.sd1:StableDiffusion1",
    "sd2": "limner.models.sd2:StableDiffusion2",
    "sdxl": "limner.models.sdxl:StableDiffusionXL",
    "sd3": "limner.models.sd3:StableDiffusion3",
    "flux": "limner.models.flux:Flux",
}
"""Family -> where its class is. Names and not classes, so that the table costs no import."""


def make(base: Base, keep: Keep = Keep(), ahead: Ahead | None = None) -> Family:
    """The family of a recognised base model, nothing loaded yet; of the denoiser some weights may be `ahead`."""
    module, _, name = FAMILIES[base.family].partition(":")
    return getattr(importlib.import_module(module), name)(base, keep, ahead)
