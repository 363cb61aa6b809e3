"""Decode pictures and bring them to their bucket's size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from limner.data import masks
from limner.data.buckets import Fit
from limner.data.decode import decode
from limner.data.looks import PLAIN, Look, colour_matrix


def load(path: str | Path, fit: Fit, look: Look = PLAIN) -> Tensor:
    """The picture as pixels (3, H, W) in [-1, 1], upright, resized (Lanczos), cut, coloured and mirrored as `look` says.

    Raises UserError for a picture that does not open.
    """
    picture = decode(path, least=fit.resized)
    picture = picture.resize(_covering(picture, fit), Image.Resampling.LANCZOS)
    array = np.asarray(_cut(picture, fit, look), dtype=np.float32)
    pixels = torch.from_numpy(array / 127.5 - 1.0).permute(2, 0, 1).contiguous()
    return pixels if look.colour is None else _coloured(pixels, look.colour)


def load_mask(mask: str, path: str, fit: Fit, look: Look = PLAIN) -> Tensor | None:
    """The mask of the picture at `path` (1, H, W) in 0..1, brought along the same way; None where there is nothing to mask."""
    picture = masks.opened(mask, path)
    if picture is None:
        return None
    picture = picture.resize(_covering(picture, fit), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(_cut(picture, fit, look), dtype=np.float32) / 255.0)[None].contiguous()


def _cut(picture: Image.Image, fit: Fit, look: Look) -> Image.Image:
    left, top = look.cut(fit.bucket, picture.size)
    picture = picture.crop((left, top, left + fit.bucket[0], top + fit.bucket[1]))
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if look.mirrored else picture


def _coloured(pixels: Tensor, colour: tuple[float, float, float]) -> Tensor:
    matrix = torch.tensor(colour_matrix(*colour), dtype=torch.float32)
    return (torch.einsum("ij,jhw->ihw", matrix, pixels + 1) - 1).clamp(-1, 1)


def _covering(picture: Image.Image, fit: Fit) -> tuple[int, int]:
    """The planned size, or, should the picture have been turned since its header was read, one that covers the bucket."""
    planned = fit.resized[0] / fit.resized[1]
    if abs(picture.width / picture.height / planned - 1) < 0.1:
        return fit.resized
    scale = max(fit.resized[0] / picture.width, fit.resized[1] / picture.height)
    return max(fit.resized[0], round(picture.width * scale)), max(fit.resized[1], round(picture.height * scale))
