"""Files as no camera makes them, and what becomes of each: `python tests/hostile_pictures.py FOLDER` writes them.

Each maker writes one file, or what stands in its place, and its caption where that is what is wrong.
"""

from __future__ import annotations

import os
import struct
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

from PIL import Image

Seen = Literal["header", "decoding", "fine", "left out"]
"""When it is found out: by its header or its place in the folder, only when it is decoded, never since it is a picture, or not
at all, since it is none of the kinds that are read (then all of them are counted)."""


@dataclass(frozen=True)
class Hostile:
    name: str
    seen: Seen
    make: Callable[[Path], object]
    words: str = ""
    """What is said of it."""
    is_large: bool = False
    """It takes seconds to decode."""
    is_caption: bool = False
    """It is the caption file that is named."""

    @property
    def named(self) -> str:
        """The file of which it is said."""
        return str(Path(self.name).with_suffix(".txt")) if self.is_caption else self.name


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    picture.save(out := BytesIO(), kind, **options)
    return out.getvalue()


def plain(width: int = 48, height: int = 40) -> Image.Image:
    return Image.radial_gradient("L").resize((width, height)).convert("RGB")


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, rows: bytes | None, depth: int = 1, colour: int = 0, more: bytes = b"") -> bytes:
    """A PNG that claims a size; `rows` is its compressed content, or None to make one of zeros."""
    if rows is None:
        channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
        row, packer, parts = bytes(1 + (width * depth * channels + 7) // 8), zlib.compressobj(9), []
        parts = [packer.compress(row) for _ in range(height)]
        rows = b"".join(parts) + packer.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def content(what: bytes | Callable[[], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(what if isinstance(what, bytes) else what())


def captioned(caption: bytes | int) -> Callable[[Path], object]:
    """A sound picture with this caption; a number is that of a sparse file's bytes."""

    def make(path: Path) -> None:
        path.write_bytes(encoded(plain(), "PNG"))
        with path.with_suffix(".txt").open("wb") as file:
            file.write(caption) if isinstance(caption, bytes) else file.truncate(caption)

    return make


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(plain(64, 40), "JPEG", exif=exif.tobytes())


def moving(kind: str) -> bytes:
    return encoded(plain(), kind, save_all=True, append_images=[Image.new("RGB", (48, 40), c) for c in ("red", "blue")])


def cut(kind: str, share: float) -> Callable[[], bytes]:
    def half() -> bytes:
        whole = encoded(Image.effect_noise((160, 120), 90).convert("RGB"), kind)
        return whole[: int(len(whole) * share)]

    return half


def wrong_sum() -> bytes:
    whole = bytearray(encoded(plain(), "PNG"))
    whole[whole.index(b"IDAT") + 40] ^= 0xFF
    return bytes(whole)


def with_palette() -> bytes:
    return encoded(plain().quantize(16), "PNG", transparency=3)


def jpeg_claiming(side: int) -> bytes:
    whole = bytearray(encoded(plain(), "JPEG"))
    place = whole.index(b"\xff\xc0")
    whole[place + 5 : place + 9] = struct.pack(">HH", side, side)
    return bytes(whole)


def webp_claiming(side: int) -> bytes:
    size = (side - 1).to_bytes(3, "little") * 2
    return b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size


def bmp_claiming(side: int) -> bytes:
    whole = bytearray(encoded(plain(), "BMP"))
    whole[18:26] = struct.pack("<ii", side, side)
    return bytes(whole)


def in_folder(path: Path) -> None:
    path.mkdir()
    (path / "inside.png").write_bytes(encoded(plain(), "PNG"))


BOMB = zlib.compress(bytes(200 << 20), 9)  # 200 KB that unpack to 200 MB

HOSTILE: tuple[Hostile, ...] = (
    Hostile("empty.png", "header", content(b""), "is empty"),
    Hostile("zeros.jpg", "header", content(bytes(4096)), "not a picture"),
    Hostile("text.png", "header", content(b"no picture at all\n" * 9), "not a picture"),
    Hostile("page.png", "header", content(b"<!DOCTYPE html><html><body>404</body></html>"), "not a picture"),
    Hostile("drawing.png", "header", content(b'<svg xmlns="http://www.w3.org/2000/svg"/>'), "not a picture"),
    Hostile("archive.jpg", "header", content(b"PK\x03\x04" + bytes(99)), "not a picture"),
    Hostile("script.jpg", "header", content(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"), "not a picture"),
    Hostile("moving.png", "header", content(lambda: moving("GIF")), "not a picture"),
    Hostile("scan.jpg", "header", content(lambda: encoded(plain(), "TIFF")), "not a picture"),
    Hostile("avif.png", "header", content(b"\0\0\0\x1cftypavif" + bytes(99)), "not a picture"),
    Hostile("start.png", "header", content(lambda: encoded(plain(), "PNG")[:20]), "not a picture"),
    Hostile("flat.png", "header", content(lambda: png(0, 10, b"")), "not a picture"),
    Hostile("dot.png", "header", content(lambda: png(1, 1, None)), "too small"),
    Hostile("thread.png", "header", content(lambda: png(1, 20_000, None)), "too small"),
    Hostile("line.png", "header", content(lambda: png(20_000, 16, None)), "long and narrow"),
    Hostile("claims.png", "header", content(lambda: png(60_000, 60_000, b"")), "million pixels"),
    Hostile("endless.png", "header", content(lambda: png(2**31 - 1, 2**31 - 1, b"")), "million pixels"),
    Hostile("claims.jpg", "header", content(lambda: jpeg_claiming(65_500)), "million pixels"),
    Hostile("claims.webp", "header", content(lambda: webp_claiming(16_383)), "million pixels"),
    Hostile("claims.bmp", "header", content(lambda: bmp_claiming(2**31 - 1)), "million pixels"),
    Hostile("bomb.png", "header", content(lambda: png(13_300, 13_300, None)), "million pixels"),
    Hostile("pipe.png", "header", os.mkfifo, "no file"),
    Hostile("nowhere.png", "header", lambda p: p.symlink_to("gone.png"), "leads nowhere"),
    Hostile("itself.png", "header", lambda p: p.symlink_to("itself.png"), "leads nowhere"),
    Hostile("latin.png", "header", captioned("ein Käfer".encode("latin-1")), "not UTF-8", is_caption=True),
    Hostile("utf16.png", "header", captioned("a cat".encode("utf-16")), "not UTF-8", is_caption=True),
    Hostile("endless_caption.png", "header", captioned(100 << 20), "too large for a caption", is_caption=True),
    Hostile("half.jpg", "decoding", content(cut("JPEG", 0.5)), "does not open"),
    Hostile("half.png", "decoding", content(cut("PNG", 0.5)), "does not open"),
    Hostile("half.webp", "decoding", content(cut("WEBP", 0.5)), "does not open"),
    Hostile("half.bmp", "decoding", content(cut("BMP", 0.5)), "does not open"),
    Hostile("sum.png", "decoding", content(wrong_sum), "does not open"),
    Hostile("hollow.png", "decoding", content(lambda: png(64, 64, zlib.compress(b""))), "does not open"),
    Hostile(
        "text_bomb.png", "decoding", content(lambda: png(64, 64, None, more=chunk(b"zTXt", b"a\0\0" + BOMB))), "does not open"
    ),
    Hostile("cmyk.jpg", "fine", content(lambda: encoded(plain().convert("CMYK"), "JPEG"))),
    Hostile("deep.png", "fine", content(lambda: png(64, 64, None, depth=16))),
    Hostile("deep_colours.png", "fine", content(lambda: png(64, 64, None, depth=16, colour=2))),
    Hostile("palette.png", "fine", content(with_palette)),
    Hostile("grey_alpha.png", "fine", content(lambda: encoded(plain().convert("LA"), "PNG"))),
    Hostile("clear.png", "fine", content(lambda: encoded(Image.new("RGBA", (48, 40), (9, 9, 9, 0)), "PNG"))),
    Hostile("moving.webp", "fine", content(lambda: moving("WEBP"))),
    Hostile("moving_too.png", "fine", content(lambda: moving("PNG"))),
    Hostile("turned.jpg", "fine", content(turned)),
    Hostile("a_jpeg.png", "fine", content(lambda: encoded(plain(), "JPEG"))),
    Hostile("a_png.jpg", "fine", content(lambda: encoded(plain(), "PNG"))),
    Hostile("tail.png", "fine", content(lambda: encoded(plain(), "PNG") + b"PK\x03\x04" * 9999)),
    Hostile("profile_bomb.png", "decoding", content(lambda: png(64, 64, None, more=chunk(b"iCCP", b"a\0\0" + BOMB))), "open"),
    Hostile("controls.png", "fine", captioned(b"a \x00\x1b[2J\x1b]52;c;eA==\x07 cat\xe2\x80\xae\r\n")),
    Hostile("marked.png", "fine", captioned(b"\xef\xbb\xbfa cat\r\n")),
    Hostile("a_word.png", "fine", captioned(b"a" * (1 << 20))),
    Hostile("many_words.png", "fine", captioned(b"a, " * 300_000)),
    Hostile("folder.png", "fine", in_folder),
    Hostile("largest.png", "fine", content(lambda: png(8000, 8000, None)), is_large=True),
    Hostile("moving.gif", "left out", content(lambda: moving("GIF"))),
    Hostile("phone.heic", "left out", content(b"\0\0\0\x18ftypheic" + bytes(99))),
)

LARGE: tuple[Hostile, ...] = (
    Hostile("grey.png", "fine", content(lambda: png(8000, 8000, None, depth=8)), is_large=True),
    Hostile("deep_large.png", "fine", content(lambda: png(8000, 8000, None, depth=16)), is_large=True),
    Hostile("clear_large.png", "fine", content(lambda: png(8000, 8000, None, depth=8, colour=6)), is_large=True),
    Hostile("large.jpg", "fine", content(lambda: encoded(Image.new("RGB", (8000, 8000), "red"), "JPEG")), is_large=True),
    Hostile("large_cmyk.jpg", "fine", content(lambda: encoded(Image.new("CMYK", (8000, 8000)), "JPEG")), is_large=True),
    Hostile("large.webp", "fine", content(lambda: encoded(Image.new("RGB", (8000, 8000)), "WEBP", method=0)), is_large=True),
)
"""Of as many pixels as may be: what is decoded at once must be bounded."""

BAD = [h.named for h in HOSTILE if h.seen in ("header", "decoding")]


def write(folder: Path, chosen: Sequence[Hostile] = HOSTILE, share: float = 0.05) -> int:
    """Write them, a loop of links, and so many sound pictures that the bad ones are this `share`; returns how many pictures can
    be trained."""
    folder.mkdir(parents=True)
    for hostile in chosen:
        hostile.make(folder / hostile.name)
    (folder / "loop").symlink_to(folder)
    num_bad = sum(h.seen in ("header", "decoding") for h in chosen)
    num_fine = sum(h.seen == "fine" for h in chosen)
    num_sound = max(0, round(num_bad / share) - num_bad - num_fine)
    contents = [encoded(Image.new("RGB", (40, 40), (i, 3 * i, 255 - i)), "PNG") for i in range(40)]
    for i in range(num_sound):
        (folder / f"sound{i:04}.png").write_bytes(contents[i % len(contents)])
        (folder / f"sound{i:04}.txt").write_text(f"a colour, number {i % 7}", encoding="utf-8")
    return num_fine + num_sound


if __name__ == "__main__":
    print(f"{write(Path(sys.argv[1]))} pictures can be trained, {len(BAD)} files cannot")
