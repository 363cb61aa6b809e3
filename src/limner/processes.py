"""Whether a process is still the one that it was: pids are used again, and clocks are set."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import psutil


def facts(pid: int) -> dict[str, Any]:
    """What tells a process from any other, as members of a State. Raises psutil.Error if it is gone."""
    started = psutil.Process(pid).create_time()
    return {"pid": pid, "process_started": started, "boot": this_boot(), "booted": psutil.boot_time()}


def this_boot() -> str:
    """What Linux calls this start of the machine; "" elsewhere, where a process's start does not move with the clock."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def is_alive(pid: int, started: float) -> bool:
    """Whether the process that wrote (pid, start time) still runs; a recycled pid is another process."""
    if pid <= 0:
        return False
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
