"""A trainer is asked to end by SIGTERM or ctrl-C: once, it saves and leaves; twice, it leaves now."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from limner.errors import StopRequested

_SAME_SECONDS = 1.0
"""Signals so close to the first one are the same wish: a group's members are told by whoever started them as well."""


class StopFlag:
    """Set by the first signal, for the loop to end after the current step with its state saved. A second one ends all now."""

    def __init__(self) -> None:
        self._number, self._since, self._leaves_at_once = 0, 0.0, False
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, self._handle)

    @property
    def is_set(self) -> bool:
        return self._number != 0

    @property
    def exit_code(self) -> int:
        """That of a trainer that was stopped: 128 + the signal, so that no one takes it for finished; 0 after a request."""
        return 128 + self._number if self.is_set else 0

    @contextmanager
    def at_once(self, *, is_alone: bool) -> Iterator[None]:
        """Inside, nothing is lost by leaving, wherever it is: StopRequested is raised by the signal itself. Several processes
        leave together instead, where they ask one another."""
        self._leaves_at_once = is_alone
        try:
            if is_alone and self.is_set:
                raise StopRequested
            yield
        finally:
            self._leaves_at_once = False

    def _handle(self, number: int, frame: object) -> None:  # noqa: ARG002
        if not self.is_set:
            self._number, self._since = number, time.monotonic()
            if self._leaves_at_once:
                raise StopRequested
        elif time.monotonic() - self._since > _SAME_SECONDS:
            os._exit(128 + number)
