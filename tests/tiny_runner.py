"""The real runner with a tiny trainer in place of the real one: `python tests/tiny_runner.py`. No torch, a tenth of a second.

The trainer notes its start in `<home>/started.txt` and its life in `<home>/busy.txt`; it does what the run's name says:
`fail...` exits with code 3, `hang...` waits to be killed or asked to stop, all else is done at once. Where the run's folder
has a `script.py`, that is what it does. `fault.txt` there is what goes wrong when it is started, `<home>/fault.txt` what is
wrong with the runner.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

WORDS = [sys.executable, __file__]

# Only the standard library: importing Limner would take longer than all the rest.
TRAINER = r"""
import json, os, sys, time
run = sys.argv[1]
home = os.path.dirname(os.path.dirname(run))
def note(file, words):
    handle = os.open(os.path.join(home, file), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, (words + "\n").encode())
def say(status, **values):
    path = os.path.join(run, "state.json")
    while (state := json.load(open(path)))["pid"] != os.getpid():  # said by who started it, under the run's lock
        time.sleep(0.005)
    with open(path + ".new", "w") as file:
        json.dump({**state, "status": status, **values}, file)
    os.replace(path + ".new", path)
name = os.path.basename(run)
note("started.txt", name)
if os.path.exists(script := os.path.join(run, "script.py")):
    exec(compile(open(script).read(), script, "exec"))
    sys.exit()
note("busy.txt", "+" + name)
if "fail" in name:
    note("busy.txt", "-" + name)
    sys.exit(3)
say("running", phase="training")
while "hang" in name and not os.path.exists(os.path.join(run, "control", "stop")):
    time.sleep(0.02)
say("stopped" if "hang" in name else "done")
note("busy.txt", "-" + name)
"""


def main(*starter: str) -> int:
    from limner import launch, queue, runner, runs

    def argv(config, path, device, available) -> list[str]:
        fault = path / "fault.txt"
        words = fault.read_text() if fault.exists() else sys.executable
        if words == "TypeError":
            raise TypeError("argv() is wrong")
        return [words, "-I", "-S", "-c", TRAINER, str(path)]

    launch.argv = argv
    waiting = queue.waiting

    def waiting_or_worse() -> list[str]:
        if (runs.home() / "fault.txt").exists():
            raise TypeError("the queue is wrong")
        return waiting()

    queue.waiting = waiting_or_worse
    runner.serve = functools.partial(runner.serve, tick_seconds=0.05)  # it looks more often than in earnest
    return runner.main(*map(int, starter))


def lines(home: Path, name: str) -> list[str]:
    """The lines of one of the trainers' two files."""
    path = home / name
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
