"""Many processes that do a thing at the same moment: `python tests/at_once.py WHAT COUNT ...`, forked from one interpreter, so
that twenty cost little more than one. Each prepares itself, waits at the barrier, acts, and says what came of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

Doing = Generator[None, None, Any]
"""What one process does; where it yields it waits for all the others."""


def together(what: str, count: int, *more: object, seconds: float = 120) -> list[Any]:
    """Have `count` processes do one of the things below at once, in this test's home; returns what each said."""
    words = [sys.executable, __file__, what, str(count), *map(str, more)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(words, capture_output=True, timeout=seconds, env=environment, check=False)
    assert done.returncode == 0, done.stderr.decode()
    said = [json.loads(line) for line in done.stdout.splitlines()]
    return [answer for _, answer in sorted(said, key=lambda line: line[0])]


def starts(number: int, runs_each: str) -> Doing:
    """Put so many runs into the queue, and see to it that a runner is there; says their names."""
    import tiny_runner
    from limner import jobs, queue, runner, runs
    from limner.config import Config, Launch, Output

    jobs.spawn, spawn = (
        lambda words, log, extra=None: (
            forked(tiny_runner.main, log) if list(words) == tiny_runner.WORDS else spawn(words, log, extra)
        ),
        jobs.spawn,
    )
    made = [
        runs.create(Config(output=Output(name=f"p{number}n{i}"), launch=Launch(device="cpu"))) for i in range(int(runs_each))
    ]
    yield
    for run in made:
        queue.enqueue(run)
        runner.ensure_runner(tiny_runner.WORDS)
    return [run.id for run in made]


def settings(number: int, times: str) -> Doing:
    """Change a setting of one's own again and again, as a server does; says how often the file was not whole."""
    from limner import runs
    from limner import settings as kept

    home, halves = runs.home(), 0
    yield
    for i in range(int(times)):
        mine = {f"output.name{number}": str(i)}
        kept.change(home, lambda now, _, mine=mine: replace(now, defaults={**now.defaults, **mine}))
        halves += bool(kept.read(home)[1])
    return halves


def token(number: int) -> Doing:
    """Ask for the home's secret, as a server does at its start."""
    del number
    from limner import runs
    from limner.web import gate

    yield
    return gate.token_of(runs.home())


def captions(number: int, folder: str, count: str) -> Doing:
    """Write a caption for each picture that has none, one operation for every few; says how many were written."""
    from limner import runs
    from limner.data.undo import Journal, Write

    journal, where = Journal(runs.home() / "undo"), Path(folder)
    files = [where / f"p{i:03d}.txt" for i in range(int(count))]
    yield
    written = 0
    for first in range(0, len(files), 10):
        changes = [Write(file, None, f"said by {number}\n") for file in files[first : first + 10]]
        written += journal.apply(where, "caption", f"by {number}", changes, lambda _: True).changed
    return written


class forked:
    """`main` as a process that leads a session of its own and writes to `log`, as `jobs.spawn` starts one."""

    def __init__(self, main: Callable[[], int], log: Path) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.closerange(3, 1000)  # the others' pipes, whose end they wait for
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(out, 1)
            os.dup2(out, 2)
            code = 1
            try:
                code = main()
            finally:
                os._exit(code)

    def wait(self) -> None:
        os.waitpid(self.pid, 0)


def main(what: str, count: int, *more: str) -> None:
    import limner.queue
    import limner.runner
    import limner.settings
    import limner.web.gate  # noqa: F401  what is imported here, the forks have

    ready, told = os.pipe(), [os.pipe() for _ in range(count)]
    gate = os.pipe()
    pids = []
    for number in range(count):
        pid = os.fork()
        if pid == 0:
            os.close(gate[1])
            _act(globals()[what](number, *more), ready[1], gate[0], told[number][1], number)
        pids.append(pid)
    for _ in pids:
        os.read(ready[0], 1)
    os.close(gate[1])  # all of them see the end of it at once
    for _, write in told:
        os.close(write)
    for read, _ in told:
        with open(read, "rb") as answer:
            sys.stdout.buffer.write(answer.read())
    sys.stdout.flush()
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    sys.exit(max(codes))


def _act(doing: Doing, ready: int, gate: int, told: int, number: int) -> NoReturn:
    code = 1
    try:
        next(doing)
        os.write(ready, b"x")
        os.read(gate, 1)
        try:
            next(doing)
        except StopIteration as end:
            os.write(told, json.dumps([number, end.value]).encode() + b"\n")
            code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
