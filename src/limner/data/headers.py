"""The size of a picture from its first bytes, without decoding it, and what is wrong with it as far as these tell."""

from __future__ import annotations

import os
import struct

import imagesize

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
UNSEEN = frozenset({".gif", ".avif", ".jxl", ".tif", ".tiff", ".heic", ".heif"})
"""Pictures as well, but of kinds that are not opened."""
MAX_PIXELS = 64_000_000
_PNG = b"\x89PNG\r\n\x1a\n"
_HEAD_BYTES = 32
_BLOCK_BYTES = 4096


def size_of(path: str) -> tuple[str, int, int]:
    """(what is wrong or "", width, height); EXIF turns of JPEGs are applied. `path` must be a regular file."""
    try:
        head = first_bytes(path, _HEAD_BYTES)
        if not head:
            return "is empty (0 bytes).", 0, 0
        if head.startswith(_PNG) and len(head) == _HEAD_BYTES and head[12:16] == b"IHDR":
            width, height = struct.unpack(">LL", head[16:24])
        else:
            width, height = imagesize.get(os.fsencode(path)) if _is_picture(head) else (-1, -1)
    except (OSError, ValueError, TypeError, ArithmeticError, LookupError, struct.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "its header is damaged"
        return f"cannot be read as a picture ({reason}).", 0, 0
    width, height = int(width), int(height)
    return _fault(width, height), width, height


def first_bytes(path: str, limit: int) -> bytes:
    """The start of a file, or all of it. Raises OSError."""
    # not by open(): its objects cost more than the reading, a hundred thousand times. Not waiting, should it be a pipe by now
    number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        content = os.read(number, min(limit, _BLOCK_BYTES))
        while _BLOCK_BYTES <= len(content) < limit and (more := os.read(number, limit - len(content))):
            content += more
        return content
    finally:
        os.close(number)


def _fault(width: int, height: int) -> str:
    if width <= 0 or height <= 0:
        return "is not a picture that Limner can open (PNG, JPEG, WebP or BMP)."
    if width * height > MAX_PIXELS:
        return f"is {width} x {height}, more than {MAX_PIXELS // 1_000_000} million pixels."
    if min(width, height) < 8:
        return f"is {width} x {height}, too small to learn from."
    if max(width, height) > 12 * min(width, height):
        return f"is {width} x {height}, too long and narrow."
    return ""


def _is_picture(start: bytes) -> bool:
    """Whether a file's first bytes are those of a PNG, JPEG, BMP or WebP, whatever its name says."""
    return start.startswith((_PNG, b"\xff\xd8\xff", b"BM")) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
