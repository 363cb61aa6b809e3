"""The trainer's watchdog: a thread that ends the process when it gets on no more, with the stacks of all threads in the log.

The journal gives it a sign of life at each step, phase and bit of progress. A section is what lies between: limits are learnt
from how long it took before, and time in which the watchdog itself did not run (the machine slept, the process was stopped)
does not count. Where nothing is learnt yet, time in which something is computed, read or written counts a tenth: a first step
may be compiled for minutes, and a model come from a slow disk.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import statistics
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from limner import hung
from limner.engine.together import leave_reason
from limner.runs import LIVE, Run, State

LEAST_SECONDS = {
    "setup": 600.0,
    "fetching": 24 * 3600.0,  # of a model from a hub, whose client has limits of its own
    "the first step": 600.0,
    "a step": 120.0,
    "saving": 1800.0,
    "sampling": 600.0,
    "validating": 600.0,
}
"""Section -> how long it may give no sign of life before anything is known of it."""
_COMPILE_SECONDS = 1800.0
_MEDIANS, _LONGESTS = 20, 4
_KEPT = 200
_BUSY_SHARE, _BUSY_BYTES = 0.05, 64 << 10
"""What counts as being at work: of a second of one core, or bytes read and written, in a second."""
_KNOWS_BYTES = hasattr(psutil.Process, "io_counters")
"""macOS does not tell them."""
_TICK_SECONDS = 5.0
_TELL_SECONDS = 15.0
"""A disk that hangs keeps nobody from ending."""


class Limits:
    """How long each section may give no sign of life."""

    def __init__(self) -> None:
        self._least = {name: hung.limit(seconds) for name, seconds in LEAST_SECONDS.items()}
        self._took: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_KEPT))

    def lengthen(self, section: str, seconds: float) -> None:
        """Wait at least so long."""
        self._least[section] = max(self._least[section], hung.limit(seconds))

    def learn(self, section: str, seconds: float) -> None:
        """There were so many seconds between two signs of life."""
        self._took[section].append(seconds)

    def is_learnt(self, section: str) -> bool:
        """Whether what it takes here is known well: that of a step, when one was measured. It may be an hour."""
        return section == "a step" and bool(self._took[section])

    def of(self, section: str) -> float:
        """Seconds: twenty times what is usual, four times the longest, and no less than the least."""
        took = list(self._took[section])
        if not took:
            return max(self._least[section], self._least["the first step"]) if section == "a step" else self._least[section]
        return max(self._least[section], _MEDIANS * statistics.median(took), _LONGESTS * max(took))


@dataclass(frozen=True)
class Hang:
    """What was found: how long there was no sign of life, where, and how long is waited there."""

    section: str
    phase: str
    seconds: float
    limit: float

    def words(self, step: int) -> str:
        """It in a sentence; `step` is the last finished one."""
        where = self.phase if self.section == "setup" else f"{self.section} after step {step}"
        return f"It hung in {where}: no sign of life for {self.seconds:.0f} s, where {self.limit:.0f} s are the limit."


class Watchdog:
    """Watches this process's work on a run, from `start` to `stop`. `work` tells (CPU seconds, bytes) spent so far."""

    def __init__(
        self,
        run: Run,
        *,
        is_main: bool = True,
        is_stopping: Callable[[], bool] = bool,
        clock: Callable[[], float] = time.monotonic,
        work: Callable[[], tuple[float, float]] | None = None,
    ) -> None:
        self.limits = Limits()
        self.tick = min(_TICK_SECONDS, hung.limit(8 * _TICK_SECONDS) / 8)
        self._run, self._is_main, self._is_stopping = run, is_main, is_stopping
        self._clock, self._work = clock, work or _work
        self._section, self._phase, self._has_stepped, self._signs = "setup", "loading", False, 0
        self._sign_at = self._looked_at = clock()
        self._seen, self._waited, self._worked = 0, 0.0, (0.0, 0.0)
        self._is_over = threading.Event()

    def sign(self, phase: str) -> None:
        """A sign of life: of a phase of the run's, or "step" where a step is finished."""
        now, self._has_stepped = self._clock(), self._has_stepped or phase == "step"
        section = "a step" if self._has_stepped else "the first step"
        if phase not in ("step", "training"):
            section = phase if phase in LEAST_SECONDS else "setup"
            self._has_stepped = self._has_stepped and section != "setup"
        if section == self._section:
            self.limits.learn(section, now - self._sign_at)
        self._section, self._phase, self._sign_at = section, phase, now
        self._signs += 1

    def look(self) -> Hang | None:
        """Look once; what is wrong, or None."""
        signs, section, now = self._signs, self._section, self._clock()
        passed, self._looked_at = now - self._looked_at, now
        if signs != self._seen:
            self._seen, self._waited = signs, 0.0
            self._worked = (0.0, 0.0) if self.limits.is_learnt(section) else self._work()
            return None
        counted = min(passed, self.tick)
        is_slow = not self.limits.is_learnt(section) and self._is_at_work(passed)
        self._waited += counted / 10 if is_slow else counted
        limit = self.limits.of(section)
        if self._waited <= limit:
            return None
        return Hang(section, self._phase, now - self._sign_at, limit)

    def _is_at_work(self, seconds: float) -> bool:
        before, self._worked = self._worked, self._work()
        cpu, moved = (b - a for a, b in zip(before, self._worked, strict=True))
        return not _KNOWS_BYTES or cpu > _BUSY_SHARE * seconds or moved > _BUSY_BYTES * seconds

    def start(self) -> None:
        """Watch from now on. The stacks of all threads are also written for SIGUSR1, and for a crash of native code."""
        faulthandler.enable(2)
        if sys.platform != "win32":
            faulthandler.register(signal.SIGUSR1, 2, all_threads=True)
        self._touch()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """The work is over."""
        self._is_over.set()

    def expect(self, *, compiles: bool, waits_seconds: float) -> None:
        """What the configuration lets one expect: new shapes may be compiled at any step, and processes wait so long for one
        another before they fail of themselves."""
        for section, seconds in LEAST_SECONDS.items():
            self.limits.lengthen(section, waits_seconds + seconds)
        if compiles:
            self.limits.lengthen("a step", waits_seconds + _COMPILE_SECONDS)

    def _watch(self) -> None:
        while not self._is_over.wait(self.tick):
            self._touch()
            if (hang := self.look()) is not None:
                self._end(hang)

    def _touch(self) -> None:
        if self._is_main:
            with contextlib.suppress(OSError):
                (self._run.path / hung.HEARTBEAT).touch()

    def _end(self, hang: Hang) -> None:
        telling = threading.Thread(target=self._tell, args=(hang,), daemon=True)
        telling.start()
        telling.join(_TELL_SECONDS)
        os._exit(hung.EXIT_CODE)

    def _tell(self, hang: Hang) -> None:
        state = State.read(self._run.path / "state.json")
        reason = hang.words(state.step)
        # past Python's streams, which the thread that hangs may hold
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        os.write(2, f"\n{now} process {os.getpid()}: {reason} The stacks of all its threads:\n".encode())
        faulthandler.dump_traceback(2, all_threads=True)
        _end_children()
        if leave_reason(reason, hung.EXIT_CODE, is_echo=True) or not self._is_main or state.status not in LIVE:
            return  # others say it; or the run had ended, and only the process had not
        last = hung.after(self._run, state, reason, is_stopping=self._is_stopping())
        os.write(2, f"{last.error}\n".encode())
        hung.tell(self._run, last)


def _work() -> tuple[float, float]:
    """(CPU seconds, bytes from and to disks) of this process and those that it started; the latter where they are known."""
    seconds = moved = 0.0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.Error, AttributeError):
            times = process.cpu_times()
            seconds += times.user + times.system
            counters = process.io_counters()
            moved += counters.read_bytes + counters.write_bytes
    return seconds, moved


def _end_children() -> None:
    """End what this process started: politely, then at once."""
    children = psutil.Process().children(recursive=True)
    for act in ("terminate", "kill"):
        for child in children:
            with contextlib.suppress(psutil.Error):
                getattr(child, act)()
        _, children = psutil.wait_procs(children, timeout=2)
