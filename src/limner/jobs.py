"""Start a trainer as a process of its own, record its end, stop it.

The trainer writes to files, never to a pipe of its parent, and leads its own process group: it goes on when whoever started
it is gone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import psutil

from limner import disk, exits, hung, launch, machine, queue, runs
from limner.config import Config
from limner.config.launch import gpus
from limner.runs import LIVE, Run, State

GRACE_SECONDS = 10.0
_STACKS_SECONDS = 0.5
_ELSEWHERE_SECONDS = 90.0
"""The grace of a job elsewhere: what follows it asks for as long as it needs."""


def prepare(config: Config) -> Run:
    """Make the run folder, with the prompt file copied into it."""
    run = runs.create(config)
    if (file := config.sample.prompt_file) is not None:
        shutil.copyfile(file, run.path / f"prompts{file.suffix.lower()}")
    return run


def start(run: Run, device: str) -> subprocess.Popen[bytes] | None:
    """Start the trainer of a new or waiting run, detached, its output going to the run's log.

    None if the run is neither any more (it was taken out of the queue), or is being trained. The state tells of the new
    process before anyone else may write it: the trainer waits for the run's lock.
    """
    config = run.config()
    words, extra = launch.argv(config, run.path, device, _available(config, device)), launch.environment(config, device)
    with contextlib.suppress(filelock.Timeout), run.hold():
        if run.state().status not in ("queued", "waiting"):
            return None
        run.lay_out()
        rotate(run.log)
        told = run.log.stat().st_size if run.log.exists() else 0
        disk.write_json(run.path / "command.json", {"argv": words, "environment": extra, "log_bytes": told})
        for name in ("exit.json", hung.HEARTBEAT):
            (run.path / name).unlink(missing_ok=True)
        process = spawn(words, run.log, extra)
        try:
            run.write_state(run.starting(process.pid))
        except BaseException:
            kill(process.pid)  # else it would be started once more
            process.wait()
            raise
        return process
    return None


def _available(config: Config, device: str) -> int | None:
    """How many GPUs a run of several processes can have now; None where that is no question."""
    if device == "cpu" or config.launch.num_processes == 1:
        return None
    there = machine.describe(runs.home()).count(device)
    chosen = gpus(config.launch)
    return there if chosen is None else sum(n < there for n in chosen)


def spawn(words: Sequence[str], log: Path, extra: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a process that leads its own group and session, reads nothing and writes to `log` alone."""
    if log.is_dir():
        disk.set_aside(log)
    rotate(log)
    group: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    with log.open("ab") as file:
        return subprocess.Popen[bytes](
            words, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **(extra or {})}, **group
        )


def rotate(log: Path, limit: int = 5 << 20) -> None:
    """Begin a log anew that has grown beyond `limit` bytes; the one before is kept."""
    if log.exists() and log.stat().st_size > limit:
        with contextlib.suppress(OSError):  # Windows: somebody is reading it. Or the other name is taken by a folder
            os.replace(log, log.with_stem(f"{log.stem}.1"))


def shorten(log: Path, limit: int = 20 << 20) -> None:
    """Begin a log anew that is being written to and has grown beyond `limit` bytes; what it held is kept beside it.

    The writer appends, and so goes on at the new end; the little that it writes meanwhile is lost. On Windows it would go on
    where it was.
    """
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):
        if log.stat().st_size > limit:
            shutil.copyfile(log, log.with_stem(f"{log.stem}.1"))
            os.truncate(log, 0)


def fail(run: Run, reason: str) -> None:
    """Record that a waiting run could not even be started."""
    with run.hold():
        state = run.state()
        if state.status == "waiting":
            run.write_state(replace(state, status="failed", error=reason))


def explain(run: Run, reason: str) -> None:
    """Record why a waiting run is not started yet, "" where there is nothing to say. What cannot be written is left."""
    if run.state().error == reason:
        return
    with contextlib.suppress(OSError), run.hold():
        state = run.state()
        if state.status == "waiting":
            run.write_state(replace(state, error=reason))


def note_exit(run: Run, pid: int, code: int | None, *, ran_out: bool = False) -> None:
    """Record how the trainer ended; the runner's side of the truth. `code` is None for one that was not its own child;
    `ran_out`: the system ended a process for lack of memory meanwhile."""
    with contextlib.suppress(OSError):
        out = {"out_of_memory": True} if ran_out else {}
        if run.path.is_dir():  # it may have been deleted
            disk.write_json(run.path / "exit.json", {"code": code, "time": time.time(), "pid": pid, **out})


