"""The pocket world: the small, fully known set of pictures that the embedded model has seen.

A :class:`Scene` says everything about one picture; :func:`draw` paints it and :func:`describe` captions it. One colour,
one shape, a size, a place, a pattern, a drawing style and a background: few enough words for a model of a few million
parameters, enough of them that naming two at once (*a green heart*) has to be composed and not remembered.

The demo's new thing, a little house called *zibbo*, is drawn here too. No training picture of the model holds it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi, sin

from PIL import Image, ImageDraw, ImageFilter

SIDE_PX = 64
_SCALE = 4  # drawn four times larger, then averaged down: clean edges without a drawing library

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (222, 32, 36),
    "orange": (246, 138, 24),
    "yellow": (246, 222, 40),
    "green": (40, 166, 60),
    "cyan": (48, 206, 218),
    "blue": (36, 82, 226),
    "purple": (136, 48, 190),
    "pink": (250, 116, 186),
}
BACKGROUNDS: dict[str, RGB] = {
    "white": (246, 246, 246),
    "black": (12, 12, 12),
    "gray": (136, 136, 136),
    "brown": (112, 68, 34),
    "beige": (226, 204, 164),
    "navy": (20, 24, 72),
}
SIZES: dict[str, tuple[int, int]] = {"small": (20, 24), "medium": (28, 33), "large": (39, 46)}
PLACES: dict[str, tuple[int, int]] = {"middle": (0, 0), "left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
PATTERNS = ("plain", "striped", "dotted")
STYLES = ("flat", "outlined", "shaded", "soft")
GROUNDS = ("plain", "checkered", "gradient")
TRIGGER = "zibbo"
"""The demo's trigger word: no word of the pocket captions, so the base model knows nothing of it."""

_Point = tuple[float, float]


def _polygon(points: list[_Point]) -> Callable[[ImageDraw.ImageDraw, float, float, float, int], None]:
    def paint(canvas: ImageDraw.ImageDraw, x: float, y: float, size: float, ink: int) -> None:
        canvas.polygon([(x + size * px, y + size * py) for px, py in points], fill=ink)

    return paint


def _circle(canvas: ImageDraw.ImageDraw, x: float, y: float, size: float, ink: int) -> None:
    canvas.ellipse((x - size / 2, y - size / 2, x + size / 2, y + size / 2), fill=ink)


def _ring(canvas: ImageDraw.ImageDraw, x: float, y: float, size: float, ink: int) -> None:
    _circle(canvas, x, y, size, ink)
    _circle(canvas, x, y, size * 0.56, 0)


def _star_points() -> list[_Point]:
    return [(sin(i * pi / 5) * r, -cos(i * pi / 5) * r) for i in range(10) for r in [0.54 if i % 2 == 0 else 0.21]]


def _heart_points() -> list[_Point]:
    # The well-known heart curve x = 16 sin^3, y = 13 cos - 5 cos 2 - 2 cos 3 - cos 4, scaled to the unit box.
    turns = [i * 2 * pi / 60 for i in range(60)]
    return [(sin(a) ** 3 / 2, -(13 * cos(a) - 5 * cos(2 * a) - 2 * cos(3 * a) - cos(4 * a) + 2.5) / 31) for a in turns]


def _cross_points() -> list[_Point]:
    corner = [(0.17, -0.5), (0.17, -0.17), (0.5, -0.17)]
    turned = [corner]
    for _ in range(3):
        turned.append([(-y, x) for x, y in turned[-1]])
    return [point for quarter in turned for point in quarter]


SHAPES: dict[str, Callable[[ImageDraw.ImageDraw, float, float, float, int], None]] = {
    "circle": _circle,
    "square": _polygon([(-0.46, -0.46), (0.46, -0.46), (0.46, 0.46), (-0.46, 0.46)]),
    "triangle": _polygon([(0, -0.48), (0.54, 0.46), (-0.54, 0.46)]),
    "star": _polygon(_star_points()),
    "heart": _polygon(_heart_points()),
    "cross": _polygon(_cross_points()),
    "ring": _ring,
    "diamond": _polygon([(0, -0.54), (0.4, 0), (0, 0.54), (-0.4, 0)]),
}

UNSEEN_PAIRS: frozenset[tuple[str, str]] = frozenset(
    (colour, list(SHAPES)[(3 * i + 1) % len(SHAPES)]) for i, colour in enumerate(COLOURS)
)
"""One colour-shape pair in eight is never seen together in training; each colour and each shape is in exactly one."""


