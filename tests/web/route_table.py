"""All routes of an application, those of mounted and included ones among them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def routes_of(app: Any, prefix: str = "") -> Iterator[tuple[set[str], str, Any]]:
    """(methods, path, route) of all that is answered; a mounted folder of files counts as one file in it."""
    for route in app.routes:
        inner = getattr(route, "original_router", None) or getattr(route, "app", None)
        path = prefix + getattr(route, "path", "")
        if getattr(route, "methods", None):
            yield route.methods, path, route
        elif hasattr(inner, "routes"):
            yield from routes_of(inner, path)
        else:
            yield {"GET"}, f"{path}/common.js", route
