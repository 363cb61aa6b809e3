"""A use of a tool as a folder, like a run's: `<home>/tools/ID/` with tool.toml, state.json, log.txt, report.json, control/.

The page starts tools so: each is a process of its own, which goes on without the page and without the server. There is no
queue; a tool that wants a graphics card is refused while a run trains on it, and a run waits for a tool that has it.
"""

from __future__ import annotations

import datetime
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from limner import disk, jobs, machine, runner, runs
from limner.config.files import build_as, parse, read_text, render_changes
from limner.config.tools import Tools, the_section
from limner.config.tools.base import ToolSection
from limner.errors import wrong
from limner.runs import LIVE, Run

REPORT = "report.json"
_KEPT = 50
_CARDS = {"rocm": "cuda", "directml": "cuda", "coreml": "mps"}
"""onnxruntime's words for a card -> that of PyTorch, by which runs are known."""
_LOOK_SECONDS = 120


def folder_of_all() -> Path:
    """Where the uses of tools are kept."""
    return runs.home() / "tools"


def start(tools: Tools) -> Run:
    """Begin to do what is asked."""
    name, section = the_section(tools)
    require_free(section)
    run = _make(name)
    disk.write_text(run.path / "tool.toml", text_of(tools))
    with run.hold():  # which the process waits for: the state tells of it before it writes one
        process = jobs.spawn([sys.executable, "-m", "limner.tools", str(run.path)], run.log, {"PYTHONUTF8": "1"})
        run.write_state(run.starting(process.pid))
    threading.Thread(target=lambda: jobs.note_exit(run, process.pid, process.wait()), daemon=True).start()
    return run


def device_of(section: ToolSection) -> str | None:
    """The graphics card that it wants to itself: cuda or mps. None for one that works on the processor."""
    asked = getattr(section, "device", "auto" if getattr(section, "preview_prompt", "") else "cpu").partition(":")[0]
    kind = machine.describe(runs.home()).best().kind if asked == "auto" else _CARDS.get(asked, asked)
    return None if kind == "cpu" else kind


def require_free(section: ToolSection) -> None:
    """Raises UserError if a run trains on the graphics card that a tool wants."""
    device = device_of(section)
    run = runner.live_runs().get(device) if device else None
    if run is not None:
        said = f"{run.id} is being trained on {device}."
        raise wrong("tool", said, f"Wait for it, stop it, or {without_card(section)}.")


def without_card(section: ToolSection) -> str:
    """What makes a tool do without the graphics card."""
    return 'set device = "cpu"' if "device" in type(section).model_fields else "leave preview_prompt empty"


def look(tools: Tools) -> dict[str, Any]:
    """What it would do, as the tool's `look` says: files, lines and remarks, or the findings that forbid it."""
    words = [sys.executable, "-m", "limner.tools", "--look"]
    try:
        done = subprocess.run(words, input=text_of(tools).encode(), capture_output=True, timeout=_LOOK_SECONDS, check=False)
        said = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise wrong("tool", f"did not answer within {_LOOK_SECONDS} seconds.", "Start it without looking first.") from None
    except ValueError:
        raise wrong("tool", "ended without an answer.", "Start it; its log has the details.") from None
    return said


def text_of(tools: Tools) -> str:
    """What is asked as TOML, be it only defaults."""
    name, _ = the_section(tools)
    text = render_changes(tools)
    return text if text.strip() else f"[{name}]\n"


def read(text: str, source: str = "tool.toml") -> tuple[str, ToolSection]:
    """The tool's name and options in a TOML text."""
    raw = parse(text, source)
    if len(raw) != 1:
        raise wrong(source, "names no tool, or several.", "One section, such as [merge_loras].")
    return the_section(build_as(Tools, raw, {}, text, source))


def asked(run: Run) -> tuple[str, ToolSection]:
    """What a job asks."""
    return read(read_text(run.path / "tool.toml"), str(run.path / "tool.toml"))


def all_jobs() -> list[Run]:
    """Every use that is kept, oldest first."""
    return runs.kept(folder_of_all(), "tool.toml")


def _make(name: str) -> Run:
    """A new folder; the oldest ones that have ended are removed."""
    for old in all_jobs()[:-_KEPT]:
        if old.state().status not in LIVE:
            shutil.rmtree(old.path, ignore_errors=True)
    return runs.new(folder_of_all(), f"{datetime.datetime.now():%Y-%m-%d_%H%M%S}_{name}")
