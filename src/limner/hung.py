"""A trainer that gets on no more: how long is waited, what is said of it, how often the run is started again by itself.

The trainer watches itself (`engine.watchdog`). The runner watches whether it still does, by the time of a file that the
watchdog touches: what stops a whole process, or holds its interpreter, stops the watchdog too. Either leaves the same last
word in the state: a run that is to go on waits in the queue again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from limner import runs
from limner.runs import Run, State

EXIT_CODE = 75
"""Of a trainer that ended itself because it hung: EX_TEMPFAIL of sysexits.h, "try again later"."""
HEARTBEAT = "heartbeat"
"""The file in a run's folder that its watchdog touches every few seconds."""
MOST_TIMES = 3
"""How often a run goes on by itself, from one start by a person to the next."""
_PAUSES_SECONDS = (10.0, 30.0, 90.0)
_SILENT_SECONDS = 600.0
_SECONDS = "LIMNER_HANG_SECONDS"
"""In the environment of tests: the seconds that stand for all of these."""


def limit(seconds: float) -> float:
    """How long something is waited for: `seconds`, but in tests."""
    return float(os.environ.get(_SECONDS) or seconds)


def pause(times: int) -> float:
    """Seconds from the end of a trainer that hung, for the `times`-th time, to the start of the next."""
    return limit(_PAUSES_SECONDS[min(times, MOST_TIMES) - 1])


def after(run: Run, state: State, reason: str, *, is_stopping: bool = False) -> State:
    """The last word about a trainer that hung in `state`, for `reason`: the run waits for another, or has failed.

    `is_stopping`: it was asked to stop by a signal. A request is seen here.
    """
    times, status = state.hangs + 1, "failed"
    if is_stopping or run.was_asked_to_stop():
        end = "It was to stop; resume it to go on from its newest training state."
    elif times > MOST_TIMES:
        end = f"It hung {times} times and is not started again by itself."
    elif run.path.parent != runs.home() / "runs" or not runs.runner_sign().exists():  # a job's, or started by hand
        end = "Resume it to go on from its newest training state."
    else:
        end, status = f"It goes on from its newest training state ({times} of {MOST_TIMES}).", "waiting"
    return replace(state, status=status, phase="", progress=(0, 0), error=f"{reason} {end}", hangs=times)


def tell(run: Run, state: State) -> None:
    """Write that last word, and the event that belongs to it."""
    run.write_state(state)
    run.end_last_line()
    if state.status == "failed":
        run.event("stop", step=state.step, status="failed", error=state.error)
    else:
        run.event("warning", message=state.error)


@dataclass
class Silence:
    """How long a run's watchdog has been silent, as one sees who looks again and again.

    Time in which nobody looked does not count: the machine slept, or was too busy for both.
    """

    clock: Callable[[], float] = time.monotonic
    _beat: int = 0
    _looked: float = 0.0
    _seconds: float = 0.0

    def seconds(self, run: Run) -> float:
        """Look now; 0 where no watchdog was ever heard."""
        beat, now = 0, self.clock()
        with contextlib.suppress(OSError):
            beat = (run.path / HEARTBEAT).stat().st_mtime_ns
        if not beat or beat != self._beat:
            self._beat, self._seconds = beat, 0.0
        else:
            self._seconds += min(now - self._looked, 5.0)
        self._looked = now
        return self._seconds

    def is_too_long(self, run: Run) -> bool:
        """Whether the trainer is to be ended for it."""
        return self.seconds(run) > limit(_SILENT_SECONDS)
