"""How long a request may take to come: whoever holds a connection and asks nothing is cut off (slow loris).

uvicorn itself waits for the head and the body of a request as long as the connection stands.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from starlette.types import Message, Receive
from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEAD_SECONDS = 20.0
"""From the connection, or from the first byte behind the last answer, to the end of a request's head."""
PAUSE_SECONDS = 30.0
"""The longest pause inside a body, and what a body is given beyond its length at the slowest pace."""
SLOWEST_BYTES_PER_SECOND = 1024


class TooSlow(Exception):
    """The rest of a body did not come in time."""


def in_time(receive: Receive, clock: Callable[[], float] = time.monotonic) -> Receive:
    """`receive`, which raises TooSlow when the body pauses, or comes drop by drop. Behind the body it waits without limit.
    Time in which nobody waits for the body is the server's own."""
    waited, taken, is_whole = 0.0, 0, False

    async def receiving() -> Message:
        nonlocal waited, taken, is_whole
        if is_whole:
            return await receive()
        left, began = PAUSE_SECONDS + taken / SLOWEST_BYTES_PER_SECOND - waited, clock()
        try:
            async with asyncio.timeout(min(left, PAUSE_SECONDS)):
                message = await receive()
        except TimeoutError:
            raise TooSlow from None
        waited += clock() - began
        taken += len(message.get("body", b""))
        is_whole = message["type"] != "http.request" or not message.get("more_body")
        return message

    return receiving


_Usual: Any = AutoHTTPProtocol


class Protocol(_Usual):
    """uvicorn's own protocol, but a connection is closed on which no request begins in time."""

    _cutting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._count()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._count()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_counting()
        super().connection_lost(exc)

    def _count(self) -> None:
        """Count the time while nothing is asked: at the start, and from what comes behind an answer on."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_counting()
        elif self._cutting is None:
            self._cutting = asyncio.get_running_loop().call_later(HEAD_SECONDS, self.transport.abort)

    def _stop_counting(self) -> None:
        if self._cutting is not None:
            self._cutting.cancel()
            self._cutting = None
