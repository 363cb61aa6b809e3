"""Start a trainer as a process of its own, follow it, stop it.

The trainer writes to files, never to a pipe of its parent, and leads its own process group: it goes on when the terminal
or the page that started it is gone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from limner import disk, launch, runs
from limner.config import Config
from limner.runs import LIVE, Run, State

GRACE_SECONDS = 10.0


def prepare(config: Config) -> Run:
    """Make the run folder, with the prompt file copied into it."""
    run = runs.create(config)
    if config.sample.prompt_file is not None:
        shutil.copyfile(config.sample.prompt_file, run.path / "prompts.txt")
    return run


def start(run: Run, device: str) -> subprocess.Popen[bytes]:
    """Start the trainer of a run, detached, its output going to the run's log."""
    config = run.config()
    words, extra = launch.argv(config, run.path, device), launch.environment(config, device)
    disk.write_json(run.path / "command.json", {"argv": words, "environment": extra})
    (run.path / "exit.json").unlink(missing_ok=True)
    _rotate(run.log)
    group: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    with run.log.open("ab") as log:
        return subprocess.Popen[bytes](
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **extra}, **group
        )


def _rotate(log: Path, limit: int = 5 << 20) -> None:
    if log.exists() and log.stat().st_size > limit:
        os.replace(log, log.with_name("log.1.txt"))


def note_exit(run: Run, pid: int, code: int) -> None:
    """Record how the process ended; the runner's side of the truth."""
    with contextlib.suppress(OSError):
        disk.write_json(run.path / "exit.json", {"code": code, "time": time.time(), "pid": pid})


def follow(run: Run, process: subprocess.Popen[bytes], watch: Callable[[], None], interval: float = 0.2) -> int:
    """Wait for the trainer to end, calling `watch` on the way; returns its exit code.

    ctrl-C asks for a polite stop; a second one ends the trainer at once.
    """
    asked = False
    while (code := process.poll()) is None:
        try:
            watch()
            time.sleep(interval)
        except KeyboardInterrupt:
            if asked:
                kill(process.pid)
            else:
                run.request("stop")
                asked = True
                said = "Stopping after this step; its state will be saved. Press ctrl-C again to stop at once."
                print(f"\n{said}", file=sys.stderr)
    note_exit(run, process.pid, code)
    watch()
    return code


def stop(run: Run, *, now: bool = False, grace_seconds: float = GRACE_SECONDS) -> State:
    """Stop a run; returns the state it ended in.

    Politely: ask, and wait however long the step or the save takes. Now: ask, wait, terminate, wait, kill.
    """
    if run.state().status not in LIVE and not run.is_locked():
        return run.state()
    run.request("stop-now" if now else "stop")
    if not _gone(run, grace_seconds if now else None):
        _signal(run, lambda pid: psutil.Process(pid).terminate())
        if not _gone(run, grace_seconds):
            _signal(run, kill)
            _gone(run, grace_seconds)
    return run.state()


def _signal(run: Run, act: Callable[[int], None]) -> None:
    """Do something to the trainer's process, if the pid in its state is still its own and not another's by now."""
    state = run.state()
    if runs.is_alive(state.pid, state.process_started):
        with contextlib.suppress(psutil.Error):
            act(state.pid)


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
