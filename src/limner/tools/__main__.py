"""A tool as a process: `python -m limner.tools FOLDER` does what the folder's tool.toml asks; `--look` reads it from its input
and only says what would be done. One of the places that may catch everything.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import filelock

from limner import disk, tool_jobs
from limner.errors import Finding, StopRequested, UserError, printable
from limner.runs import Run
from limner.state import StateTeller
from limner.tools import using
from limner.tools.tool import Report


class Told(StateTeller):
    """The progress of a tool, as its job's state; ends it when the job is asked to stop, or by a signal."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._words, self._signalled = "", False
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._signalled:
            os._exit(128 + number)
        self._signalled = True

    def __call__(self, done: int, total: int, words: str = "") -> None:
        if words and words != self._words:
            self._words = words
            print(printable(words), flush=True)
        self.say(progress=(done, total))
        if self._signalled or self.run.is_asked_to_stop():
            raise StopRequested


def work(run: Run) -> int:
    """Do what a job asks. Returns the exit code."""
    try:
        with run.hold():
            return _work(run)
    except filelock.Timeout:
        print(f"error: {run.id} is at work already.", file=sys.stderr)
        return 2


def _work(run: Run) -> int:
    told = Told(run)
    told.say("running", "working")
    try:
        name, section = tool_jobs.asked(run)
        with using.lent_device(section), using.lent_output(section):
            report = using.module_of(section).run(section, told)
        disk.write_json(run.path / tool_jobs.REPORT, as_json(report))
        told.say("done", "")
        print(f"{name} is done.", flush=True)
        return 0
    except StopRequested:
        told.say("stopped", "")
        return 0
    except UserError as error:
        print(error, file=sys.stderr)
        disk.write_json(run.path / tool_jobs.REPORT, {"findings": [asdict(f) for f in error.findings]})
        told.say("failed", "", error=str(error))
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        told.say("failed", "", error=f"{using.explain(error)} The log has the details.")
        return 1


def look(text: str) -> int:
    """Print what the tool asked for in a TOML text would do, as JSON."""
    try:
        _, section = tool_jobs.read(text)
        said = as_json(using.module_of(section).look(section))
    except UserError as error:
        said = {"findings": [asdict(f) for f in error.findings]}
    except Exception as error:
        traceback.print_exc()
        said = {"findings": [asdict(Finding("tool", using.explain(error), "Start it; its log will have the details."))]}
    print(json.dumps(said, ensure_ascii=True))
    return 0


def as_json(report: Report) -> dict[str, object]:
    """A report as it is kept and sent."""
    files, remarks = [str(file) for file in report.files], [asdict(f) for f in report.remarks]
    return {"files": files, "lines": [printable(line, 1000) for line in report.lines], "remarks": remarks}


if __name__ == "__main__":
    sys.exit(look(sys.stdin.buffer.read().decode()) if sys.argv[1:] == ["--look"] else work(Run(Path(sys.argv[1]).absolute())))
