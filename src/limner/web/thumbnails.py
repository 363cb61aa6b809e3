"""Small versions of pictures for the page: made once, kept on the disk within a bound, only from inside the allowed roots."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import threading
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from PIL import Image

from limner import disk, runs
from limner.data.decode import decode
from limner.web import places
from limner.web.context import Context

SIDES = (128, 256, 512, 1024)
"""The longest sides that are made, in px; what is asked for is rounded up to one, so that the cache holds few of each."""
LIMIT_BYTES = 256 << 20
_WRITES_BETWEEN_PRUNINGS = 100
_BEGIN, _END = b"\xff\xd8", b"\xff\xd9"
"""Of a whole JPEG."""
_TURN = threading.BoundedSemaphore(2)  # a picture of 64 million pixels takes 200 MB while it is decoded


def router(context: Context) -> APIRouter:
    """The route for thumbnails."""
    routes, shelf = APIRouter(), Shelf()

    @routes.get("/api/thumbnail")
    def thumbnail(
        path: Annotated[str, Query(max_length=8000)],
        size: Annotated[int, Query(ge=1, le=4096)] = 256,
        if_none_match: Annotated[str | None, Header()] = None,
    ) -> Response:
        """A JPEG of the upright picture at `path`, its longest side at most `size` rounded up to one of SIDES, in px."""
        return shelf.answer(places.resolve(path, context.roots, field="path"), size, if_none_match)

    return routes


class Shelf:
    """A folder of thumbnails, at most about LIMIT_BYTES large; the longest unused go first."""

    def __init__(self, folder: Path | None = None, limit_bytes: int = LIMIT_BYTES) -> None:
        self.folder, self.limit_bytes = folder or runs.home() / "cache" / "thumbnails", limit_bytes
        self._writes = itertools.count()

    def answer(self, picture: Path, size: int, if_none_match: str | None) -> Response:
        """A JPEG of the upright picture, its longest side at most `size` rounded up to one of SIDES, in px; 304 to whoever
        has it. Raises UserError for a picture that does not open.
        """
        side = next((s for s in SIDES if s >= size), SIDES[-1])
        key = self.key(picture, side)
        headers = {"ETag": f'"{key}"', "Cache-Control": "private, no-cache", "X-Content-Type-Options": "nosniff"}
        if if_none_match == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(self.get(picture, side, key), media_type="image/jpeg", headers=headers)

    def key(self, picture: Path, side: int) -> str:
        """Names one content at one size: path, time and length of the file."""
        facts = picture.stat()
        return hashlib.sha256(
            f"{picture}\0{facts.st_mtime_ns}\0{facts.st_size}\0{side}".encode("utf-8", "surrogatepass")
        ).hexdigest()

    def get(self, picture: Path, side: int, key: str) -> bytes:
        """The JPEG, made now if it was not kept. Raises UserError for a picture that does not open."""
        kept = self.folder / key[:2] / key
        try:
            content = kept.read_bytes()
            if content.startswith(_BEGIN) and content.endswith(_END):
                os.utime(kept)
                return content
        except OSError:
            pass
        with _TURN:
            content = _shrink(picture, side)
        with contextlib.suppress(OSError):  # a full disk, say: it is made again, then
            disk.write_bytes(kept, content, durable=False)
        if next(self._writes) % _WRITES_BETWEEN_PRUNINGS == 0:
            self.prune()
        return content

    def prune(self) -> None:
        """Remove the longest unused until three quarters of the limit are left, if there is more than the limit."""
        found = []
        for path in self.folder.glob("??/*"):
            try:
                facts = path.stat()
            except FileNotFoundError:
                continue
            found.append((facts.st_mtime_ns, facts.st_size, path))
        total = sum(size for _, size, _ in found)
        if total <= self.limit_bytes:
            return
        for _, size, path in sorted(found):
            path.unlink(missing_ok=True)
            total -= size
            if total <= self.limit_bytes * 3 // 4:
                return


def _shrink(picture: Path, side: int) -> bytes:
    image = decode(picture, least=(side, side))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85)
    return out.getvalue()
