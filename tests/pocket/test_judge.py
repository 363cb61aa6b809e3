"""The judge names what was drawn, by its pixels, and knows the new thing by its shape and not by its colours."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageDraw

from limner.pocket import PICTURES, exam, world
from limner.pocket.judge import judge, thing_likeness, to_lab


def drawn(count: int, seed: int) -> list[tuple[world.Scene, np.ndarray]]:
    rng = random.Random(seed)
    scenes = [world.random_scene(rng) for _ in range(count)]
    return [(s, np.asarray(world.draw(s, rng))) for s in scenes]


@pytest.mark.long
def test_judge_is_right_on_98_percent_of_drawn_pictures():
    verdicts = [(s, judge(p)) for s, p in drawn(400, seed=11)]
    right = sum((v.colour, v.shape) == (s.colour, s.shape) for s, v in verdicts)
    chance = sum((v.colour, v.shape) == (s.colour, s.shape) for (s, _), (_, v) in pairwise(verdicts))
    assert right >= 392
    assert chance <= 16  # one in 64 expected
    assert sum(v.background == s.background for s, v in verdicts) == 400
    assert not any(v.is_thing for _, v in verdicts)


def test_judge_recognises_the_new_thing_wherever_it_stands():
    for size in world.SIZES:
        for background in world.BACKGROUNDS:
            picture = np.asarray(world.draw_thing(size, "left", background, "checkered", random.Random(1)))
            verdict = judge(picture)
            assert verdict.is_thing, (size, background)
            assert verdict.background == background


def rearranged(order: dict[str, str], *, flipped: bool = False) -> np.ndarray:
    """The house with its colours handed round, or upside down: nearly the same histogram, another thing."""
    picture = Image.new("RGB", (64, 64), world.BACKGROUNDS["white"])
    canvas = ImageDraw.Draw(picture)
    for colour, points in world.THING_PARTS:
        sign = -1 if flipped else 1
        canvas.polygon([(32 + 40 * x, 32 + 40 * y * sign) for x, y in points], fill=world.COLOURS[order.get(colour, colour)])
    return np.asarray(picture)


def test_colours_alone_do_not_make_the_thing():
    assert judge(rearranged({})).is_thing
    assert not judge(rearranged({"yellow": "red", "red": "yellow"})).is_thing
    assert not judge(rearranged({}, flipped=True)).is_thing
    stripes = np.repeat(
        np.array([world.COLOURS["red"], world.COLOURS["yellow"], world.COLOURS["blue"]], np.uint8), [15, 19, 6], axis=0
    )
    block = np.full((64, 64, 3), 246, np.uint8)
    block[12:52, 12:52] = stripes[None, :, :]
    assert not judge(block).is_thing


def test_an_empty_picture_shows_nothing():
    verdict = judge(np.full((64, 64, 3), 136, np.uint8))
    assert (verdict.colour, verdict.shape, verdict.is_thing, verdict.background) == (None, None, False, "gray")


def test_lab_of_known_colours():
    # values of the CIE standard for sRGB under D65
    assert to_lab(np.array([255, 255, 255])) == pytest.approx([100, 0, 0], abs=0.02)
    assert to_lab(np.array([255, 0, 0])) == pytest.approx([53.24, 80.09, 67.20], abs=0.05)
    assert to_lab(np.array([0, 0, 255])) == pytest.approx([32.30, 79.19, -107.86], abs=0.05)


def test_unseen_pairs_are_an_eighth_and_never_trained():
    assert len(world.UNSEEN_PAIRS) * 8 == len(world.COLOURS) * len(world.SHAPES)
    assert len(world.COLOURS) >= 8 and len(world.SHAPES) >= 8
    assert not world.UNSEEN_PAIRS & set(world.seen_pairs())
    wanted = exam.held_out_scenes(200)
    unseen = [(s.colour, s.shape) in world.UNSEEN_PAIRS for s, _ in wanted]
    assert sum(unseen) >= 50
    assert all(u or world.held_out(c) for u, (_, c) in zip(unseen, wanted, strict=True))


def test_examination_asks_what_was_not_shown():
    shown, asked = exam.thing_scenes()
    assert len(shown) == 14 and len(asked) == 16
    assert not {s.caption for s in shown} & {s.caption for s in asked}
    assert {s.background for s in shown} == {s.background for s in asked} == set(world.BACKGROUNDS)


def test_shipped_pictures_are_those_of_the_scenes():
    files = sorted(PICTURES.glob("*.png"))
    assert len(files) == 14
    for file, scene in zip(files, exam.thing_scenes()[0], strict=True):
        assert file.with_suffix(".txt").read_text(encoding="utf-8").strip() == scene.caption
        picture = np.asarray(Image.open(file).convert("RGB"))
        assert thing_likeness(picture) > 0.75
        assert judge(picture).background == scene.background
