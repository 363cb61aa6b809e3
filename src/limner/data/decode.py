"""Open pictures safely: known formats only, upright, in RGB, with every way of being damaged told alike. No torch."""

from __future__ import annotations

import struct
from pathlib import Path

from PIL import ExifTags, Image

from limner.data.headers import MAX_PIXELS
from limner.errors import wrong

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # Image.open would start other programs for some formats
_ROWS = 256
_DAMAGE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError, EOFError, ArithmeticError, struct.error)


def decode(path: str | Path, least: tuple[int, int] | None = None) -> Image.Image:
    """The picture in RGB, turned as its EXIF says, transparency laid on white; of an animation the first frame.

    A JPEG decodes at a half, quarter or eighth of its size where that still covers `least`. Raises UserError for a picture
    that does not open.
    """
    try:
        with Image.open(path, formats=_FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise wrong(str(path), f"is {opened.width} x {opened.height}, too large.", "Make it smaller or remove it.")
            if least is not None:
                opened.draft("RGB", least)
            return _to_rgb(_upright(opened))
    except _DAMAGE as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise wrong(str(path), f"does not open ({reason}).", "Replace or remove it, or set data.skip_broken = true.") from None


def opacity(path: str | Path) -> Image.Image | None:
    """How opaque the picture is, upright, as greys (255: wholly); None if it has no transparency. Raises as `decode`."""
    try:
        with Image.open(path, formats=_FORMATS) as opened:
            if not has_transparency(opened):
                return None
            return _upright(opened).convert("RGBA").getchannel("A")
    except _DAMAGE as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise wrong(str(path), f"does not open ({reason}).", "Replace or remove it, or set data.skip_broken = true.") from None


def has_transparency(picture: Image.Image) -> bool:
    return picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by the orientation that its EXIF data give."""


def _upright(picture: Image.Image) -> Image.Image:
    # not by ImageOps.exif_transpose: that writes all EXIF data again, and stumbles over what cameras put there
    picture.load()
    turn = _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    return picture if turn is None else picture.transpose(turn)


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16") or picture.mode == "I":
        # 16-bit greys: Pillow's own conversion clips at 255 instead of scaling
        import numpy as np  # for these alone: whoever starts a run waits for it

        levels = np.asarray(picture)
        return Image.fromarray((levels.clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if not has_transparency(picture):
        return picture.convert("RGB")
    out = Image.new("RGB", picture.size)
    for top in range(0, picture.height, _ROWS):  # piece by piece: as a whole it would be in memory four times
        place = (0, top, picture.width, min(top + _ROWS, picture.height))
        piece = picture.crop(place).convert("RGBA")
        ground = Image.new("RGBA", piece.size, (255, 255, 255, 255))
        out.paste(Image.alpha_composite(ground, piece).convert("RGB"), place)
    return out
