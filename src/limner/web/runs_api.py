"""The Runs page's routes. GET only reads, POST only changes; what is served is looked up by name in a listing."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse

from limner import changes, jobs, queue, runner, runs
from limner.config import files as config_files
from limner.errors import UserError, printable, wrong
from limner.runs import LIVE, Run
from limner.web import run_facts
from limner.web.context import Context
from limner.web.curves import CurvesOfRuns
from limner.web.thumbnails import Shelf
from limner.web.zipped import zipped

_SAFE = {"X-Content-Type-Options": "nosniff"}
_WHY_NOT = {
    "stop": "it is not running.",
    "stop-now": "it is not running.",
    "resume": "it is running, waiting or finished.",
    "sample": "it is not running, is being stopped, or has no prompts.",
    "save": "it is not running, or is being stopped.",
    "change": "it is not running, or is being stopped.",
    "delete": "it is running or waiting.",
    "duplicate": "its config cannot be read.",
}

Name = Annotated[str, Query(max_length=300)]


def router(context: Context) -> APIRouter:
    """All routes under /api/runs, and /api/queue."""
    del context
    routes, curves = APIRouter(), CurvesOfRuns()
    overview = run_facts.Overview(curves)
    _add_reading(routes, overview, curves)
    _add_files(routes, curves)
    _add_changing(routes, overview)
    return routes


def _find(name: str) -> Run:
    """The run of that id, found among those there are."""
    folder = runs.home() / "runs"
    if not folder.is_dir() or name not in os.listdir(folder) or not (folder / name / "config.toml").is_file():
        raise wrong("run", f"there is no run {printable(name, 60)!r}.", "It may have been deleted.")
    return runs.named(name)


def _add_reading(routes: APIRouter, overview: run_facts.Overview, curves: CurvesOfRuns) -> None:
    @routes.get("/api/runs")
    def all_runs(since: Name = "") -> Response:
        """The runs in brief. With an earlier answer's version: those that changed since."""
        return JSONResponse(overview.answer(since))

    @routes.get("/api/runs/{name}")
    def one_run(name: str, since: Name = "") -> Response:
        """Everything about one run, without the parts that are as they were in an earlier answer's version."""
        run = _find(name)
        return JSONResponse(run_facts.full(run, overview.brief(run), curves, since))

    @routes.get("/api/runs/{name}/curves")
    def curves_of(name: str, points: Annotated[int, Query(ge=10, le=4000)] = 800, since: Name = "") -> Response:
        """What is drawn, as `Curves.answer`; only the version if it is still that of `since`."""
        known = curves.of(_find(name))
        if since == known.version:
            return JSONResponse({"version": since})
        return Response(known.answer(points), media_type="application/json")

    @routes.get("/api/runs/{name}/compare")
    def compare(name: str, other: Name) -> Response:
        """The options in which two runs differ; their curves and samples are asked for run by run."""
        one, two = _find(name), _find(other)
        return JSONResponse({"differences": run_facts.compared(one.config(), two.config())})


