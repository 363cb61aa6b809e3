"""The pictures of a new run: taken in from the browser, listed with what is wrong with each, captioned."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Body, Request
from fastapi.concurrency import run_in_threadpool

from limner import disk, runs
from limner.config import Data
from limner.config.base import clean
from limner.data import captions, undo
from limner.data.scan import EXTENSIONS, MAX_CAPTION_BYTES, scan
from limner.errors import UserError, printable, wrong
from limner.web import intake, places
from limner.web.asked import Values, config_of
from limner.web.context import Context

MAX_SHOWN = 200
UPLOADS = "pictures"
"""The folder in Limner's home for what was uploaded, a folder for each set of pictures. They stay: runs refer to them."""
_TOKEN = re.compile(r"[0-9a-f]{16,64}")
_INTERRUPTED_SECONDS = 24 * 3600.0


def router(context: Context) -> APIRouter:
    """The routes of the pictures."""
    routes = APIRouter(prefix="/api")

    @routes.post("/upload")
    async def take(request: Request, token: str, name: str, inside: str = "", size: int | None = None) -> dict[str, Any]:
        """Take in one file, the request's body: a picture, a caption or a zip of them, into the folder of `token`, or into
        the one `inside` it. `size` is the file's: where it is too large, that can be learnt without sending it.
        """
        if not _TOKEN.fullmatch(token):
            raise wrong("token", "is not one of this page's.", "Reload the page.")
        folder = runs.home() / UPLOADS / token
        place = intake.inner(folder, inside)
        intake.require_size(name, size or 0)
        taken = disk.temporary_name(place / "x")
        try:
            came = 0
            with await run_in_threadpool(_new, taken) as file:
                async for chunk in request.stream():
                    came += len(chunk)
                    intake.require_size(name, came)
                    await run_in_threadpool(file.write, chunk)
            if size is not None and came != size:
                raise wrong(intake.shown(name), "did not come whole.", "Drop it again.")
            saved, refused = await run_in_threadpool(intake.put, taken, name, place)
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
            found = scan(data, partial(places.leads_inside, roots=context.roots))
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

    @routes.post("/caption")
    def caption(values: Values, path: Annotated[str, Body()], text: Annotated[str, Body()]) -> dict[str, str]:
        """Write a picture's caption beside it; an empty one removes its file, so that the trigger takes its place.

        The Dataset page can undo it.
        """
        picture, data = _picture(path, context), _data(values, context)
        captions.check_extensions(data.caption_extensions)
        file = captions.caption_file(str(picture), data.caption_extensions)
        places.resolve(str(file), context.roots, field=path, must_exist=False)
        text = _caption(text, path)
        try:
            before = captions.read(file)
        except (OSError, UnicodeDecodeError):
            raise wrong(file.name, "is no caption file that can be read.", "Save it as UTF-8 text, or remove it.") from None
        after = captions.with_caption(before, text) if text else None
        if after != before:
            folder, about = data.path or picture.parent, printable(picture.name, 80)
            change = undo.Write(file, before, after)
            done = undo.Journal(runs.home() / "undo").apply(folder, "set", about, [change], lambda _: True)
            if done.refused:
                raise wrong(file.name, f"was not written: {done.refused[0][1]}.", "Look at the folder, and try again.")
        return {"caption": text}

    return routes


def sweep() -> None:
    """Remove what uploads left behind that were interrupted a day ago or longer, such as by a power cut."""
    folder, limit = runs.home() / UPLOADS, time.time() - _INTERRUPTED_SECONDS
    for token in os.listdir(folder) if folder.is_dir() else ():
        if not _TOKEN.fullmatch(token) or (folder / token).is_symlink():
            continue
        for inside, _, names in os.walk(folder / token):  # follows no links
            for path in (Path(inside, name) for name in names if name.startswith(disk.TEMPORARY)):
                with contextlib.suppress(OSError):  # somebody else's, or gone meanwhile
                    facts = path.lstat()
                    if stat.S_ISREG(facts.st_mode) and facts.st_mtime < limit:
                        path.unlink()


def _new(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("wb")


def _data(values: dict[str, str], context: Context) -> Data:
    """[data] of the form's values alone: what else is wrong there does not matter here. No trigger stands for a caption."""
    asked = {path: text for path, text in values.items() if path.startswith("data.")}
    return config_of(asked, context).data.model_copy(update={"trigger": None})


def _name(path: str, data: Data) -> str:
    inside = data.path is not None and Path(path).is_relative_to(data.path)
    return os.path.relpath(path, data.path) if inside else path


def _picture(text: str, context: Context) -> Path:
    """A picture that the page may show. Raises UserError for anything else."""
    path = places.resolve(text, context.roots, field=text[:200])
    if path.suffix.lower() not in EXTENSIONS or not path.is_file():
        raise wrong(text[:200], "is not a picture.", "Choose a .png, .jpg, .webp or .bmp file.")
    return path


def _caption(text: str, field: str) -> str:
    """A caption on one line. Raises UserError where it is too long or holds control characters."""
    if len(text.encode("utf-8", "replace")) > MAX_CAPTION_BYTES:
        raise wrong(field, "is too long for a caption (over 1 MiB).", "Make it shorter.")
    try:
        return " ".join(clean(text).split())
    except ValueError as error:
        raise wrong(field, f"the caption {error}.", "Remove it.") from None
