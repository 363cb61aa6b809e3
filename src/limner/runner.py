"""The runner: the one detached process that starts waiting runs, each when its device is free. `python -m limner.runner`.

It is started by whoever enqueues, holds `locks/runner.lock`, and leaves when nothing waits and nothing trains. It remembers
nothing: what waits and what trains is read from the run folders, so another one goes on where a killed one was. That one was
killed, or died, can be seen by the file that it leaves behind (:func:`fault`).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import filelock
import psutil

from limner import disk, hung, jobs, machine, processes, queue, runs
from limner.errors import UserError, printable
from limner.runs import LIVE, Run, State

_TICK_SECONDS = 0.5
_SOON_SECONDS = 0.05
_MOMENT_SECONDS = 10.0
"""How long a runner that was started early waits for a run; it looks every _SOON_SECONDS."""
_LOG_BYTES = 1 << 20
_early: dict[Path, tuple[subprocess.Popen[bytes], float]] = {}
"""Home -> the runner that was started early there, and until when it certainly stays."""


def log_file() -> Path:
    return runs.home() / "runner.log"


def _put_sign(error: str) -> None:
    with contextlib.suppress(OSError):  # a full disk: the log may say it still
        disk.write_json(runs.runner_sign(), processes.facts(os.getpid()) | {"error": error})


def fault() -> str:
    """What became of the last runner, if it did not leave in order; "" while one is at work, or if nothing is wrong."""
    said = disk.read_json(runs.runner_sign())
    who = State.of(said)
    if not who.pid or who.is_alive:
        return ""
    if error := who.error:
        return f"the process that starts runs died: {printable(error, 300)} (the log: {log_file()})"
    return "the process that starts runs was killed"


def ensure_runner(words: Sequence[str] = (sys.executable, "-m", "limner.runner"), *, is_early: bool = False) -> None:
    """Start the runner if none is running; returns at once. Too many do no harm: all but one leave.

    `is_early`: the caller will put a run into the queue in a moment. Meanwhile the runner gets ready.
    """
    process, until = _early.get(runs.home(), (None, 0.0))
    if process is not None and process.poll() is None and time.monotonic() < until:
        return  # it may not have come as far as its lock
    try:
        with runs.lock("runner", 0):
            pass
    except filelock.Timeout:
        return  # and should it be leaving: it looks at the queue once more when it has let go of the lock
    process = jobs.spawn([*words, str(os.getpid())] if is_early else words, log_file())
    if is_early:
        _early[runs.home()] = process, time.monotonic() + _MOMENT_SECONDS
    threading.Thread(target=process.wait, daemon=True).start()  # else it would be left a zombie of a server that stays


def device_of(run: Run) -> str:
    """Where a run trains: cpu, cuda or mps, or a job of its own elsewhere, of which there may be many. Raises UserError if its
    config was damaged, machine.NoAnswer if torch is."""
    section = run.config().launch
    if section.target != "local":
        return f"{section.target}, {run.id}"
    return section.device or machine.describe(runs.home()).best().kind


def live_runs() -> dict[str, Run]:
    """Device -> a run that is being trained there, whoever started it. One whose config was damaged is passed over."""
    found = {}
    for run in runs.all_runs():
        if run.state().status in LIVE:
            with contextlib.suppress(Exception):  # one run, whatever is wrong with it, must not stop all others
                found[device_of(run)] = run
    return found


class Process(Protocol):
    """What is asked of a started trainer."""

    pid: int

    def poll(self) -> int | None: ...


@dataclass
class Trainer:
    """A trainer that keeps its device busy: a child of this runner, or (process None) one that it found running."""

    run: Run
    device: str
    process: Process | None
    since: float
    num_out_of_memory: int = field(default_factory=jobs.num_out_of_memory)
    """How many processes the system had ended for lack of memory when this one was started."""
    silence: hung.Silence = field(default_factory=hung.Silence)
    rests_until: float | None = None
    """It hung and is gone, and keeps its device until the run goes on."""


class Runner:
    """Looks at what waits and what trains, once a tick. Clock, process and words are given, so that a test can be a script."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        spawn: Callable[[Run, str], Process | None] = jobs.start,
        say: Callable[[str], None] = print,
    ) -> None:
        self._clock, self._spawn, self._say = clock, spawn, say
        self._trainers: dict[str, Trainer] = {}  # by device
        self._devices: dict[str, str] = {}  # by run id: a run's config never changes
        self._last_words = ""
        queue.repair()
        self._adopt()

    @property
    def is_busy(self) -> bool:
        """Whether there is a trainer to look after."""
        return bool(self._trainers)

    def tick(self) -> bool:
        """Note what ended, start what can be. True as long as something waits or trains."""
        for trainer in list(self._trainers.values()):
            try:
                self._look_after(trainer)
            except (UserError, OSError) as error:  # such as a full disk
                self.tell(str(error))
            except Exception:  # a fault of ours with one run, which must not be that of all others
                self.tell(f"{trainer.run.id} cannot be looked after:", traceback.format_exc())
        names = queue.waiting()
        self._devices = {name: device for name, device in self._devices.items() if name in names}
        for name in names:
            self._consider(runs.named(name))
        return bool(names or self._trainers)

    def _adopt(self) -> None:
        """Take the trainers into account that were started by hand, or by a runner that is gone."""
        for device, run in live_runs().items():
            if device not in self._trainers:
                self._trainers[device] = Trainer(run, device, None, self._clock())
                self._say(f"{run.id} is being trained on {device} already")

    def _look_after(self, trainer: Trainer) -> None:
        run, process, code = trainer.run, trainer.process, None
        jobs.shorten(run.log)
        if trainer.rests_until is not None:
            if self._clock() >= trainer.rests_until or run.state().status != "waiting":
                del self._trainers[trainer.device]
            return
        if process is not None:
            code = process.poll()
            if code is None:
                self._end_if_silent(trainer)
                return
            if run.path.is_dir():
                jobs.note_exit(
                    run, process.pid, code, ran_out=code == -9 and jobs.num_out_of_memory() > trainer.num_out_of_memory
                )
            trainer.process = None  # it may have been a launcher, whose trainers live on
        if run.state().status in LIVE:
            self._end_if_silent(trainer)
            return
        if not run.path.is_dir():
            del self._trainers[trainer.device]
            self._say(f"{run.id} ended, and its folder is gone")
            return
        self._note_end(trainer, is_ours=process is not None, code=code)

    def _note_end(self, trainer: Trainer, *, is_ours: bool, code: int | None) -> None:
        """The trainer is gone: see to it that its run says how, and what follows."""
        run = trainer.run
        said = State.read(run.path / "state.json")
        if said.status in LIVE and code == hung.EXIT_CODE:
            jobs.say_hung(run)
            return
        if said.status in LIVE and not is_ours:  # it ended without a word, and its exit code is not ours to know
            jobs.note_exit(run, said.pid, None)
        if said.status in ("queued", "failed") and not said.pid:  # as a new one, or a damaged one: its state is lost
            jobs.say_lost(run)
        status = run.state().status
        if status == "waiting":  # for another to follow its job elsewhere, or to go on after it hung
            queue.repair()
        if status == "waiting" and said.hangs:
            queue.reorder([run.id])  # before those that have not begun
            trainer.rests_until = self._clock() + hung.pause(said.hangs)
        else:
            del self._trainers[trainer.device]
        self._say(f"{run.id} ended after {self._clock() - trainer.since:.0f} s: {status}")

    def _end_if_silent(self, trainer: Trainer) -> None:
        """A trainer in which no thread runs any more cannot end itself. One that is gone is its launcher's to look after."""
        if trainer.silence.is_too_long(trainer.run):
            seconds, said = trainer.silence.seconds(trainer.run), State.read(trainer.run.path / "state.json")
            if said.status not in LIVE or not said.is_alive:
                return
            self._say(f"{trainer.run.id} gave no sign of life for {seconds:.0f} s and is ended")
            jobs.end_hung(trainer.run, seconds)
            trainer.silence = hung.Silence()

    def _consider(self, run: Run) -> None:
        """Start a waiting run if its device is free."""
        try:
            if run.id not in self._devices:
                self._devices[run.id] = device_of(run)
                if not run.state().hangs:  # that it hung is said until it goes on
                    jobs.explain(run, "")
            device = self._devices[run.id]
            if device not in self._trainers:
                self._adopt()
            if device not in self._trainers and _is_lent_to_a_tool(device):
                jobs.explain(run, f"a tool works on {device}")
            elif device not in self._trainers and (process := self._spawn(run, device)) is not None:
                self._trainers[device] = Trainer(run, device, process, self._clock())
                self._say(f"{run.id} started on {device}, process {process.pid}")
        except machine.NoAnswer as error:  # no fault of the run's; `describe` asks again after a while
            fault = error.findings[0]
            reason = f"{fault.field} {fault.message} {fault.remedy}"
            self.tell(f"runs wait: {reason}")
            jobs.explain(run, reason)
        except (UserError, OSError) as error:
            self.tell(f"{run.id} cannot be started: {error}")
            with contextlib.suppress(OSError):  # a full disk: it is tried again
                jobs.fail(run, str(error))
        except Exception as error:  # a fault of ours with one run, which must not be that of all others
            details = traceback.format_exc()
            self.tell(f"{run.id} cannot be started:", details)
            with contextlib.suppress(OSError):
                with run.log.open("a", encoding="utf-8") as log:
                    log.write(details)
                said = printable(f"{type(error).__name__}: {error}", 300)
                jobs.fail(run, f"It could not be started: {said}. This is a fault of Limner; the log has the details.")

    def tell(self, words: str, details: str = "") -> None:
        """Say something that may happen again and again only once; `details` are lines."""
        if words + details != self._last_words:
            self._last_words = words + details
            self._say(printable(words, 600) + (f"\n{details}" if details else ""))


