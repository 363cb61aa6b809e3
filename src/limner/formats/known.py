"""What is known of each family before any file is opened: what is usual in it, and how its parts lie in files. No torch."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from limner.formats.original import OPEN_TEXT, SDXL_OPEN_TEXT, SDXL_TEXT, TEXT, UNET, VAE

Prediction = Literal["epsilon", "v_prediction", "flow"]


@dataclass(frozen=True)
class Stored:
    """How one part of a model lies in files."""

    title: str
    marker: str
    """A tensor, at least two-dimensional, that it always has."""
    prefixes: tuple[str, ...]
    """The first words of its tensors' names in a single file, the usual ones first; "" where a file holds nothing else."""
    count: int = 0
    """How many tensors it has at least; 0 where it depends on the variant."""
    option: str = ""
    """The option of [model] that names a file of its own."""
    shape: tuple[int, int] | None = None
    """The marker's first two dimensions, by which such a file is known when it is looked for. None: it is not looked for."""
    is_optional: bool = False
    """Whether the model works without."""
    is_apart: bool = False
    """Whether whole models in a single file leave it to a file of its own."""

    def prefix_in(self, names: Container[str]) -> str | None:
        """The first words of its names in a single file with these names, None if it is not in it."""
        return next((p for p in self.prefixes if p + self.marker in names), None)


@dataclass(frozen=True)
class Known:
    """A family."""

    title: str
    prediction: Prediction
    """What is usual, where files do not say it; so with the next two."""
    resolution_px: int
    bucket_step_px: int
    parts: Mapping[str, Stored]
    """By their folders in a diffusers model: the denoiser, the VAE, the text encoders."""
    text_width: int = 0
    """Numbers for each token that the UNet attends to, by which single files are told; 0 if it is no UNet."""
    skips_layers: bool = False
    """Whether it is for `model.clip_skip` to say which of CLIP's layers is attended to."""

    @property
    def denoiser(self) -> str:
        return next(iter(self.parts))


_CLIP = "text_model.embeddings.token_embedding.weight"
_VAE = Stored("VAE", "decoder.conv_in.weight", (VAE, ""), 248, "vae")
_VAE_16 = Stored("VAE", "decoder.conv_in.weight", (VAE, "vae.", ""), 244, "vae", (512, 16))


def _unet(count: int) -> Stored:
    return Stored("UNet", "input_blocks.0.0.weight", (UNET,), count)


def _transformer(marker: str, *prefixes: str) -> Stored:
    return Stored("transformer", marker, prefixes)


def _text(title: str, name: str, marker: str, shape: tuple[int, int], count: int, *, is_optional: bool) -> Stored:
    prefixes = (f"text_encoders.{name}.transformer.", "")
    return Stored(title, marker, prefixes, count, name.removesuffix("xxl"), shape, is_optional, is_apart=not is_optional)


FAMILIES: Mapping[str, Known] = {
    "sd1": Known(
        "Stable Diffusion 1", "epsilon", 512, 64,
        {"unet": _unet(686), "vae": _VAE, "text_encoder": Stored("text encoder", _CLIP, (TEXT,), 196)}, 768,
        skips_layers=True,
    ),
    "sd2": Known(
        "Stable Diffusion 2", "v_prediction", 768, 64,
        {"unet": _unet(686), "vae": _VAE, "text_encoder": Stored("text encoder", "token_embedding.weight", (OPEN_TEXT,), 280)},
        1024, skips_layers=True,
    ),
    "sdxl": Known(
        "Stable Diffusion XL", "epsilon", 1024, 32,
        {
            "unet": _unet(1680),
            "vae": _VAE,
            "text_encoder": Stored("text encoder", _CLIP, (SDXL_TEXT,), 196),
            "text_encoder_2": Stored("text encoder 2", "token_embedding.weight", (SDXL_OPEN_TEXT,), 389),
        },
        2048,
    ),
    "sd3": Known(
        "Stable Diffusion 3", "flow", 1024, 16,
        {
            "transformer": _transformer("joint_blocks.0.x_block.attn.qkv.weight", UNET, ""),
            "vae": _VAE_16,
            "text_encoder": _text("CLIP-L", "clip_l", _CLIP, (49408, 768), 196, is_optional=True),
            "text_encoder_2": _text("CLIP-G", "clip_g", _CLIP, (49408, 1280), 517, is_optional=True),
            "text_encoder_3": _text("T5", "t5xxl", "shared.weight", (32128, 4096), 219, is_optional=True),
        },
    ),
    "flux": Known(
        "Flux.1", "flow", 1024, 16,
        {
            "transformer": _transformer("double_blocks.0.img_attn.qkv.weight", "", UNET),
            "vae": replace(_VAE_16, is_apart=True),
            "text_encoder": _text("CLIP-L", "clip_l", _CLIP, (49408, 768), 196, is_optional=False),
            "text_encoder_2": _text("T5", "t5xxl", "shared.weight", (32128, 4096), 219, is_optional=False),
        },
    ),
}  # fmt: skip

_SCALES = (".scale_weight", ".scale_input", ".weight_scale", ".input_scale", ".comfy_quant", "scaled_fp8")


def is_scale(name: str) -> bool:
    """Whether a tensor says how numbers were scaled to fit into 8 bits."""
    return name.endswith(_SCALES)