def num_out_of_memory(path: Path = Path("/proc/vmstat")) -> int:
    """How many processes this system has ended for lack of memory; 0 where it does not say."""
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def say_lost(run: Run) -> None:
    """Say of a trainer that has ended that it failed: its state file does not say anything any more."""
    said = disk.read_json(run.path / "exit.json")
    pid = said.get("pid") if isinstance(said, dict) else None
    with run.hold():
        lost = State("failed", pid=pid if type(pid) is int else 0)
        run.write_state(replace(lost, error=f"its state file was damaged or removed, and {exits.in_words(run, lost)}"))


def end_hung(run: Run, seconds: float) -> None:
    """End a trainer whose watchdog has been silent for so long, and say so.

    The state is written before the end, so that nobody sees a trainer that is gone and no reason, and once more behind it:
    no thread of the trainer runs that would write another.
    """
    state, is_stopped = State.read(run.path / "state.json"), False
    with contextlib.suppress(psutil.Error):
        is_stopped = psutil.Process(state.pid).status() == psutil.STATUS_STOPPED
    why = "it was stopped by a signal" if is_stopped else "the log has its stacks"
    where = f"after step {state.step} ({state.phase or state.status})"
    reason = f"The trainer stood still for {seconds:.0f} s {where}: {why}."
    last = hung.after(run, state, reason)
    with contextlib.suppress(OSError):
        run.write_state(last)
    if os.name != "nt" and not is_stopped and state.is_alive:
        with contextlib.suppress(OSError):
            os.kill(state.pid, signal.SIGUSR1)  # faulthandler writes them, whatever holds the interpreter
            time.sleep(_STACKS_SECONDS)
    _of(state, kill)
    with contextlib.suppress(OSError), run.hold():
        hung.tell(run, last)


def say_hung(run: Run) -> None:
    """Say in its place of a trainer that ended itself because it hung, and could not say it: the disk did not answer."""
    with run.hold():
        hung.tell(run, hung.after(run, State.read(run.path / "state.json"), "It hung, and could not say where."))


def stop(run: Run, *, now: bool = False, grace_seconds: float = GRACE_SECONDS) -> State:
    """Stop a run; returns the state it ended in. A waiting one is taken out of the queue.

    Politely: ask, and wait however long the step or the save takes. Now: ask, wait, terminate, wait, kill.
    """
    if queue.remove(run):
        return run.state()
    if run.state().status not in LIVE and not run.is_locked():
        return run.state()
    request_stop(run, now=now)
    if run.is_out():
        grace_seconds = _ELSEWHERE_SECONDS
    if not _gone(run, grace_seconds if now else None):
        _signal(run, lambda pid: psutil.Process(pid).terminate())
        if not _gone(run, grace_seconds):
            _signal(run, kill)
            _gone(run, grace_seconds)
    return run.state()


def request_stop(run: Run, *, now: bool = False) -> None:
    """Ask a run that trains to stop. Where it loads, which may be a download of hours, nobody looks at requests: it is told."""
    run.request("stop-now" if now else "stop")
    state = run.state()
    loads = (state.status, state.phase) == ("running", "loading") and not run.is_out()
    if loads and state.worker == state.pid and os.name != "nt":  # one of several stops together with the others
        _signal(run, lambda pid: psutil.Process(pid).terminate())


def stop_at_once(run: Run) -> None:
    """End the trainer of a run without asking; the work since its last training state is lost. A job elsewhere is ended by
    what follows it."""
    if run.is_out():
        run.request("stop-now")
        return
    _signal(run, kill)


def _signal(run: Run, act: Callable[[int], None]) -> None:
    """Do something to the trainer's process, if the pid in its state is still its own and not another's by now."""
    _of(run.state(), act)


def _of(state: State, act: Callable[[int], None]) -> None:
    if (pid := state.worker) is not None:
        with contextlib.suppress(psutil.Error):
            act(pid)


def _gone(run: Run, seconds: float | None) -> bool:
    until = None if seconds is None else time.monotonic() + seconds
    while until is None or time.monotonic() < until:
        if run.state().status not in LIVE and not run.is_locked():
            return True
        time.sleep(0.1)
    return False


def kill(pid: int) -> None:
    """End a process and all it started, at once."""
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    if os.name != "nt":
        with contextlib.suppress(OSError):
            if os.getpgid(pid) == pid:
                os.killpg(pid, signal.SIGKILL)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
