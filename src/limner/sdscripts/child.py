"""sd-scripts as a process: its output read as it comes, its processes ended in stages.

It writes to a pipe, not to the log: should its supervisor be killed it then ends at its next word, and does not go on training
unseen. It stays in the supervisor's process group, so that who ends that ends it too.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

_CHUNK = 1 << 16
_MOST_CHUNKS = 256
_LAST_WORDS_SECONDS = 3.0


class Child:
    """A started command and all that it starts itself."""

    def __init__(self, words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            words, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )  # fmt: skip
        assert self._process.stdout is not None
        self._chunks: queue.Queue[bytes] = queue.Queue(_MOST_CHUNKS)
        self._known: set[psutil.Process] = set()
        self._ended = 0.0
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def _read(self, pipe: IO[bytes]) -> None:
        with contextlib.suppress(OSError):
            while chunk := os.read(pipe.fileno(), _CHUNK):
                self._chunks.put(chunk)

    def output(self, seconds: float) -> bytes:
        """What it said; waits so long for the first word."""
        out = b""
        with contextlib.suppress(queue.Empty):
            out = self._chunks.get(timeout=seconds)
            while len(out) < _CHUNK * 16:
                out += self._chunks.get_nowait()
        return out

    @property
    def has_ended(self) -> bool:
        """Whether it is gone, and all that it said was read. Who still holds the pipe then is not waited for."""
        if self._process.poll() is None:
            return False
        self._ended = self._ended or time.monotonic()
        is_silent = not self._reader.is_alive() or time.monotonic() - self._ended > _LAST_WORDS_SECONDS
        return is_silent and self._chunks.empty()

    @property
    def exit_code(self) -> int:
        return self._process.wait()

    def all_processes(self) -> list[psutil.Process]:
        """Itself and its descendants, those among them whose parent has gone; by pid and start time, so never another's."""
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(self._process.pid)
            self._known |= {root, *root.children(recursive=True)}
        self._known = {p for p in self._known if _is_running(p)}
        return list(self._known)

    def memory_mib(self) -> int:
        """The memory of all its processes."""
        total = 0
        for process in self.all_processes():
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total >> 20

    def signal(self, number: signal.Signals | None) -> None:
        """Send a signal to all its processes; None ends them at once. On Windows there is only that."""
        for process in self.all_processes():
            with contextlib.suppress(psutil.Error, ValueError, OSError):
                if number is None or os.name == "nt":
                    process.kill()
                else:
                    process.send_signal(number)


def _is_running(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
