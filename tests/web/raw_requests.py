"""Requests as a server hands them on, made by hand: with any headers, in any pieces, without a client's own manners."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import quote

T = TypeVar("T")
Headers = Mapping[str, str] | Sequence[tuple[str, str]]
Answer = tuple[int, dict[str, str], bytes]
HOST = "127.0.0.1:7860"
OWN = {
    "host": HOST,
    "origin": f"http://{HOST}",
    "sec-fetch-site": "same-origin",
    "sec-fetch-mode": "cors",
    "sec-fetch-dest": "empty",
}
"""What the page itself sends."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to its end in a thread of its own: a browser of another test may have its loop in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


async def answer(
    app: Any,
    method: str,
    path: str,
    headers: Headers,
    *,
    pieces: Sequence[bytes] = (b"",),
    query: str = "",
    client: str = "127.0.0.1",
) -> Answer:
    """(status, headers, body) of one request. `path` is as the server decoded it."""
    lines = headers.items() if isinstance(headers, Mapping) else headers
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": quote(path, safe="/%=:{}").encode(), "query_string": query.encode(), "root_path": "",
        "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in lines],
        "client": (client, 5), "server": ("127.0.0.1", 7860),
    }  # fmt: skip
    waiting, is_answered = list(pieces), asyncio.Event()
    said: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not waiting:
            await is_answered.wait()  # whoever asked stays until then
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message: dict[str, Any]) -> None:
        said.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            is_answered.set()

    await app(scope, receive, send)
    starts = [m for m in said if m["type"] == "http.response.start"]
    assert len(starts) == 1, said
    answered = {k.decode("latin-1"): v.decode("latin-1") for k, v in starts[0]["headers"]}
    return starts[0]["status"], answered, b"".join(m.get("body", b"") for m in said[1:])


def ask(app: Any, method: str, path: str, headers: Headers, *, pieces: list[bytes] | None = None, query: str = "") -> Answer:
    """The same from where no loop runs."""
    return run(answer(app, method, path, headers, pieces=pieces or [b""], query=query))