def _is_lent_to_a_tool(device: str) -> bool:
    """Whether a tool works on a graphics card now."""
    if device not in ("cuda", "mps"):
        return False
    try:
        with runs.lock_of_tools(device, 0):
            return False
    except filelock.Timeout:
        return True


def say(words: str) -> None:
    """Add a line to the runner's log, which stays small."""
    with contextlib.suppress(OSError):  # a full disk does not end the runner
        jobs.rotate(log_file(), _LOG_BYTES)
        with log_file().open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {words}\n")


def serve(tick_seconds: float = _TICK_SECONDS, may_come: Callable[[], bool] = lambda: False) -> None:
    """Tick until there is nothing left to do, nor soon may be. The caller holds the runner's lock."""
    runner = Runner(say=say)
    while True:
        pause_seconds = tick_seconds
        try:
            if not runner.tick():
                if may_come():
                    pause_seconds = _SOON_SECONDS
                elif not queue.repair():
                    return
        except Exception as error:  # such as a full disk: what trains is looked after still
            if not runner.is_busy:
                raise
            runner.tell(str(error), "" if isinstance(error, UserError | OSError) else traceback.format_exc())
        time.sleep(pause_seconds)


def main(starter: int = 0) -> int:
    """Be the runner, if there is none. The other place beside the trainer's that may catch everything.

    `starter` is the process that will put a run into the queue in a moment: it is waited for.
    """
    until = time.monotonic() + _MOMENT_SECONDS
    while True:
        lock = runs.lock("runner", 2)  # waits a moment: somebody may only be looking whether there is a runner
        try:
            lock.acquire()
        except filelock.Timeout:
            return 0
        try:
            if before := fault():
                say(f"{before}; this one goes on")
            _put_sign("")
            serve(may_come=lambda: starter > 0 and time.monotonic() < until and psutil.pid_exists(starter))
            with contextlib.suppress(OSError):
                runs.runner_sign().unlink(missing_ok=True)
        except Exception as error:
            is_ours = not isinstance(error, UserError | OSError)
            say(traceback.format_exc() if is_ours else printable(error, 600))
            _put_sign(f"{type(error).__name__}: {error}" if is_ours else str(error))
            return 1
        finally:
            lock.release()
        if not queue.waiting():  # one who enqueued while this runner was about to leave relied on it
            return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
