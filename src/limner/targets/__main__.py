"""The process that follows a run's job elsewhere: `python -m limner.targets RUN_FOLDER`. It may catch everything, at its top.

It ends by a signal as any process does: the job goes on, and the next follower finds it.
"""

from __future__ import annotations

import sys
import traceback
from dataclasses import replace
from pathlib import Path

import filelock

from limner.errors import UserError, printable
from limner.runs import Run, State
from limner.state import StateTeller
from limner.targets.follow import Follower
from limner.targets.job import Job


def main(folder: str) -> int:
    """Have the run in `folder` trained elsewhere, or follow its job that is out. Returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    run = Run(Path(folder).absolute())
    try:
        with run.hold():
            return _follow(run)
    except filelock.Timeout:
        print(f"error: {run.id} is being followed by another process already.", file=sys.stderr)
        return 2


def _follow(run: Run) -> int:
    teller = StateTeller(run)
    try:
        teller.say("starting", "loading", error="")
        state = Follower(run, run.config(), teller).follow()
    except UserError as error:
        for finding in error.findings:
            print(finding, file=sys.stderr)
        return _failed(run, teller.state, str(error), error.exit_code)
    except Exception as error:
        traceback.print_exc()
        return _failed(run, teller.state, f"{printable(f'{type(error).__name__}: {error}', 400)}. The log has the details.", 1)
    run.write_state(replace(state, phase="", progress=(state.step, state.steps)))
    return 1 if state.status == "failed" else 0


def _failed(run: Run, state: State, reason: str, code: int) -> int:
    job = Job.read(run)
    try:
        if job is not None and job.is_open:  # its events go on where they are
            run.write_state(replace(state, status="failed", phase="", error=f"{reason} The job goes on: resume to follow it."))
            return code
        run.write_state(replace(state, status="failed", phase="", error=reason))
        run.event("stop", step=state.step, status="failed", error=reason)
    except OSError as error:
        print(f"error: the state could not be written either ({error}).", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