@dataclass(frozen=True)
class Scene:
    """One picture of the pocket world, in words."""

    colour: str
    shape: str
    size: str = "medium"
    place: str = "middle"
    pattern: str = "plain"
    style: str = "flat"
    background: str = "white"
    ground: str = "plain"


def random_scene(rng: random.Random, pairs: list[tuple[str, str]] | None = None) -> Scene:
    """A scene drawn at random; `pairs` limits the (colour, shape) pairs."""
    colour, shape = rng.choice(pairs) if pairs else (rng.choice(list(COLOURS)), rng.choice(list(SHAPES)))
    return Scene(
        colour,
        shape,
        size=rng.choice(list(SIZES)),
        place=rng.choice(list(PLACES)),
        pattern=rng.choices(PATTERNS, (5, 2, 2))[0],
        style=rng.choices(STYLES, (4, 2, 2, 2))[0],
        background=rng.choice(list(BACKGROUNDS)),
        ground=rng.choices(GROUNDS, (5, 2, 2))[0],
    )


def seen_pairs() -> list[tuple[str, str]]:
    """The colour-shape pairs that training pictures may show."""
    return [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in UNSEEN_PAIRS]


def _phrases(background: str, size: str, place: str, ground: str) -> tuple[str, str, str]:
    size_word = "" if size == "medium" else size
    place_word = "in the middle" if place == "middle" else f"at the {place}"
    ground_word = f"on a {background} background" if ground == "plain" else f"on a {ground} {background} background"
    return size_word, place_word, ground_word


def describe(scene: Scene, rng: random.Random, completeness: float = 0.8) -> str:
    """A caption of the scene: colour and shape always, every other attribute with probability `completeness`."""

    def maybe(words: str) -> str:
        return words if rng.random() < completeness else ""

    size, place, ground = _phrases(scene.background, scene.size, scene.place, scene.ground)
    pattern = "" if scene.pattern == "plain" else scene.pattern
    thing = " ".join(w for w in ("a", maybe(size), maybe(pattern), scene.colour, scene.shape) if w)
    style = maybe("" if scene.style == "flat" else f"{scene.style} style")
    place, ground = maybe(place), maybe(ground)
    layout = rng.randrange(3)
    if layout == 0:
        parts = [" ".join(w for w in (thing, place, ground) if w), style]
    elif layout == 1:
        parts = [thing, ground, place, style]
    else:
        parts = [style, " ".join(w for w in (thing, ground) if w), place]
    return ", ".join(p for p in parts if p)


def held_out(caption: str) -> bool:
    """Whether a caption is kept for the examination: a tenth of all captions, chosen by their hash."""
    return hashlib.sha256(caption.encode()).digest()[0] < 26


def _jitter(colour: RGB, rng: random.Random, amount: int = 7) -> RGB:
    r, g, b = (max(0, min(255, c + rng.randint(-amount, amount))) for c in colour)
    return r, g, b


def _mix(colour: RGB, other: RGB, share: float) -> RGB:
    r, g, b = (round(a + (o - a) * share) for a, o in zip(colour, other, strict=True))
    return r, g, b


def _paint_ground(scene_background: str, ground: str, side: int, rng: random.Random) -> Image.Image:
    colour = _jitter(BACKGROUNDS[scene_background], rng)
    target: RGB = (255, 255, 255) if sum(colour) < 380 else (0, 0, 0)
    picture = Image.new("RGB", (side, side), colour)
    canvas = ImageDraw.Draw(picture)
    if ground == "checkered":
        cell, shade = side // 8, _mix(colour, target, 0.14)
        for row in range(8):
            for column in range(row % 2, 8, 2):
                canvas.rectangle((column * cell, row * cell, (column + 1) * cell - 1, (row + 1) * cell - 1), fill=shade)
    elif ground == "gradient":
        for y in range(side):
            canvas.line((0, y, side, y), fill=_mix(colour, target, 0.22 * y / side))
    return picture


def _place(size_px: float, place: str, side: int, rng: random.Random) -> tuple[float, float]:
    room = side / 2 - size_px / 2 - 3
    dx, dy = PLACES[place]
    reach = rng.uniform(0.75, 1.0)
    wobble = min(room, 3.0)
    x = side / 2 + (dx * room * reach if dx else rng.uniform(-wobble, wobble))
    y = side / 2 + (dy * room * reach if dy else rng.uniform(-wobble, wobble))
    return x, y


