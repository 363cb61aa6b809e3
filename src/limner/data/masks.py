"""Which places of a picture are learnt from: where it is opaque, or where a mask, a picture of the same name, is white."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from limner import disk
from limner.config import Data
from limner.data.decode import decode, opacity
from limner.data.scan import EXTENSIONS, Picture
from limner.errors import wrong


def find(data: Data, pictures: Sequence[Picture]) -> list[str | None]:
    """For each picture where its mask is: a file, or the picture itself for its transparency; None if it has none.

    A mask lies in `mask_path` as the picture lies in its folder, or directly in it; its ending may be another. Raises UserError
    if there is no such folder.
    """
    folders: dict[Path, dict[str, str]] = {}
    return [_mask(p, p.settings(data), folders) for p in pictures]


def _mask(picture: Picture, data: Data, folders: dict[Path, dict[str, str]]) -> str | None:
    if data.masks == "off" or (picture.is_class and data.masks == "folder"):
        return None  # a mask is of the picture whose name it has, and class pictures lie elsewhere under any names
    if data.masks == "alpha":
        return None if picture.path.lower().endswith((".jpg", ".jpeg", ".bmp")) else picture.path
    if data.mask_path is None:
        raise wrong("data.mask_path", "no folder of masks is given.", 'Set it, or data.masks = "alpha" or "off".')
    if data.mask_path not in folders:
        folders[data.mask_path] = _listed(data.mask_path)
    known, stem = folders[data.mask_path], os.path.splitext(picture.path)[0]
    inside = os.path.relpath(stem, data.path) if data.path is not None else os.path.basename(stem)
    return known.get(inside.replace(os.sep, "/")) or known.get(os.path.basename(stem))


def _listed(folder: Path) -> dict[str, str]:
    """Every picture in a folder and below, by its path there without ending."""
    if not folder.is_dir():
        raise wrong("data.mask_path", f"{folder} is no folder.", "Give the folder that holds the masks.")
    found: dict[str, str] = {}
    for inside, _, names in disk.walk(folder):
        for name in sorted(names):
            stem, extension = os.path.splitext(name)
            if extension.lower() in EXTENSIONS and os.path.isfile(os.path.join(inside, name)):  # opening a pipe would hang
                found.setdefault(
                    os.path.relpath(os.path.join(inside, stem), folder).replace(os.sep, "/"), os.path.join(inside, name)
                )
    return found


def opened(mask: str, picture: str) -> Image.Image | None:
    """A mask as greys, 255 where everything is learnt; None where the picture has no transparency. Raises as `decode`."""
    return opacity(picture) if mask == picture else decode(mask).convert("L")