def _add_files(routes: APIRouter, curves: CurvesOfRuns) -> None:
    shelf = Shelf()

    @routes.get("/api/runs/{name}/samples/{file}")
    def sample(
        name: str,
        file: str,
        w: Annotated[int | None, Query(ge=1, le=4096)] = None,
        if_none_match: Annotated[str | None, Header()] = None,
    ) -> Response:
        """A sample's PNG; with `w`, a JPEG whose longest side is about that, as `Shelf.answer`."""
        run = _find(name)
        if file not in run_facts.sample_names(run):
            raise _no_file(run, file)
        if w is not None:
            return shelf.answer(run.samples / file, w, if_none_match)
        headers = _SAFE | {"Cache-Control": "private, max-age=600"}
        return FileResponse(run.samples / file, filename=f"{run.id}_{file}", media_type="image/png", headers=headers)

    @routes.get("/api/runs/{name}/checkpoints/{file}")
    def checkpoint(name: str, file: str) -> Response:
        """A finished file; a whole model's folder as a zip."""
        run = _find(name)
        path = run_facts.checkpoint_files(run, run_facts.config_of(run), curves.of(run).checkpoints).get(file)
        if path is None:
            raise _no_file(run, file)
        if not path.is_dir():
            return FileResponse(path, filename=file, media_type="application/octet-stream", headers=_SAFE)
        answer = StreamingResponse(zipped(path), media_type="application/zip", headers=_SAFE)
        return _attached(answer, f"{file}.zip")

    @routes.get("/api/runs/{name}/log")
    def log(name: str) -> Response:
        """The whole log."""
        run = _find(name)
        if not run.log.is_file():
            raise _no_file(run, "log.txt")
        return FileResponse(run.log, filename=f"{run.id}.log.txt", media_type="text/plain; charset=utf-8", headers=_SAFE)

    @routes.get("/api/runs/{name}/config.toml")
    def config(name: str) -> Response:
        """The config as it was written."""
        run = _find(name)
        path = run.path / "config.toml"
        return FileResponse(path, filename=f"{run.id}.toml", media_type="text/plain; charset=utf-8", headers=_SAFE)


def _no_file(run: Run, name: str) -> UserError:
    return wrong("run", f"{run.id} has no file {printable(name, 60)!r}.", "It may have been deleted; reload the page.")


def _attached(answer: Response, name: str) -> Response:
    # the quoting of names is Starlette's own, which only FileResponse offers
    answer.headers["Content-Disposition"] = FileResponse(Path(name), filename=name).headers["Content-Disposition"]
    return answer


# --- changes ----------------------------------------------------------------------------------------------------------


def _add_changing(routes: APIRouter, overview: run_facts.Overview) -> None:
    @routes.post("/api/runs/{name}/{action}")
    def act(
        name: str, action: str, options: Annotated[dict[str, str] | None, Body(embed=True, max_length=100)] = None
    ) -> dict[str, Any]:
        """Do something to a run. Raises UserError where its state forbids it; the answer holds its values for "duplicate".

        `options` are what "change" shall change: typed texts by dotted name.
        """
        run = _find(name)
        if action not in _WHY_NOT:
            raise wrong("action", f"{printable(action, 40)!r} is not known.", f"Choose one of: {', '.join(_WHY_NOT)}.")
        # of its events, which may be many, only what asks for pictures must know: changes may have given it prompts
        taken = changes.recorded(run) if action == "sample" else []
        state, config = run.state(), run_facts.changed(run_facts.config_of(run), taken)
        asked = state.status in LIVE and run.is_asked_to_stop()
        if action not in run_facts.actions(run, state, config, asked=asked):
            raise wrong("run", f"{run.id} cannot {action}: {_WHY_NOT[action]}", "The page shows what can be done now.")
        if action == "duplicate":
            return {"values": config_files.overrides_of(run.config())}
        if action == "change":
            changes.request(run, changes.typed(run, options or {}))
        else:
            _act(run, action)
        overview.forget()
        return {}

    @routes.post("/api/queue")
    def order(order: Annotated[list[str], Body(embed=True, max_length=10_000)]) -> dict[str, Any]:
        """Put the waiting runs in this order. Those that do not wait any more are passed over."""
        queue.reorder(order)
        overview.forget()
        return {"queue": queue.waiting()}


def _act(run: Run, action: str) -> None:
    """Start what was asked for; nothing here waits for a trainer."""
    if action == "resume":
        queue.enqueue(run)
        runner.ensure_runner()
    elif action == "delete":
        runs.delete(run)
    elif action == "stop-now":
        # asks, waits for ten seconds, terminates, kills. If the server dies in between, what was asked stands in the run
        threading.Thread(target=jobs.stop, args=(run,), kwargs={"now": True}, daemon=True).start()
    elif action != "stop" or not queue.remove(run):
        run.request(action)
