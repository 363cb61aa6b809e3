"""A judge of pocket pictures that looks at nothing but pixels.

It takes the border for the background, cuts out what differs from it, names the colour by the nearest one in CIELAB and
the shape by overlap with drawn silhouettes. It never sees a caption, a model or a random state.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from limner.pocket.world import BACKGROUNDS, COLOURS, SHAPES, SIDE_PX, paint_thing

_GRID = 32  # silhouettes are compared at this size
_LEAST_DIFFERENCE = 17  # CIELAB units; a checkered ground differs less from its own median


@dataclass(frozen=True)
class Verdict:
    """What the judge sees; `None` where it sees nothing it can name."""

    background: str
    colour: str | None
    shape: str | None
    is_thing: bool


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB in 0..255, (..., 3), to CIELAB under D65 (IEC 61966-2-1, CIE 15)."""
    c = rgb.astype(np.float64) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


@cache
def _colour_references() -> tuple[list[str], np.ndarray]:
    """Every colour as drawn, in shadow and in light, since stripes, dots and shading use all three."""
    names, values = [], []
    for name, rgb in COLOURS.items():
        base = np.array(rgb, dtype=np.float64)
        for shade in (base, base * 0.58, base * 0.5 + 127.5, base * 0.8, base * 0.75 + 63.75):
            names.append(name)
            values.append(shade)
    return names, to_lab(np.array(values))


def _nearest(lab: np.ndarray, references: np.ndarray) -> np.ndarray:
    return np.argmin(np.linalg.norm(lab[..., None, :] - references, axis=-1), axis=-1)


