"""What the supervisor tells the world of a run, in the files that Limner's own trainer writes."""

from __future__ import annotations

import os
import time
from dataclasses import replace

from limner.runs import Phase, Run, Status


class Record:
    """The state file and the events of a run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.state = run.starting(os.getpid())
        self._written = 0.0

    def say(
        self, status: Status | None = None, phase: Phase | None = None, progress: tuple[int, int] = (0, 0), **values
    ) -> None:
        """Publish a change of status or phase at once, mere progress at most twice a second."""
        changed = (status or self.state.status, phase if phase is not None else self.state.phase)
        is_turn = changed != (self.state.status, self.state.phase)
        self.state = replace(self.state, status=changed[0], phase=changed[1], progress=progress, **values)
        if is_turn or time.monotonic() - self._written > 0.5:
            self.run.write_state(self.state, durable=is_turn)
            self._written = time.monotonic()

    def event(self, kind: str, **values) -> None:
        self.run.event(kind, **values)

    def warn(self, message: str) -> None:
        self.event("warning", message=message)
