"""Train one tiny run again and again, each time with no space for another operation: `every_write.py KIND FOLDER FIRST STRIDE`.

Runs under no_space.so. Prints a line of JSON for each: the operation, whether space came back at once, the exit code, what was
said, and what does not hold.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["OMP_NUM_THREADS"] = "1"

import faults
import forked
import preloaded  # noqa: F401
import tiny
import trainer
from limner.engine import __main__ as engine
from limner.runs import Run

SHIM = ctypes.CDLL(None)
LENGTH = {"steps": 4, "batch_size": 2}
OFTEN = {"state_every_steps": 2, "save_every_steps": 2, "keep_last": 1}
PROMPT = {"prompts": ["a cat"], "steps": 1, "width": 32, "height": 32}


def train(run: Run, folder: Path, operation: int, stays_full: bool) -> tuple[int, int]:
    """(exit code, number of operations) of a trainer that finds no space at an operation; -1: at none."""
    told, tell = os.pipe()
    if (pid := os.fork()) == 0:
        forked.to_log(str(run.log))
        SHIM.no_space_arm(str(folder).encode(), ctypes.c_long(operation), ctypes.c_int(stays_full))
        code = 70
        try:
            code = engine.main(str(run.path))
        finally:
            os.write(tell, b"%d" % SHIM.no_space_count())
            os._exit(code)
    os.close(tell)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(told, "rb") as said:
        count = int(said.read() or 0)
    return os.waitstatus_to_exitcode(status), count


def new(kind: str, folder: Path, model: Path, pictures: Path, machine: Path) -> Run:
    """A run in a new home, which is all that is below the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(machine, folder / "machine.json")
    os.environ["LIMNER_HOME"] = str(folder)
    return trainer.new_run(trainer.config(model, pictures, adapter={"kind": kind}, output=OFTEN, sample=PROMPT, train=LENGTH))


def faults_of(run: Run, folder: Path, code: int, stays_full: bool, expected: dict[str, Any]) -> list[str]:
    """What does not hold."""
    out = []
    state, log = run.state(), run.tail(1 << 20)
    if code not in (0, 1, 2):
        out.append(f"exit code {code}")
    # where not even the state can be written any more, the log and the exit code tell who started it
    if code and state.status != "failed" and not (stays_full and code == 2 and state.status == "queued"):
        out.append(f"{state.status} after exit code {code}")
    is_told = "MiB are needed" in state.error and faults.NO_SPACE in state.error
    # SQLite says no more of what it could not make room for in its shared memory, and of a file that it could not make
    is_told |= any(said in state.error for said in ("disk I/O error", "unable to open database file). Make room"))
    if code and not stays_full and not is_told:
        out.append(f"said {state.error!r}")
    if "Traceback" in log:
        out.append("a traceback: " + log[log.index("Traceback") :][-600:])
    if left := faults.leftovers(folder):
        out.append(f"left {left}")
    if run.is_locked():
        out.append("locked")
    try:
        faults.require_whole(run)
    except Exception as error:
        out.append(f"not whole: {error!r}")
    again, _ = train(run, folder, -1, False)
    if again:
        out.append(f"not resumed ({again}): {run.state().error!r}")
    elif trainer.result(run) | {"samples": 0} != expected | {"samples": 0}:
        found = trainer.result(run)
        out.append(f"another result: {[k for k in expected if found[k] != expected[k] and k != 'samples']}")
    return out


def main(kind: str, base: Path, first: int, stride: int) -> None:
    model, pictures, machine = base / "model", base / "pictures", base / "machine.json"
    folder = base / f"{kind}-{first}"
    run = new(kind, folder, model, pictures, machine)
    code, count = train(run, folder, -1, False)
    assert code == 0, run.tail()
    expected = trainer.result(run)
    print(json.dumps({"operations": count}), flush=True)
    for operation in range(first, count + 1, stride):
        stays_full = bool(operation // stride % 2)
        run = new(kind, folder, model, pictures, machine)
        code, _ = train(run, folder, operation, stays_full)
        said = run.state().error
        wrong = faults_of(run, folder, code, stays_full, expected)
        print(json.dumps({"operation": operation, "stays": stays_full, "code": code, "said": said, "wrong": wrong}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        from limner import machine as machines

        tiny.build(Path(sys.argv[2]) / "model")
        shutil.rmtree(Path(sys.argv[2]) / "model" / "tokenizer")
        tiny.pictures(Path(sys.argv[2]) / "pictures")
        machines.describe(Path(sys.argv[2]))
    else:
        main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
