"""Several processes that train one run: `python -m limner.engine.together RUN_FOLDER RESTARTS LAUNCHER WORDS...`.

Runs a launcher (torchrun's or accelerate's module) in this process and says how its processes ended: which failed first, and
why. A request to stop this process is passed on as one to stop the run, so that all save and end together. When a process
was killed or failed, the run may be started again from its newest training state; not when the user is to correct something.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock

from limner import hung
from limner.errors import UserError, printable
from limner.runs import LAUNCHER, Run, State, has_launcher

_LATE_SECONDS = 8
"""What is killed so long after the first failure was killed by the launcher, since it did not end of itself."""


def leave_reason(reason: str, code: int, *, is_echo: bool) -> bool:
    """Leave word for the launcher of this process why it fails; `is_echo` if only because another one did. False if there is
    no launcher that asks."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path is None or not has_launcher():
        return False
    message = {"message": reason, "extraInfo": {"timestamp": str(int(time.time())), "py_callstack": ""}}
    with contextlib.suppress(OSError):
        Path(path).write_text(json.dumps({"message": message, "code": code, "is_echo": is_echo}), encoding="utf-8")
    return True


def why(failures: Mapping[int, Any], count: int) -> tuple[str, int]:
    """(what failed first, in words, the exit code) of the launcher's failures by rank."""
    first = min(f.timestamp for f in failures.values())
    killed = {r: f for r, f in failures.items() if f.exitcode < 0 and f.exitcode != -signal.SIGTERM}
    late = sorted(r for r, f in killed.items() if f.timestamp - first >= _LATE_SECONDS)
    told = {r: f.error_file_data for r, f in failures.items() if isinstance(f.error_file_data.get("code"), int)}
    causes = [r for r in failures if r in told and not told[r]["is_echo"]] + [r for r in killed if r not in late]
    if causes:
        rank = min(causes, key=lambda r: failures[r].timestamp)
        if rank in told:
            return told[rank]["message"]["message"], told[rank]["code"]
        return f"{called(rank, count)} was killed (signal {-failures[rank].exitcode})", 1
    hangs = [r for r in told if told[r]["code"] == hung.EXIT_CODE]
    code = hung.EXIT_CODE if hangs else 1
    if late:
        return f"{called(late[0], count)} gave no answer any more", code
    if hangs:  # those that waited for the one that hung cannot tell themselves from it: each has its stacks in the log
        return f"{called(hangs[0], count)}: {told[hangs[0]]['message']['message']}", code
    echoes = [r for r in told if told[r]["is_echo"]]
    if echoes:
        return told[echoes[0]]["message"]["message"], 1
    rank = min(failures, key=lambda r: failures[r].timestamp)
    return f"{called(rank, count)} ended with exit code {failures[rank].exitcode}", 1


def called(rank: int, count: int) -> str:
    """How a process is called in messages; the main one is the first."""
    return f"process {rank + 1} of {count}"


def main(words: Sequence[str]) -> int:
    """Run the launcher until the run is done, stopped or failed for good. Returns the exit code."""
    run, restarts, launcher, *rest = Run(Path(words[0])), int(words[1]), *words[2:]
    os.environ[LAUNCHER] = str(os.getpid())
    stop = _Stop(run)
    for attempt in range(restarts + 1):
        began = time.time()
        failure = _launch(launcher, _at_next_port(rest, attempt))
        state = State.read(run.path / "state.json")
        # what is done is done, should a process fail on its way out
        if failure is None or (state.status in ("done", "stopped") and state.updated > began):
            return 128 + stop.number if state.status == "stopped" and stop.is_asked else 0
        reason, code = failure
        left = restarts - attempt
        if stop.is_asked or code == UserError.exit_code or not left:
            _say(run, "hung" if code == hung.EXIT_CODE else "failed", reason, is_stopping=stop.is_asked)
            return code
        print(f"{reason}; starting again from the newest training state ({attempt + 1} of {restarts})", flush=True)
        _say(run, "starting", f"{reason}; the run is started again ({attempt + 1} of {restarts})")
    raise AssertionError


class _Stop:
    """The first SIGTERM or ctrl-C asks the run to stop, a second one ends its processes."""

    def __init__(self, run: Run) -> None:
        self._run, self._since, self.number = run, 0.0, 0
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, self._handle)

    @property
    def is_asked(self) -> bool:
        return self._since > 0

    def _handle(self, number: int, frame: object) -> None:  # noqa: ARG002
        if self.is_asked and time.monotonic() - self._since > 1:  # one to the whole group may be told twice
            raise SystemExit(128 + number)  # the launcher ends its processes on its way out
        self._since, self.number = self._since or time.monotonic(), self.number or number
        self._run.request("stop")


def _launch(module: str, words: list[str]) -> tuple[str, int] | None:
    """Run the launcher's module; returns how its processes failed, None if they did not."""
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    started: dict[str, Any] = {}
    original = torchrun.run

    def without_signals(args: Any) -> None:
        # signals are this process's own to pass on: torch's way ends those that are saving after a while
        args.signals_to_handle = "SIGQUIT"
        started["count"] = int(args.nproc_per_node) * int(str(args.nnodes).partition(":")[0])
        original(args)

    torchrun.run = without_signals
    kept, sys.argv = sys.argv, [module, *words]
    try:
        if module == "torch.distributed.run":
            torchrun.main(words)
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except ChildFailedError as error:
        return why(error.failures, started["count"])
    except (RuntimeError, ValueError, OSError) as error:  # machines that do not meet, a port that is taken
        return f"the processes could not be started: {printable(f'{type(error).__name__}: {error}', 400)}", 1
    finally:
        torchrun.run, sys.argv = original, kept
    return None


def _at_next_port(words: Sequence[str], attempt: int) -> list[str]:
    """The words, meeting at a port of each attempt's own: machines that notice a failure later must not meet the old one."""
    head = "--master_port="
    return [f"{head}{int(w.removeprefix(head)) + attempt}" if w.startswith(head) else w for w in words]


def _say(run: Run, status: Any, reason: str, *, is_stopping: bool = False) -> None:
    """Write the run's state in its trainers' place, none of which lives any more."""
    try:
        with run.hold():
            state = State.read(run.path / "state.json")
            run.end_last_line()
            if status == "hung":
                hung.tell(run, hung.after(run, state, f"{reason.rstrip('.')}.", is_stopping=is_stopping))
            elif status == "failed":
                run.write_state(replace(state, status="failed", phase="", error=reason))
                run.event("stop", step=state.step, status="failed", error=reason)
            else:
                run.write_state(replace(run.starting(os.getpid()), step=state.step, steps=state.steps))
                run.event("warning", message=reason)
    except (OSError, filelock.Timeout) as error:
        print(f"error: the state could not be written ({error}): {reason}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
