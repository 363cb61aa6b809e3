"""Stopping: only the process that wrote the state is ever signalled."""

from __future__ import annotations

import subprocess
import sys

import filelock

from limner import jobs, runs
from limner.config import Config
from limner.runs import State


def test_a_recycled_pid_is_never_signalled() -> None:
    """A trainer that is just starting holds the lock, while the state still tells of an earlier one, whose pid is another's."""
    run = runs.create(Config())
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        run.write_state(State(status="stopped", pid=bystander.pid, process_started=1.0))
        with filelock.FileLock(run.path / "lock"):
            jobs.stop(run, now=True, grace_seconds=0.2)
        assert bystander.poll() is None
        assert run.take_requests() == ["stop-now"]
    finally:
        bystander.kill()
        bystander.wait()


def test_stopping_what_is_over_asks_nothing() -> None:
    run = runs.create(Config())
    run.write_state(State(status="done", step=3, steps=3))
    assert jobs.stop(run).status == "done"
    assert run.take_requests() == []
