"""Decode pictures and bring them to their bucket's size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from limner.data.buckets import Fit
from limner.data.decode import decode


def load(path: str | Path, fit: Fit) -> Tensor:
    """The picture as pixels (3, H, W) in [-1, 1], upright, resized (Lanczos) and cut from the centre.

    Raises UserError for a picture that does not open.
    """
    picture = decode(path, least=fit.resized)
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
