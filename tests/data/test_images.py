"""Pictures become the pixels that a person sees: upright, on white, 16 bits scaled; what does not open is a UserError."""

from __future__ import annotations

import random
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limner.data.buckets import Buckets, Fit
from limner.data.decode import decode
from limner.data.images import load
from limner.data.likeness import look_of
from limner.errors import UserError

WHOLE = Fit((16, 16), (16, 16))


def saved(picture: Image.Image, path: Path, **options) -> Path:
    picture.save(path, **options)
    return path


def colour(pixels: torch.Tensor) -> tuple[int, ...]:
    """The one colour of a plain picture, 0..255."""
    levels = (pixels + 1) * 127.5
    assert (levels.amax((1, 2)) - levels.amin((1, 2))).max() < 1e-3
    return tuple(round(v) for v in levels[:, 0, 0].tolist())


def test_values_are_exact_and_in_place(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    path = saved(Image.fromarray(array), tmp_path / "a.png")
    pixels = load(path, Fit((16, 16), (40, 24)))
    assert pixels.shape == (3, 16, 16) and pixels.dtype == torch.float32 and pixels.is_contiguous()
    expected = torch.from_numpy(array[4:20, 12:28].astype(np.float32) / 127.5 - 1).permute(2, 0, 1)
    assert torch.equal(pixels, expected)
    assert load(saved(Image.new("RGB", (16, 16), "black"), tmp_path / "b.bmp"), WHOLE).unique().tolist() == [-1.0]
    assert load(saved(Image.new("RGB", (16, 16), "white"), tmp_path / "c.png"), WHOLE).unique().tolist() == [1.0]


def quarters(size: tuple[int, int]) -> Image.Image:
    """Red, green / blue, white."""
    w, h = size
    out = Image.new("RGB", size, "white")
    out.paste("red", (0, 0, w // 2, h // 2))
    out.paste((0, 255, 0), (w // 2, 0, w, h // 2))
    out.paste("blue", (0, h // 2, w // 2, h))
    return out


@pytest.mark.parametrize(
    ("ending", "options"), [("jpg", {"quality": 100, "subsampling": 0}), ("png", {}), ("webp", {"lossless": True})]
)
def test_a_turned_photograph_is_upright(tmp_path: Path, ending: str, options: dict) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be seen upright, turn it a quarter to the right
    path = saved(quarters((64, 32)), tmp_path / f"a.{ending}", exif=exif.tobytes(), **options)
    pixels = load(path, Fit((32, 64), (32, 64)))
    assert pixels.shape == (3, 64, 32)
    corners = [pixels[:, y, x].round().tolist() for y, x in ((4, 4), (4, 28), (60, 4), (60, 28))]
    red, green, blue, white = [1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1]
    assert corners == [blue, red, white, green]


def test_a_picture_turned_against_its_plan_still_fills_the_bucket_from_its_centre(tmp_path: Path) -> None:
    path = saved(quarters((32, 64)), tmp_path / "a.png")
    pixels = load(path, Fit((64, 32), (64, 32)))
    assert pixels.shape == (3, 32, 64)
    assert pixels[:, 2, 2].round().tolist() == [1, -1, -1] and pixels[:, 29, 61].round().tolist() == [1, 1, 1]


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    half = saved(Image.new("RGBA", (16, 16), (255, 0, 0, 0)), tmp_path / "clear.png")
    assert colour(load(half, WHOLE)) == (255, 255, 255)
    assert colour(load(saved(Image.new("RGBA", (16, 16), (0, 0, 0, 128)), tmp_path / "half.png"), WHOLE)) == (127, 127, 127)
    assert colour(load(saved(Image.new("LA", (16, 16), (0, 0)), tmp_path / "la.png"), WHOLE)) == (255, 255, 255)
    assert (
        colour(load(saved(Image.new("RGBA", (16, 16), (9, 9, 9, 0)), tmp_path / "a.webp", lossless=True, exact=True), WHOLE))
        == (255,) * 3
    )
    palette = Image.new("P", (16, 16), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert colour(load(saved(palette, tmp_path / "p.png"), WHOLE)) == (10, 20, 30)
    assert colour(load(saved(palette, tmp_path / "pt.png", transparency=1), WHOLE)) == (255, 255, 255)


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (65535, 255), (32896, 128), (257 * 77, 77)])
def test_sixteen_bit_greys_are_scaled(tmp_path: Path, value: int, expected: int) -> None:
    picture = Image.fromarray(np.full((16, 16), value, np.uint16))
    assert picture.mode == "I;16"
    assert colour(load(saved(picture, tmp_path / "a.png"), WHOLE)) == (expected,) * 3


def test_other_modes(tmp_path: Path) -> None:
    assert colour(load(saved(Image.new("L", (16, 16), 77), tmp_path / "l.png"), WHOLE)) == (77, 77, 77)
    assert colour(load(saved(Image.new("1", (16, 16), 1), tmp_path / "1.png"), WHOLE)) == (255, 255, 255)
    cmyk = colour(load(saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), tmp_path / "c.jpg", quality=100), WHOLE))
    assert cmyk[0] > 250 and max(cmyk[1:]) < 5


def test_the_first_frame_of_a_moving_webp(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), c) for c in ("red", "blue")]
    path = saved(frames[0], tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert colour(load(path, WHOLE)) == (255, 0, 0)


def test_a_large_jpeg_is_decoded_small_and_stays_the_same_picture(tmp_path: Path) -> None:
    path = saved(quarters((2048, 1024)), tmp_path / "a.jpg", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = saved(quarters((2048, 1024)), tmp_path / "b.jpg", quality=95, exif=exif.tobytes())
    fit = Buckets(64, 16, 32, 128).fit(2048, 1024)
    pixels = load(path, fit)
    reference = np.asarray(Image.open(path).resize(fit.resized, Image.Resampling.LANCZOS)).astype(np.float32)
    left, top = fit.crop
    reference = reference[top : top + fit.bucket[1], left : left + fit.bucket[0]] / 127.5 - 1
    assert (pixels - torch.from_numpy(reference).permute(2, 0, 1)).abs().mean() < 0.02
    assert load(turned, Buckets(64, 16, 32, 128).fit(1024, 2048)).shape == (3, fit.bucket[0], fit.bucket[1])


def test_what_does_not_open_is_named(tmp_path: Path) -> None:
    (out := BytesIO()).truncate()
    quarters((64, 64)).save(out, "JPEG")
    jpeg = out.getvalue()
    contents = {"half.jpg": jpeg[: len(jpeg) // 2], "empty.png": b"", "text.png": b"text", "zeros.jpg": bytes(99)}
    contents["script.jpg"] = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    for name, kind in (("moving.png", "GIF"), ("scan.png", "TIFF")):
        quarters((64, 64)).save(out := BytesIO(), kind)
        contents[name] = out.getvalue()
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in [*contents, "missing.png"]:
        with pytest.raises(UserError, match="does not open") as caught:
            load(tmp_path / name, WHOLE)
        assert caught.value.findings[0].field == str(tmp_path / name)


def test_too_many_pixels_are_refused_unread(tmp_path: Path) -> None:
    path = saved(Image.new("1", (9000, 9000)), tmp_path / "a.png")
    with pytest.raises(UserError, match="too large"):
        load(path, WHOLE)
    bomb = bytearray(path.read_bytes())
    bomb[16:24] = (65535).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    (tmp_path / "b.png").write_bytes(bomb)
    with pytest.raises(UserError):
        load(tmp_path / "b.png", WHOLE)


def test_large_pictures_become_what_small_ones_do(tmp_path: Path) -> None:
    """They are brought to RGB piece by piece; the reference is float64 arithmetic over the whole."""
    rng = np.random.default_rng(1)
    colours, greys = rng.integers(0, 256, (700, 30, 4)), rng.integers(0, 65536, (700, 30))
    path = saved(Image.fromarray(colours.astype(np.uint8), "RGBA"), tmp_path / "a.png")
    share = colours[..., 3:] / 255
    expected = colours[..., :3] * share + 255 * (1 - share)
    assert np.abs(np.asarray(decode(path), np.float64) - expected).max() <= 1
    path = saved(Image.fromarray(greys.astype(np.uint16)), tmp_path / "b.png")
    assert np.array_equal(np.asarray(decode(path))[..., 1], np.floor(greys / 257))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damage_anywhere_gives_pixels_or_a_user_error(tmp_path: Path) -> None:
    rng = random.Random(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("PNG", "JPEG", "WEBP", "BMP"):
        quarters((32, 32)).save(out := BytesIO(), kind, **({} if kind == "BMP" else {"exif": exif.tobytes()}))
        whole = out.getvalue()
        for i in range(150):
            damaged = bytearray(whole[: rng.randrange(1, len(whole))] if i % 3 == 0 else whole)
            for _ in range(rng.randrange(1, 6)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            path = tmp_path / "a.bin"
            path.write_bytes(damaged)
            try:
                assert load(path, WHOLE).shape == (3, 16, 16)
            except UserError as error:
                assert error.findings[0].field == str(path)


@pytest.mark.parametrize(
    "odd",
    [
        struct.pack("<HHIf", 0x010E, 11, 1, 0.5),  # the description a number
        struct.pack("<HHI4s", 0x011A, 2, 3, b"72"),  # the resolution a text
        struct.pack("<HHI4s", 0x0102, 2, 3, b"88"),
    ],
)
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_odd_exif_data_do_no_harm(tmp_path: Path, ending: str, odd: bytes) -> None:
    """Pillow reads them, but cannot write them again, which it would when it turns a picture by its own function."""
    turn = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + b"".join(sorted((odd, turn))) + bytes(4)
    path = saved(quarters((64, 32)), tmp_path / f"a.{ending}", exif=exif)
    assert load(path, Fit((32, 64), (32, 64))).shape == (3, 64, 32)
    assert look_of(path) == look_of(saved(decode(path), tmp_path / "upright.png"))
