"""Decode pictures and bring them to their bucket's size."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from limner.data.buckets import Fit
from limner.data.scan import MAX_PIXELS
from limner.errors import wrong

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # Image.open would start other programs for some formats


def load(path: str | Path, fit: Fit) -> Tensor:
    """The picture as pixels (3, H, W) in [-1, 1], upright, resized (Lanczos) and cut from the centre.

    Transparency is laid on white. Raises UserError for a picture that does not open.
    """
    try:
        with Image.open(path, formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise wrong(str(path), f"is {opened.width} x {opened.height}, too large.", "Make it smaller or remove it.")
            opened.draft("RGB", fit.resized)  # a JPEG decodes at a half, quarter or eighth of its size if that suffices
            picture = _to_rgb(ImageOps.exif_transpose(opened))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, EOFError, ArithmeticError, struct.error) as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise wrong(str(path), f"does not open ({reason}).", "Replace or remove it, or set data.skip_broken = true.") from None
    picture = picture.resize(_covering(picture, fit), Image.Resampling.LANCZOS)
    left, top = Fit(fit.bucket, picture.size).crop
    picture = picture.crop((left, top, left + fit.bucket[0], top + fit.bucket[1]))
    array = np.asarray(picture, dtype=np.float32)
    return torch.from_numpy(array / 127.5 - 1.0).permute(2, 0, 1).contiguous()


def _covering(picture: Image.Image, fit: Fit) -> tuple[int, int]:
    """The planned size, or, should the picture have been turned since its header was read, one that covers the bucket."""
    planned = fit.resized[0] / fit.resized[1]
    if abs(picture.width / picture.height / planned - 1) < 0.1:
        return fit.resized
    scale = max(fit.resized[0] / picture.width, fit.resized[1] / picture.height)
    return max(fit.resized[0], round(picture.width * scale)), max(fit.resized[1], round(picture.height * scale))


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16") or picture.mode == "I":
        # 16-bit greys: Pillow's own conversion clips at 255 instead of scaling
        return Image.fromarray((np.asarray(picture, dtype=np.float64) / 257).clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, picture).convert("RGB")
    return picture.convert("RGB")
