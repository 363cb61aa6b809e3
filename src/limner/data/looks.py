"""How a picture looks when it is shown once: where it is cut, how its colours are changed, whether it is mirrored.

Every look is a pure function of a drawn number and the picture's name, so that nothing has to be kept to show it again.
"""

from __future__ import annotations

import math
import os
import random
from dataclasses import dataclass

from limner.config import Data
from limner.data.buckets import Fit
from limner.randomness import mix

_MOST_HUE = 16.0
"""Degrees; sd-scripts' hue_shift_limit of 8 on a scale of 180."""
_MOST_SATURATION = 0.1
_MOST_BRIGHTNESS = 0.05

Matrix = tuple[tuple[float, float, float], ...]


@dataclass(frozen=True, slots=True)
class Look:
    """`place` says where in 0..1 of the room to move the cut begins, None: centred; `colour` is (turn of the hue in degrees,
    factor of the saturation, factor of the brightness)."""

    place: tuple[float, float] | None = None
    colour: tuple[float, float, float] | None = None
    mirrored: bool = False

    def cut(self, bucket: tuple[int, int], resized: tuple[int, int]) -> tuple[int, int]:
        """Left and top of the cut, in px of the resized picture before it is mirrored."""
        if self.place is None:
            return Fit(bucket, resized).crop
        left, top = (int(part * (whole - cut + 1)) for part, whole, cut in zip(self.place, resized, bucket, strict=True))
        return left, top


PLAIN = Look()


def has_versions(data: Data) -> bool:
    """Whether pictures are cut or coloured otherwise each time."""
    return data.random_crop or data.colour


def num_versions(data: Data) -> int:
    """How many of each picture are kept, each also mirrored if asked."""
    return data.variants if has_versions(data) else 1


def look(data: Data, picture: str, version: int, mirrored: bool) -> Look:
    """The look number `version` of the picture at a path. It depends on the file's name, not on its folder or its place among
    others, so that what is cached stays of use when pictures are added."""
    if not has_versions(data):
        return Look(mirrored=mirrored)
    draw = random.Random(mix(version, f"look {os.path.basename(picture)}"))
    place = draw.random(), draw.random()
    hue, saturation, brightness = (draw.uniform(-1, 1) for _ in range(3))
    colour = _MOST_HUE * hue, 1 + _MOST_SATURATION * saturation, 1 + _MOST_BRIGHTNESS * brightness
    return Look(place if data.random_crop else None, colour if data.colour else None, mirrored)


def colour_matrix(hue: float, saturation: float, brightness: float) -> Matrix:
    """The linear map of RGB (0..1) that turns the hue by so many degrees and multiplies saturation and brightness.

    Both are changed in YIQ, the colour space of NTSC, where greys lie on the axis Y: I and Q are turned and scaled, then all
    three are scaled.
    """
    turn = math.radians(hue)
    cos, sin = saturation * math.cos(turn), saturation * math.sin(turn)
    columns = []
    for rgb in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)):
        y, i, q = (sum(a * b for a, b in zip(row, rgb, strict=True)) for row in _TO_YIQ)
        i, q = cos * i - sin * q, sin * i + cos * q
        columns.append(tuple(brightness * v for v in _from_yiq(y, i, q)))
    return tuple(zip(*columns, strict=True))


_TO_YIQ = ((0.299, 0.587, 0.114), (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135))


def _from_yiq(y: float, i: float, q: float) -> tuple[float, float, float]:
    """The exact inverse of the map above, by Cramer's rule: a rounded one would tint what is not changed."""
    (a, b, c), (d, e, f), (g, h, k) = _TO_YIQ
    whole = a * (e * k - f * h) - b * (d * k - f * g) + c * (d * h - e * g)
    red = y * (e * k - f * h) - b * (i * k - f * q) + c * (i * h - e * q)
    green = a * (i * k - f * q) - y * (d * k - f * g) + c * (d * q - i * g)
    blue = a * (e * q - i * h) - b * (d * q - i * g) + y * (d * h - e * g)
    return red / whole, green / whole, blue / whole
