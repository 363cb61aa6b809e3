"""How a trainer ended that did not say so itself: told from its exit code, its log and its disk."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

from limner import disk
from limner.errors import printable

if TYPE_CHECKING:
    from limner.runs import Run, State

_LEAST_BYTES = 64 << 10
_LESS_MEMORY = "Lower train.batch_size or data.resolution, or close other programs"
_UNSAID = f"; if nobody did that, the computer ran out of memory. {_LESS_MEMORY}"
_CRASHES = (4, 6, 7, 8, 11)
"""Signals by which a system ends a program for a fault of its own: SIGILL, SIGABRT, SIGBUS, SIGFPE, SIGSEGV."""
_ERROR = re.compile(r"(error: |([A-Za-z_]\w*\.)*[A-Za-z_]\w*(Error|Exception|Interrupt|Warning)\b)")


def in_words(run: Run, state: State) -> str:
    """It in a sentence; `state` names the trainer that is gone."""
    said = _exit(run, state)
    is_full = disk.free_bytes(run.path) < _LEAST_BYTES  # it could not say so itself
    return f"{said}; the disk of {run.path} is full: free some space, and resume it" if is_full else said


def _exit(run: Run, state: State) -> str:
    ended = disk.read_json(run.path / "exit.json")
    code = ended.get("code") if isinstance(ended, dict) and ended.get("pid") in (state.pid, state.parent) else None
    if type(code) is not int:
        return "the trainer is gone (killed, or the machine was restarted)"
    if -code in _CRASHES:
        return f"the trainer crashed (signal {-code}); the log may have its stacks"
    if code < 0:
        said = f"the trainer was killed (signal {-code})"
        if ended.get("out_of_memory") is True:
            return f"{said} when the computer ran out of memory. {_LESS_MEMORY}."
        return said + (_UNSAID if code == -9 else "")
    said = f"the trainer ended with exit code {code}"
    if 128 < code < 160:
        said += f", as a shell says of what was killed (signal {code - 128})"
    last = _last_error(run)
    return f"{said}: {last}" if last else said


def _last_error(run: Run) -> str:
    """The last line of what the trainer said, if that names an error."""
    command = disk.read_json(run.path / "command.json")
    told = command.get("log_bytes") if isinstance(command, dict) else None
    with contextlib.suppress(OSError):
        size = run.log.stat().st_size
        new = size - told if type(told) is int and 0 <= told <= size else size
        lines = run.tail(min(new, 4000)).rstrip().splitlines() if new else []
        if lines and _ERROR.match(lines[-1]):
            return printable(lines[-1], 300)
    return ""