def _spread(seed: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The part of `mask` connected (4-neighbourhood) to `seed`."""
    while True:
        grown = seed.copy()
        grown[1:] |= seed[:-1]
        grown[:-1] |= seed[1:]
        grown[:, 1:] |= seed[:, :-1]
        grown[:, :-1] |= seed[:, 1:]
        grown &= mask
        if (grown == seed).all():
            return seed
        seed = grown


def _largest_part(mask: np.ndarray) -> np.ndarray:
    best, rest = np.zeros_like(mask), mask.copy()
    while rest.any():
        seed = np.zeros_like(mask)
        seed[np.unravel_index(np.argmax(rest), rest.shape)] = True
        part = _spread(seed, rest)
        if part.sum() > best.sum():
            best = part
        rest &= ~part
    return best


def _foreground(lab: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(background colour in Lab, mask of what is not background, difference from it in units of the object's own).

    Grounds vary in lightness only, so that counts less. The edge lies where the difference is four tenths of the object's
    own: a blurred outline moves it little.
    """
    frame = np.concatenate(
        [lab[:2].reshape(-1, 3), lab[-2:].reshape(-1, 3), lab[:, :2].reshape(-1, 3), lab[:, -2:].reshape(-1, 3)]
    )
    ground = np.median(frame, axis=0)
    difference = np.linalg.norm((lab - ground) * np.array([0.55, 1.0, 1.0]), axis=-1)
    first = _largest_part(difference > _LEAST_DIFFERENCE)
    if not first.any():
        return ground, first, difference
    typical = np.percentile(difference[first], 70)
    return ground, _largest_part(difference > max(_LEAST_DIFFERENCE, 0.4 * typical)), difference / typical


def _crop(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`values` under the mask's bounding square, sampled on a grid of 32 x 32 (nearest)."""
    rows, columns = np.nonzero(mask)
    size = max(rows.max() - rows.min(), columns.max() - columns.min()) + 1
    top, left = (rows.max() + rows.min() + 1 - size) / 2, (columns.max() + columns.min() + 1 - size) / 2
    steps = (np.arange(_GRID) + 0.5) / _GRID * size
    inside_r, inside_c = np.floor(top + steps).astype(int), np.floor(left + steps).astype(int)
    out = values[inside_r.clip(0, SIDE_PX - 1)][:, inside_c.clip(0, SIDE_PX - 1)]
    outside = ((inside_r < 0) | (inside_r >= SIDE_PX))[:, None] | ((inside_c < 0) | (inside_c >= SIDE_PX))[None, :]
    out = out.copy()
    out[outside] = 0
    return out


def _soft_crop(cover: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`cover` (0..1) under the mask's bounding square with a margin of a tenth, averaged down to 32 x 32."""
    rows, columns = np.nonzero(mask)
    size = (max(rows.max() - rows.min(), columns.max() - columns.min()) + 1) * 1.2
    top, left = (rows.max() + rows.min() + 1 - size) / 2, (columns.max() + columns.min() + 1 - size) / 2
    canvas = np.pad(cover.astype(np.float32), SIDE_PX)  # what lies outside the picture is background
    box = (left + SIDE_PX, top + SIDE_PX, left + size + SIDE_PX, top + size + SIDE_PX)
    return np.asarray(Image.fromarray(canvas).resize((_GRID, _GRID), Image.Resampling.BILINEAR, box=box))


@cache
def _silhouettes() -> list[tuple[str, np.ndarray]]:
    """Every shape, sharp and in two degrees of blur: a blurred ring is told from a blurred circle, not from a sharp one."""
    out = []
    for name, paint in SHAPES.items():
        for blur in (0, 2, 4):
            canvas = Image.new("L", (SIDE_PX, SIDE_PX), 0)
            paint(ImageDraw.Draw(canvas), SIDE_PX / 2, SIDE_PX / 2, 44, 255)
            cover = np.asarray(canvas.filter(ImageFilter.GaussianBlur(blur))) / 255
            out.append((name, _soft_crop(cover, cover > 0.4)))
    return out


@cache
def _thing_labels() -> np.ndarray:
    canvas = Image.new("RGB", (SIDE_PX, SIDE_PX), BACKGROUNDS["white"])
    paint_thing(ImageDraw.Draw(canvas), SIDE_PX / 2, SIDE_PX / 2, 44)
    return _labels(to_lab(np.asarray(canvas)))


def _labels(lab: np.ndarray) -> np.ndarray:
    """(32, 32) colour index of each point of the object plus one; 0 where there is background."""
    _, mask, _ = _foreground(lab)
    if mask.sum() < 40:
        return np.zeros((_GRID, _GRID), dtype=int)
    names, references = _colour_references()
    index = np.array([list(COLOURS).index(n) + 1 for n in names])
    return _crop(np.where(mask, index[_nearest(lab, references)], 0), mask)


def thing_likeness(picture: np.ndarray) -> float:
    """Share of the object's area (union with the drawn house) whose colour *and* place are the house's; 0..1."""
    seen, want = _labels(to_lab(picture)), _thing_labels()
    union = (seen > 0) | (want > 0)
    return float(((seen == want) & union).sum() / union.sum())


def judge(picture: np.ndarray) -> Verdict:
    """Name what a (64, 64, 3) uint8 picture shows."""
    lab = to_lab(picture)
    ground, mask, difference = _foreground(lab)
    background = list(BACKGROUNDS)[int(_nearest(ground, to_lab(np.array(list(BACKGROUNDS.values())))))]
    painted = mask & (np.hypot(lab[..., 1], lab[..., 2]) > 20)  # neither outline nor shadow
    if painted.sum() < 40:
        return Verdict(background, None, None, is_thing=False)
    part = _largest_part(painted)
    near = _grown(part)
    cover = np.where(near & ((np.hypot(lab[..., 1], lab[..., 2]) > 20) | ~mask), difference, 0).clip(0, 1)
    return Verdict(background, _colour(lab[painted]), _shape(cover, part), thing_likeness(picture) >= 0.5)


def _grown(mask: np.ndarray) -> np.ndarray:
    """The mask with a rim of two pixels, and with its holes: where the object's cover is looked at."""
    out = mask.copy()
    for _ in range(2):
        out = out | np.roll(out, 1, 0) | np.roll(out, -1, 0) | np.roll(out, 1, 1) | np.roll(out, -1, 1)
    return out


def _colour(lab: np.ndarray) -> str:
    names, references = _colour_references()
    votes = [names[i] for i in _nearest(lab, references)]
    return max(COLOURS, key=votes.count)


def _shape(cover: np.ndarray, mask: np.ndarray) -> str | None:
    seen = _soft_crop(cover, mask)
    overlap = [(float(np.minimum(seen, want).sum() / np.maximum(seen, want).sum()), name) for name, want in _silhouettes()]
    best, name = max(overlap)
    return name if best >= 0.55 else None
