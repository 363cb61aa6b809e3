"""The bucket rule against an independent telling of sd-scripts' own (kohya.md, "Buckets, exactly").

Where that page is brief, sd-scripts' code decides: sides given for the smallest and largest bucket are widened to multiples,
and without upscaling the two candidates are compared by their sides already cut to multiples."""

from __future__ import annotations

import contextlib
import math
import random

import pytest

from limner.data.buckets import Buckets, Fit

Size = tuple[int, int]


def their_sizes(side: int, low: int, high: int, steps: int) -> list[Size]:
    area, low, high = side * side, low - low % steps, high + -high % steps
    square = int(math.sqrt(area) // steps) * steps
    found = {(square, square)}
    width = low
    while width <= high:
        height = min(high, int((area // width) // steps) * steps)
        if height >= low:
            found.add((width, height))
            found.add((height, width))
        width += steps
    return sorted(found)


def their_fit(size: Size, sizes: list[Size]) -> tuple[Size, Size]:
    """(bucket, resized) with upscaling."""
    width, height = size
    if size in sizes:
        bucket = size
    else:
        errors = [abs(w / h - width / height) for w, h in sizes]
        bucket = sizes[errors.index(min(errors))]
    scale = bucket[1] / height if width / height > bucket[0] / bucket[1] else bucket[0] / width
    return bucket, (int(width * scale + 0.5), int(height * scale + 0.5))


def their_fit_without_upscaling(size: Size, side: int, steps: int) -> tuple[Size, Size]:
    width, height = size
    aspect = width / height
    resized = size
    if width * height > side * side:

        def rounded(x: float) -> int:
            return int(x + 0.5) - int(x + 0.5) % steps

        ideal_width = math.sqrt(side * side * aspect)
        by_width, by_height = rounded(ideal_width), rounded(side * side / ideal_width)
        with contextlib.suppress(ZeroDivisionError):
            error_by_width = abs(by_width / rounded(by_width / aspect) - aspect)
            error_by_height = abs(rounded(by_height * aspect) / by_height - aspect)
            if error_by_width < error_by_height:
                resized = (by_width, int(by_width / aspect + 0.5))
            else:
                resized = (int(by_height * aspect + 0.5), by_height)
    return (resized[0] - resized[0] % steps, resized[1] - resized[1] % steps), resized


def some_sizes(seed: int) -> list[Size]:
    rng = random.Random(seed)
    usual = [
        (512, 512),
        (640, 480),
        (480, 640),
        (1920, 1080),
        (1080, 1920),
        (4032, 3024),
        (1024, 1024),
        (832, 1216),
        (300, 300),
    ]
    return usual + [(rng.randint(64, 5000), rng.randint(64, 5000)) for _ in range(400)]


RULES = [(side, steps) for side in (512, 768, 1024) for steps in (64, 32)] + [(500, 64), (64, 8)]


@pytest.mark.parametrize(("side", "steps"), RULES)
def test_the_sizes_are_theirs(side: int, steps: int) -> None:
    low, high = side // 2, side * 2
    ours = Buckets(side, steps, low, high).sizes()
    assert ours == their_sizes(side, low, high, steps)
    assert all(w % steps == 0 and h % steps == 0 and w * h <= side * side for w, h in ours)


def test_the_sizes_of_512_by_hand() -> None:
    assert Buckets(512, 64, 256, 1024).sizes() == [
        (256, 832), (256, 896), (256, 960), (256, 1024), (320, 704), (320, 768), (384, 640), (448, 576), (512, 512), (576, 448),
        (640, 384), (704, 320), (768, 320), (832, 256), (896, 256), (960, 256), (1024, 256),
    ]  # fmt: skip


@pytest.mark.parametrize(("side", "steps"), RULES)
def test_with_upscaling_pictures_go_where_theirs_go(side: int, steps: int) -> None:
    rule = Buckets(side, steps, side // 2, side * 2)
    sizes = rule.sizes()
    for size in some_sizes(side + steps):
        bucket, resized = their_fit(size, sizes)
        fit = rule.fit(*size, sizes)
        assert fit.bucket == bucket, size
        # theirs may come out one pixel short of the bucket by rounding; ours never does
        assert fit.resized == (max(resized[0], bucket[0]), max(resized[1], bucket[1])), size
        assert rule.fit(*size) == fit


@pytest.mark.parametrize(("side", "steps"), RULES)
def test_without_upscaling_pictures_go_where_theirs_go(side: int, steps: int) -> None:
    rule = Buckets(side, steps, side // 2, side * 2, upscale=False)
    for size in some_sizes(side + steps):
        bucket, resized = their_fit_without_upscaling(size, side, steps)
        fit = rule.fit(*size)
        if min(bucket) == 0 or (size[0] * size[1] > side * side and resized == size):  # theirs fails then; ours enlarges
            assert min(fit.bucket) >= steps and all(r >= b for r, b in zip(fit.resized, fit.bucket, strict=True))
        else:
            assert (fit.bucket, fit.resized) == (bucket, resized), size
            assert fit.resized == size or size[0] * size[1] > side * side


@pytest.mark.parametrize("upscale", [True, False])
@pytest.mark.parametrize("enabled", [True, False])
def test_every_picture_covers_its_bucket_and_is_cut_from_the_centre(enabled: bool, upscale: bool) -> None:
    rule = Buckets(256, 64, 128, 512, enabled=enabled, upscale=upscale)
    for size in [*some_sizes(0), (8, 8), (8, 96), (96, 8), (20_000, 1700)]:
        fit = rule.fit(*size)
        assert all(r >= b > 0 and b % 64 == 0 for r, b in zip(fit.resized, fit.bucket, strict=True)), size
        left, top = fit.crop
        assert 0 <= fit.resized[0] - fit.bucket[0] - 2 * left <= 1
        assert 0 <= fit.resized[1] - fit.bucket[1] - 2 * top <= 1


def test_without_buckets_all_are_cut_square() -> None:
    rule = Buckets(100, 16, 50, 200, enabled=False)
    assert rule.fit(300, 200) == Fit((96, 96), (144, 96))
    assert rule.fit(300, 200).crop == (24, 0)
    assert rule.fit(10, 20) == Fit((96, 96), (96, 192))
