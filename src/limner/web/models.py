"""The base models on this machine, recognised by their files' headers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter

from limner import runs
from limner.errors import UserError, wrong
from limner.formats.base import recognise, weight_files
from limner.web.context import Context

_MOST = 200
_DEPTH = 2


def router(context: Context) -> APIRouter:
    """The route of the models."""
    routes = APIRouter(prefix="/api")

    @routes.get("/models")
    def models() -> list[dict[str, Any]]:
        """What can be trained (`problem` is ""), and what cannot, with the reason; the pocket model first."""
        found = [_described("pocket", 0)]
        for source, file in _candidates(context):
            if len(found) < _MOST:
                found.append(_described(source, file.stat().st_mtime_ns))
        return sorted(found, key=lambda m: bool(m["problem"]))

    return routes


def _candidates(context: Context) -> Iterator[tuple[str, Path]]:
    """(what model.base would say, a file that changes with it)."""
    for root in dict.fromkeys((context.settings.models, runs.home() / "models")):
        if root is not None and root.is_dir():
            yield from _inside(root, _DEPTH)
    from huggingface_hub.constants import HF_HUB_CACHE  # slow to import, and Gradio has done so by now

    for folder in sorted(Path(HF_HUB_CACHE).glob("models--*--*")):
        for index in sorted(folder.glob("snapshots/*/model_index.json"))[:1]:
            yield folder.name.removeprefix("models--").replace("--", "/", 1), index


def _inside(folder: Path, depth: int) -> Iterator[tuple[str, Path]]:
    """Diffusers folders and single files in a folder and some way below; what cannot be read is passed over."""
    index = folder / "model_index.json"
    if index.is_file():
        yield str(folder), index
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.endswith((".safetensors", ".ckpt")) and entry.is_file():
            yield entry.path, Path(entry.path)
        elif depth and not entry.name.startswith(".") and entry.is_dir():
            yield from _inside(Path(entry.path), depth - 1)


def _described(source: str, changed: int) -> dict[str, Any]:
    """What a model is, or why it cannot be used."""
    name = source if source == "pocket" or not os.path.isabs(source) else Path(source).name
    try:
        return {"base": source, "name": name, "problem": "", **_facts(source, changed)}
    except UserError as error:  # looked at again next time: what is missing may come to lie beside it
        return {"base": source, "name": name, "problem": error.findings[0].message}


@lru_cache(maxsize=_MOST * 2)
def _facts(source: str, changed: int) -> dict[str, Any]:
    """What a model is; read anew when its file has changed. Raises UserError if it cannot be used."""
    del changed
    base = recognise(source)
    if base.path is None:
        raise wrong("model.base", "is not complete.", "Download it again.")
    files = [base.path] if base.layout == "file" else [f for p in base.path.iterdir() for f in weight_files(base.path, p.name)]
    files += base.others.values()
    return {
        "family": base.family,
        "prediction": base.prediction,
        "resolution": base.resolution_px,
        "mib": sum(f.stat().st_size for f in files) >> 20,
    }
