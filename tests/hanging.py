"""Make a real trainer hang, as real runs do: at a file that never answers, in a call that holds the interpreter, or whole."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from limner import queue, runner
from limner.runs import Run

SECONDS = "LIMNER_HANG_SECONDS"


def wait(condition: Callable[[], object], seconds: float = 120, what: Callable[[], str] = str) -> float:
    """Until it holds; how many seconds that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, what()
        time.sleep(0.05)
    return time.monotonic() - began


def begin(run: Run, step: int = 3) -> None:
    """Enqueue a run and wait until so many steps are done."""
    queue.enqueue(run)
    runner.ensure_runner()
    wait(lambda: run.state().step >= step, what=run.tail)


def stop_answering(picture: Path) -> Callable[[], None]:
    """Whoever reads the picture waits for ever, as on a network disk that is gone; what is returned brings it back."""
    content = picture.read_bytes()
    beside = picture.with_name(f".{picture.name}")
    os.mkfifo(beside)
    os.replace(beside, picture)

    def answer() -> None:
        beside.write_bytes(content)
        os.replace(beside, picture)

    return answer


def freeze(run: Run) -> None:
    """Stop the whole trainer."""
    os.kill(run.state().pid, signal.SIGSTOP)


def warnings(run: Run) -> list[str]:
    return [e["message"] for e, _ in run.events() if e["event"] == "warning"]