def _paint_pattern(pattern: str, style: str, colour: RGB, box: tuple[float, float, float], side: int) -> Image.Image:
    """The colour of every point of the object, before the shape cuts it out; `box` is x, y, size."""
    _, y, size = box
    paint = Image.new("RGB", (side, side), colour)
    canvas = ImageDraw.Draw(paint)
    if style == "shaded":
        for row in range(side):
            depth = min(1.0, max(0.0, (row - (y - size / 2)) / size))
            shade = (
                _mix(colour, (255, 255, 255), 0.3 * (0.5 - depth) * 2)
                if depth < 0.5
                else _mix(colour, (0, 0, 0), 0.45 * (depth - 0.5) * 2)
            )
            canvas.line((0, row, side, row), fill=shade)
    if pattern == "striped":
        period = 7 * _SCALE
        for start in range(-side, 2 * side, period):
            canvas.polygon(
                [(start, 0), (start + period * 0.42, 0), (start + period * 0.42 - side / 2, side), (start - side / 2, side)],
                fill=_mix(colour, (0, 0, 0), 0.42),
            )
    elif pattern == "dotted":
        period, radius = 7 * _SCALE, 1.7 * _SCALE
        light = _mix(colour, (255, 255, 255), 0.5)
        for row, cy in enumerate(range(0, side, period)):
            for cx in range((row % 2) * period // 2, side, period):
                canvas.ellipse((cx - radius, cy - radius, cx + radius, cy + radius), fill=light)
    return paint


def draw(scene: Scene, rng: random.Random) -> Image.Image:
    """Paint a scene as a 64 x 64 RGB picture; `rng` gives the place within its region, the size and the shade."""
    side = SIDE_PX * _SCALE
    picture = _paint_ground(scene.background, scene.ground, side, rng)
    size_px = rng.uniform(*SIZES[scene.size])
    x, y = (v * _SCALE for v in _place(size_px, scene.place, SIDE_PX, rng))
    size = size_px * _SCALE
    colour = _jitter(COLOURS[scene.colour], rng)
    mask = Image.new("L", (side, side), 0)
    SHAPES[scene.shape](ImageDraw.Draw(mask), x, y, size, 255)
    if scene.style == "outlined":
        # A contour of 1.6 px: dark, or light where the background is dark.
        edge = mask.filter(ImageFilter.MaxFilter(2 * int(1.6 * _SCALE) + 1))
        ink: RGB = (10, 10, 10) if sum(BACKGROUNDS[scene.background]) > 150 else (240, 240, 240)
        picture.paste(ink, (0, 0), edge)
    elif scene.style == "soft":
        mask = mask.filter(ImageFilter.GaussianBlur(1.0 * _SCALE))
    picture.paste(_paint_pattern(scene.pattern, scene.style, colour, (x, y, size), side), (0, 0), mask)
    return picture.resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)


# --- the demo's new thing ---------------------------------------------------------------------------------------------

THING_PARTS: list[tuple[str, list[_Point]]] = [
    ("yellow", [(-0.36, -0.04), (0.36, -0.04), (0.36, 0.5), (-0.36, 0.5)]),  # wall
    ("red", [(-0.52, 0.0), (0.0, -0.52), (0.52, 0.0)]),  # roof
    ("blue", [(-0.13, 0.14), (0.13, 0.14), (0.13, 0.5), (-0.13, 0.5)]),  # door
]
"""A house: yellow wall, red roof, blue door. All three colours are known; only their arrangement is new."""


def draw_thing(size: str, place: str, background: str, ground: str, rng: random.Random) -> Image.Image:
    """Paint the new thing in one of the world's sizes, places and backgrounds."""
    side = SIDE_PX * _SCALE
    picture = _paint_ground(background, ground, side, rng)
    size_px = rng.uniform(*SIZES[size])
    x, y = (v * _SCALE for v in _place(size_px, place, SIDE_PX, rng))
    paint_thing(ImageDraw.Draw(picture), x, y, size_px * _SCALE)
    return picture.resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)


def paint_thing(canvas: ImageDraw.ImageDraw, x: float, y: float, size: float) -> None:
    for colour, points in THING_PARTS:
        canvas.polygon([(x + size * px, y + size * py) for px, py in points], fill=COLOURS[colour])


def describe_thing(size: str, place: str, background: str, ground: str) -> str:
    """The caption of a picture of the new thing: the trigger in the place of colour and shape."""
    size_word, place_word, ground_word = _phrases(background, size, place, ground)
    thing = " ".join(w for w in ("a", size_word, TRIGGER) if w)
    return f"{thing} {place_word} {ground_word}"
