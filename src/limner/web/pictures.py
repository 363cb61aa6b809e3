"""The pictures of a new run: taken in from the browser, listed with what is wrong with each, shown small, captioned."""

from __future__ import annotations

import io
import os
import re
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from PIL import Image

from limner import disk, runs
from limner.config import Data
from limner.config.base import clean
from limner.data.decode import decode
from limner.data.scan import EXTENSIONS, MAX_CAPTION_BYTES, scan
from limner.errors import UserError, wrong
from limner.web import intake, places
from limner.web.asked import Values, config_of
from limner.web.context import Context

MAX_SHOWN = 200
UPLOADS = "pictures"
"""The folder in Limner's home for what was uploaded, a folder for each set of pictures. They stay: runs refer to them."""
_THUMBNAIL_PX = 224
_TOKEN = re.compile(r"[0-9a-f]{16,64}")


def router(context: Context) -> APIRouter:
    """The routes of the pictures."""
    routes = APIRouter(prefix="/api")

    @routes.post("/upload")
    async def take(request: Request, token: str, name: str) -> dict[str, Any]:
        """Take in one file, the request's body: a picture, a caption or a zip of them, into the folder of `token`."""
        if not _TOKEN.fullmatch(token):
            raise wrong("token", "is not one of this page's.", "Reload the page.")
        folder = runs.home() / UPLOADS / token
        limit = intake.limit_of(name)
        folder.mkdir(parents=True, exist_ok=True)
        taken = disk.temporary_name(folder / "x")
        try:
            size = 0
            with taken.open("wb") as file:
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > limit:
                        raise wrong(intake.shown(name), f"is larger than {limit >> 20} MiB.", "Make it smaller.")
                    file.write(chunk)
            saved, refused = await run_in_threadpool(intake.put, taken, name, folder)
        finally:
            taken.unlink(missing_ok=True)
        return {"path": str(folder), "saved": saved, "refused": [asdict(f) for f in refused]}

    @routes.post("/pictures/list")
    def look(values: Values) -> dict[str, Any]:
        """The pictures of the folder that the values name, the first `MAX_SHOWN` in full.

        Nothing while the values name no folder: it is asked at every change, and the reason is said by `check`, at its field.
        """
        try:
            data = _data(values, context)
            found = scan(data)
        except UserError:
            return {"total": 0, "pictures": [], "broken": [], "num_broken": 0}
        shown = found.pictures[:MAX_SHOWN]
        return {
            "total": len(found.pictures),
            "pictures": [
                {"path": p.path, "name": _name(p.path, data), "width": p.width, "height": p.height, "caption": p.caption}
                for p in shown
            ],
            "broken": [{**asdict(f), "name": _name(f.field, data)} for f in found.broken[:MAX_SHOWN]],
            "num_broken": len(found.broken),
        }

    @routes.get("/thumbnail")
    def thumbnail(path: str) -> Response:
        """A small JPEG of a picture."""
        picture = _picture(path, context)
        return Response(_small(str(picture), picture.stat().st_mtime_ns), media_type="image/jpeg", headers=_PRIVATE)

    @routes.post("/caption")
    def caption(values: Values, path: Annotated[str, Body()], text: Annotated[str, Body()]) -> dict[str, str]:
        """Write a picture's caption beside it; an empty one removes its file, so that the trigger takes its place."""
        picture = _picture(path, context)
        endings = _data(values, context).caption_extensions or (".txt",)
        beside = [picture.with_suffix(e) for e in endings if re.fullmatch(r"\.[\w-]{1,20}", e)]
        target = next((p for p in beside if p.is_file()), beside[0] if beside else picture.with_suffix(".txt"))
        places.resolve(str(target), context.roots, field=path, must_exist=False)
        text = _caption(text, path)
        if text:
            disk.write_text(target, text + "\n")
        else:
            target.unlink(missing_ok=True)
        return {"caption": text}

    return routes


_PRIVATE = {"Cache-Control": "private, max-age=60"}


def _data(values: dict[str, str], context: Context) -> Data:
    """[data] of the form's values alone: what else is wrong there does not matter here. No trigger stands for a caption."""
    asked = {path: text for path, text in values.items() if path.startswith("data.")}
    return config_of(asked, context).data.model_copy(update={"trigger": None})


def _name(path: str, data: Data) -> str:
    assert data.path is not None
    return os.path.relpath(path, data.path) if Path(path).is_relative_to(data.path) else path


def _picture(text: str, context: Context) -> Path:
    """A picture that the page may show. Raises UserError for anything else."""
    path = places.resolve(text, context.roots, field=text[:200])
    if path.suffix.lower() not in EXTENSIONS or not path.is_file():
        raise wrong(text[:200], "is not a picture.", "Choose a .png, .jpg, .webp or .bmp file.")
    return path


@lru_cache(maxsize=512)
def _small(path: str, changed: int) -> bytes:
    """A JPEG of some 8 kB. `changed` (mtime, ns) makes a changed picture another one."""
    del changed
    picture = decode(path, least=(_THUMBNAIL_PX, _THUMBNAIL_PX))
    picture.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.BILINEAR)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=80)
    return out.getvalue()


def _caption(text: str, field: str) -> str:
    """A caption on one line. Raises UserError where it is too long or holds control characters."""
    if len(text.encode("utf-8", "replace")) > MAX_CAPTION_BYTES:
        raise wrong(field, "is too long for a caption (over 1 MiB).", "Make it shorter.")
    try:
        return " ".join(clean(text).split())
    except ValueError as error:
        raise wrong(field, f"the caption {error}.", "Remove it.") from None
