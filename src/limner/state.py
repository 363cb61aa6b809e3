"""What a process tells of a run while it works on it: its state, at once where it turns, else now and then."""

from __future__ import annotations

import os
import time
from dataclasses import replace

from limner.runs import Phase, Run, Status

_SECONDS_BETWEEN = 0.5


class StateTeller:
    """Writes the state file of a run for the process that works on it. Where several do, the others are silent."""

    def __init__(self, run: Run, *, is_silent: bool = False) -> None:
        self.run = run
        self.state = run.starting(os.getpid())
        self._is_silent, self._written = is_silent, 0.0

    def say(
        self, status: Status | None = None, phase: Phase | None = None, progress: tuple[int, int] = (0, 0), **values
    ) -> None:
        """Publish a change of status or phase at once, mere progress at most twice a second."""
        changed = (status or self.state.status, phase if phase is not None else self.state.phase)
        is_turn = changed != (self.state.status, self.state.phase)
        self.state = replace(self.state, status=changed[0], phase=changed[1], progress=progress, **values)
        if not self._is_silent and (is_turn or values or time.monotonic() - self._written > _SECONDS_BETWEEN):
            # mere progress need not outlive a power cut, and waiting for the disk would hold the work up
            self.run.write_state(self.state, durable=is_turn)
            self._written = time.monotonic()
