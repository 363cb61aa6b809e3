"""Processes forked from a server that has everything imported: one costs a fraction of a second, and not ten.

What they do is what the command does, in a process of its own. Commands themselves are run in tests/test_cli.py,
tests/web/test_server.py and tests/e2e/test_lora_run.py.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["preloaded"])
# the server knows of sys.path only this; and it must find what it is to load, else it says nothing and has nothing ready
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])


class Forked:
    """`limner WORDS...`, as far as a subprocess.Popen of it is asked for."""

    def __init__(self, words: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self._process: BaseProcess = CONTEXT.Process(target=_run, args=(list(words), str(log), dict(environment), os.getcwd()))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, seconds: float | None = None) -> int:
        self._process.join(seconds)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("limner", seconds or 0)
        return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def to_log(path: str) -> None:
    """Send what this process says into a file."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)


def _run(words: list[str], log: str, environment: dict[str, str], folder: str) -> None:
    to_log(log)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["limner", *words]
    from limner import cli

    cli.main()
