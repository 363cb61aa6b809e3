"""A program run and watched: when each line of its output came, what it and its children held and how much they computed."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import psutil

_LOOKS_APART_SECONDS = 0.5
"""Looking costs milliseconds, which are the watched program's too; the highest memory is kept by the system meanwhile."""


@dataclass(frozen=True)
class Watched:
    """What was seen of one program. Times are seconds since the epoch."""

    began: float
    lines: list[tuple[float, str]]
    computed: list[tuple[float, float]]
    """(when, processor seconds that all its processes had used by then), as often as it was looked at."""
    peak_mib: int
    """The most that one of its processes ever held, or more if all together were seen to hold more."""
    trouble: str
    """Why it counts as failed; "" if it ended well."""

    def computed_by(self, when: float) -> float:
        """Processor seconds used until a time, between two looks in proportion."""
        place = bisect_left(self.computed, (when, 0.0))
        (t0, c0), (t1, c1) = ((self.began, 0.0), *self.computed)[place], (*self.computed, self.computed[-1])[place]
        return c1 if t1 <= t0 else c0 + (c1 - c0) * min((when - t0) / (t1 - t0), 1.0)


def watch(
    words: Sequence[str],
    folder: Path,
    environment: dict[str, str],
    limit_seconds: float,
    others: Callable[[], Iterable[int]] = tuple,
) -> Watched:
    """Run a command in a folder to its end. `others` tells pids that belong to it without being its descendants; they too
    have ended when this returns."""
    began = time.time()
    words = [str(w) for w in words]
    try:
        process = subprocess.Popen(
            words, cwd=folder, env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0,
        )  # fmt: skip
    except OSError as error:
        return Watched(began, [], [], 0, f"{words[0]} cannot be started: {error.strerror}")
    lines = list[tuple[float, str]]()
    assert process.stdout is not None
    reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
    reader.start()
    peak, trouble, used = 0, "", dict[psutil.Process, float]()
    computed = list[tuple[float, float]]()
    while process.poll() is None or any(map(psutil.pid_exists, others())):
        mine = _family(process.pid, others())
        peak = max(peak, _held(mine))
        used |= _used(mine)
        computed.append((time.time(), sum(used.values())))
        if time.time() - began > limit_seconds:
            trouble = f"not done in {limit_seconds:.0f} s"
            for one in mine:
                with contextlib.suppress(psutil.Error):
                    one.kill()
            break
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LOOKS_APART_SECONDS)
            time.sleep(0.01)  # where it is the others that are waited for
    process.wait()
    reader.join(5)
    if not trouble and process.returncode:
        trouble = f"ended with {process.returncode}: " + " / ".join(text for _, text in lines[-6:])
    return Watched(began, lines, computed, peak, trouble)


def _read(pipe: BinaryIO, lines: list[tuple[float, str]]) -> None:
    """Stamp each line as it comes; a progress bar ends its lines with a carriage return, or begins them with one."""
    rest = shown = b""
    while read := pipe.read(65536):
        now = time.time()
        *whole, rest = re.split(rb"[\r\n]+", rest + read)
        # the newest drawing of a bar stands without an end until the next one
        for text in (*whole, rest):
            if text.strip() and text != shown:
                lines.append((now, text.decode(errors="replace")))
            shown = b""
        shown = rest
    pipe.close()


def _family(pid: int, others: Iterable[int]) -> set[psutil.Process]:
    out = set[psutil.Process]()
    for one in (pid, *others):
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(one)
            out |= {root, *root.children(recursive=True)}
    return out


def _held(processes: Iterable[psutil.Process]) -> int:
    """MiB: the sum of what they hold now, or the most that one of them ever held if that is more."""
    now, most = 0, 0
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            if sys.platform == "linux":
                told = dict(re.findall(r"^(Vm(?:HWM|RSS)):\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text(), re.M))
                rss, hwm = int(told.get("VmRSS", 0)) << 10, int(told.get("VmHWM", 0)) << 10
            else:
                memory = process.memory_info()
                rss, hwm = memory.rss, getattr(memory, "peak_wset", memory.rss)
            now, most = now + rss, max(most, hwm)
    return max(now, most) >> 20


def _used(processes: Iterable[psutil.Process]) -> dict[psutil.Process, float]:
    """Processor seconds of each, without its children."""
    out = dict[psutil.Process, float]()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            out[process] = times.user + times.system
    return out
