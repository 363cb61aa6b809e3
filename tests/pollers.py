"""Pages that watch a run, without browsers: each asks what a page asks, at its pace, on a connection that stays open."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Seen:
    """What a crowd of pages saw."""

    seconds: list[float] = field(default_factory=list)
    """How long each answer took."""
    errors: list[str] = field(default_factory=list)
    late: int = 0
    """Turns that began later than they should have, since the one before was not answered yet."""

    def quantile(self, share: float) -> float:
        """The time in which this share of the answers came, in seconds."""
        ordered = sorted(self.seconds)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan

    def __str__(self) -> str:
        told = ", ".join(f"p{100 * s:g} {1000 * self.quantile(s):.0f} ms" for s in (0.5, 0.9, 0.99, 1.0))
        return f"{len(self.seconds)} answers, {len(self.errors)} errors, {self.late} late turns; {told}"


class Page:
    """One page on the Runs tab: the list, the chosen run, its curves."""

    def __init__(self, url: str, cookie: str, run: str) -> None:
        parts = urlsplit(url)
        self._host, self._port, self._cookie, self._run = parts.hostname or "", parts.port or 80, cookie, run
        self._ways: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._versions = {"runs": "", "run": "", "curves": ""}

    async def turn(self, seen: Seen) -> None:
        """What the page's script asks each second."""
        path = f"/api/runs/{self._run}"
        for name, route in (("runs", "/api/runs"), ("run", path), ("curves", f"{path}/curves")):
            began = time.monotonic()
            try:
                answer = await asyncio.wait_for(self._get(f"{route}?since={self._versions[name]}"), 30)
                self._versions[name] = answer["version"]
            except (OSError, ValueError, KeyError, asyncio.IncompleteReadError, TimeoutError) as error:
                seen.errors.append(f"{route}: {error!r}")
                self.close()
            seen.seconds.append(time.monotonic() - began)

    async def _get(self, address: str) -> Any:
        if self._ways is None:
            self._ways = await asyncio.open_connection(self._host, self._port, limit=1 << 22)
        reading, writing = self._ways
        writing.write(f"GET {address} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nCookie: {self._cookie}\r\n\r\n".encode())
        await writing.drain()
        head = (await reading.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        body = await reading.readexactly(int(head.partition("content-length:")[2].split("\r\n")[0]))
        if " 200 " not in head.split("\r\n")[0]:
            raise ValueError(head.split("\r\n")[0] + body[:200].decode("utf-8", "replace"))
        return json.loads(body)

    def close(self) -> None:
        if self._ways is not None:
            self._ways[1].close()
            self._ways = None


async def crowd(pages: Sequence[Page], seconds: float, every: float = 1.0) -> Seen:
    """Let the pages ask, each once `every` so many seconds and not at the same moment, for so long."""
    seen, until = Seen(), time.monotonic() + seconds

    async def one(number: int, page: Page) -> None:
        due = time.monotonic() + every * number / len(pages)
        while due < until:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await page.turn(seen)
            due += every
            if time.monotonic() > due:
                seen.late += 1
                due = time.monotonic()
        page.close()

    await asyncio.gather(*(one(n, page) for n, page in enumerate(pages)))
    return seen
