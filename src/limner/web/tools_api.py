"""The Tools page's routes: what a tool would do, starting and stopping it, what came of it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body
from fastapi import Path as PathPart
from fastapi.responses import FileResponse

from limner import disk, jobs, tool_jobs
from limner.config.tools import Tools
from limner.errors import printable, wrong
from limner.runs import LIVE, Run
from limner.web import asked, places
from limner.web.asked import Values
from limner.web.context import Context

_SHOWN = 20
_TAIL = 3000
_NAMED = 20
"""So many written files does the page name."""
_SAFE = {"X-Content-Type-Options": "nosniff"}

Tool = Annotated[str, Body(max_length=100)]
Job = Annotated[str, PathPart(max_length=300)]


def router(context: Context) -> APIRouter:
    """All routes under /api/tools."""
    routes = APIRouter(prefix="/api/tools")

    @routes.get("")
    def used() -> list[dict[str, Any]]:
        """The newest uses of tools, newest first."""
        named = [run for run in tool_jobs.all_jobs() if places.can_be_named(run.id)]
        return [_brief(run) for run in reversed(named[-_SHOWN:])]

    @routes.get("/{job}")
    def one(job: Job) -> dict[str, Any]:
        """One use: its state, what it says, what it wrote."""
        run = _find(job)
        report = _report(run)
        named = report["files"][:_NAMED]
        fetchable = [places.leads_inside(path, context.roots) and Path(path).is_file() for path in named]
        return {**_brief(run), "report": {**report, "fetchable": fetchable}, "log": run.tail(_TAIL)}

    @routes.get("/{job}/files/{number}")
    def file(job: Job, number: int) -> FileResponse:
        """A file that it wrote, by its place in the report."""
        run = _find(job)
        path = _written(run, number, context)
        return FileResponse(path, filename=path.name, media_type=_media(path), headers=_SAFE)

    @routes.post("/look")
    def look(tool: Tool, values: Values) -> dict[str, Any]:
        """What it would do; nothing is written."""
        return tool_jobs.look(_asked(tool, values, context))

    @routes.post("/start")
    def start(tool: Tool, values: Values) -> dict[str, str]:
        """Begin."""
        return {"job": tool_jobs.start(_asked(tool, values, context)).id}

    @routes.post("/stop")
    def stop(job: Annotated[str, Body(embed=True, max_length=300)]) -> dict[str, Any]:
        """Ask it to end; one that does not is ended after a while."""
        run = _find(job)
        threading.Thread(target=jobs.stop, args=(run,), kwargs={"now": True}, daemon=True).start()
        return {}

    return routes


def _asked(tool: str, values: dict[str, str], context: Context) -> Tools:
    """What the page asks. Raises UserError with a finding at each field that is wrong."""
    if tool not in Tools.model_fields:
        raise wrong("tool", f"{printable(tool, 60)!r} is none.", "Choose one of the list.")
    if strange := next((path for path in values if path.partition(".")[0] != tool), None):
        raise wrong("tool", f"{printable(strange, 60)!r} is no option of {tool}.", "Reload the page.")
    return asked.built(Tools, {tool: {}}, values, context)


def _find(name: str) -> Run:
    folder = tool_jobs.folder_of_all()
    if not folder.is_dir() or name not in os.listdir(folder) or not (folder / name / "tool.toml").is_file():
        raise wrong("tool", f"there is no use of a tool called {printable(name, 60)!r}.", "Only the newest are kept.")
    return Run(folder / name)


def _brief(run: Run) -> dict[str, Any]:
    state = run.state()
    began = (run.path / "tool.toml").stat().st_mtime
    ended = time.time() if state.status in LIVE else state.updated
    words = run.id.partition("_")[2].partition("_")[2]  # after the day and the time
    return {
        "id": run.id,
        "tool": next((name for name in Tools.model_fields if words == name or words.startswith(f"{name}-")), words),
        "status": state.status,
        "progress": state.progress,
        "error": state.error,
        "began": began,
        "seconds": max(0.0, ended - began),
    }


def _report(run: Run) -> dict[str, Any]:
    """What a job said in the end; it has `files`, if only none."""
    report = disk.read_json(run.path / tool_jobs.REPORT, is_ours=True)
    report = report if isinstance(report, dict) else {}
    files = report.get("files")
    return report | {"files": [f for f in files if isinstance(f, str)] if isinstance(files, list) else []}


def _written(run: Run, number: int, context: Context) -> Path:
    """The file, if it is still there and in a place that the page may read."""
    files = _report(run)["files"]
    if not 0 <= number < len(files):
        raise wrong("file", "there is no such file.", "Reload the page.")
    path = places.resolve(files[number], context.roots, field="file")
    if not path.is_file():
        raise wrong("file", f"{path.name} is a folder.", "It lies on the server.")
    return path


def _media(path: Path) -> str:
    return "image/png" if path.suffix == ".png" else "application/octet-stream"
