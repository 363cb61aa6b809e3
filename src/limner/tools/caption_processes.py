"""A captioner that shares its pictures out among processes: each opens the model for itself, on a GPU of its own if it can.

A process is told and answers through a pipe, which no other holds: if the tool was killed, those that wait for pictures find
its end closed, and those at work see at the next word that their parent is gone.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from multiprocessing.connection import Connection, wait
from typing import cast

from limner.errors import UserError, wrong
from limner.tools.caption_loop import Captioner, Opened, Said, Tick, batches

_POLL_SECONDS = 0.2
_END_SECONDS = 5.0


class Shared:
    """`opens` opens the model in a process, given that one's number; it is pickled to get there."""

    def __init__(self, opens: Callable[[int], Captioner], num_processes: int, batch_size: int) -> None:
        self.opens, self.num_processes, self.batch_size = opens, num_processes, batch_size

    def __call__(self, pictures: Iterator[Opened], tick: Tick) -> Generator[Said]:
        """Whoever is free gets the next batch. Raises UserError for what a process raises so, and if one ends by itself."""
        todo = batches(pictures, self.batch_size)
        with contextlib.ExitStack() as stack:
            pipes = [stack.enter_context(_started(self.opens, number)) for number in range(self.num_processes)]
            while pipes:
                tick()
                for pipe in cast(list[Connection], wait(pipes, _POLL_SECONDS)):
                    yield from _answer_of(pipe)  # at first, that it is ready
                    if batch := next(todo, None):
                        _send(pipe, batch)
                    else:
                        pipes.remove(pipe)


@contextlib.contextmanager
def _started(opens: Callable[[int], Captioner], number: int) -> Iterator[Connection]:
    """The pipe to a new process, which is ended with it."""
    context = multiprocessing.get_context("spawn")  # what has a GPU cannot be forked
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, opens, number), daemon=True)
    process.start()
    there.close()
    try:
        yield here
    finally:
        here.close()
        process.terminate()
        process.join(_END_SECONDS)
        process.kill()
        process.join()


def _serve(pipe: Connection, opens: Callable[[int], Captioner], number: int) -> None:
    """What a process does: answer each batch with what is said of it, and findings where that cannot be."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the tool is told to stop, and ends this one
    with contextlib.suppress(EOFError, OSError):  # nobody asks any more
        try:
            captioner = opens(number)
            pipe.send(([], []))
            while True:
                pipe.send((list(captioner(iter(pipe.recv()), _tick)), []))
        except UserError as error:
            pipe.send(([], error.findings))


def _tick() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        sys.exit(1)


def _answer_of(pipe: Connection) -> list[Said]:
    try:
        said, findings = pipe.recv()
    except (EOFError, OSError):
        raise _gone() from None
    if findings:
        raise UserError(findings)
    return said


def _send(pipe: Connection, batch: list[Opened]) -> None:
    try:
        pipe.send(batch)
    except OSError:
        raise _gone() from None


def _gone() -> UserError:
    said = "one of the processes ended by itself; each of them holds the whole model in memory."
    return wrong("caption.processes", said, "Lower it. What was written stays; running it again goes on.")
