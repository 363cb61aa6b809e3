"""The process that looks after sd-scripts: `python -m limner.sdscripts RUN_FOLDER`. It may catch everything, at its top."""

from __future__ import annotations

import errno
import signal
import sys
import traceback
from pathlib import Path

import filelock
import psutil

from limner import machine, runs
from limner.errors import UserError, printable
from limner.runs import Run
from limner.sdscripts.record import Record
from limner.sdscripts.supervise import Supervisor
from limner.sdscripts.trust import require_trust


class Asked:
    """What signals asked for: ctrl-C for a stop, SIGTERM or a second ctrl-C for one at once."""

    def __init__(self) -> None:
        self.what = ""
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, self._handle)

    def _handle(self, number: int, frame: object) -> None:  # noqa: ARG002
        self.what = "stop" if number == signal.SIGINT and not self.what else "stop-now"


def main(folder: str) -> int:
    """Have sd-scripts train the run in `folder`, from its newest training state if it has one. Returns the exit code."""
    asked = Asked()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    run = Run(Path(folder).absolute())
    lock = run.hold()
    try:
        lock.acquire()
    except filelock.Timeout:
        print(f"error: {run.id} is being trained by another process already.", file=sys.stderr)
        return 2
    try:
        run.drop_requests(before=psutil.Process().create_time() - 1)  # a process's start is known to the second only
        run.end_last_line()
        record = Record(run)
        run.write_state(record.state)
    except OSError as error:
        print(f"error: {run.id} cannot be started: {printable(error)}", file=sys.stderr)
        lock.release()
        return 1
    try:
        return _train(run, record, asked)
    except UserError as error:
        for finding in error.findings:
            print(finding, file=sys.stderr)
        return _failed(record, str(error), error.exit_code)
    except Exception as error:
        traceback.print_exc()
        full = "The disk is full. Free some space and resume the run. " if getattr(error, "errno", None) == errno.ENOSPC else ""
        return _failed(record, f"{full}{printable(f'{type(error).__name__}: {error}', 400)}. The log has the details.", 1)
    finally:
        lock.release()


def _train(run: Run, record: Record, asked: Asked) -> int:
    config = run.config()
    require_trust(config.launch)
    supervisor = Supervisor(run, config, record, lambda: asked.what)
    finished, why = supervisor.train(machine.describe(runs.home()))
    if why:
        print(f"error: {why}", file=sys.stderr)
        return _failed(record, why, 1)
    state, status = record.state, "done" if finished else "stopped"
    # it may have stopped short of what was planned: it counts whole batches
    steps = state.step if finished else state.steps
    record.say(status, "", (state.step, steps), steps=steps)
    record.event("stop", step=state.step, status=status)
    return 0


def _failed(record: Record, reason: str, code: int) -> int:
    try:
        record.say("failed", "", error=reason)
        record.event("stop", step=record.state.step, status="failed", error=reason)
    except OSError as error:
        print(f"error: the state could not be written either ({error}).", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
