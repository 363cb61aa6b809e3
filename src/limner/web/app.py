"""The server's application: our own routes and static files, the Gradio page, and the gate before all of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import asdict

import filelock
import gradio as gr
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import ASGIApp

from limner import disk, queue, runner, runs
from limner.errors import Finding, UserError, printable
from limner.web import (
    asked,
    dataset_api,
    folders,
    gate,
    models,
    notices,
    page,
    pictures,
    presets,
    runs_api,
    settings_api,
    tensorboard,
    thumbnails,
    tools_api,
)
from limner.web.context import Context
from limner.web.document import Document
from limner.web.theme import STATIC, STYLES, theme

ROUTERS = (
    asked, dataset_api, folders, models, notices, pictures, presets, runs_api, settings_api,
    thumbnails, tools_api,
)  # fmt: skip
"""Modules with routes of their own under /api: each has `router(context) -> APIRouter`."""

QUEUE_SECONDS = 10.0
"""How often the server looks whether runs wait and nobody starts them, as after the machine was started again."""


def make_app(context: Context, rules: gate.Rules | None = None) -> ASGIApp:
    """Everything that answers a request, behind the gate. Without rules: those of a server on loopback without a password."""
    rules = rules or gate.Rules(gate.token_of(runs.home()))
    app = bare_app(context, has_password=bool(rules.password))
    document = Document(app, language=context.words.language, theme=context.settings.theme)
    return gate.Gate(document, rules)


def bare_app(context: Context, *, has_password: bool = False) -> FastAPI:
    """The routes without the gate: for `make_app`, and for tests that go through all of them."""
    return gr.mount_gradio_app(
        own_routes(context, has_password=has_password),
        page.build(context),
        path="/",
        theme=theme(),
        css_paths=STYLES,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
    )


def own_routes(context: Context, *, has_password: bool = False) -> FastAPI:
    """Our own, without Gradio's page."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        besides = [asyncio.create_task(keep_queue_going()), asyncio.create_task(_sweep())]
        yield
        for task in besides:
            task.cancel()

    app = FastAPI(title="Limner", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_exception_handler(UserError, _say)
    app.add_exception_handler(RequestValidationError, _say_misshapen)
    app.add_exception_handler(OSError, _say_fault)
    for module in ROUTERS:
        app.include_router(module.router(context))
    app.include_router(tensorboard.router(context, has_password=has_password))
    app.mount("/studio", StaticFiles(directory=STATIC))
    return app


async def keep_queue_going() -> None:
    """See to it, now and from time to time, that a runner is there for runs that wait."""
    look = _start_all_that_waits
    while True:
        with contextlib.suppress(UserError, OSError):  # what is wrong is said where the queue is shown; here we try again
            await asyncio.to_thread(look)
            look = _start_what_waits
        await asyncio.sleep(QUEUE_SECONDS)


async def _sweep() -> None:
    with contextlib.suppress(OSError):  # what cannot be read there is said where it is used
        await asyncio.to_thread(pictures.sweep)


def _start_all_that_waits() -> None:
    queue.repair()  # goes through all run folders: once
    _start_what_waits()


def _start_what_waits() -> None:
    if queue.waiting():
        runner.ensure_runner()


def _say(request: Request, error: Exception) -> JSONResponse:
    """A user's mistake: 422 with the findings, which the page shows at their fields."""
    del request
    assert isinstance(error, UserError)
    return JSONResponse({"findings": [asdict(finding) for finding in error.findings]}, status_code=422)


def _say_fault(request: Request, error: Exception) -> JSONResponse:
    """What the system did not let us do, as `limner.cli` says it: a full disk, a folder that may not be written."""
    assert isinstance(error, OSError)
    where, why = printable(error.filename or "disk", 300), printable(error.strerror or error, 300)
    remedy = "Free some space." if error.errno in disk.FULL else "Look at who may read and write there."
    if isinstance(error, filelock.Timeout):
        remedy = "Another process holds it. Try again in a moment."
    elif error.errno is None:  # it may be a fault of ours
        logging.getLogger(__name__).error("%s failed", request.url.path, exc_info=error)
    finding = Finding(where, f"{why}.", remedy)
    return JSONResponse({"findings": [asdict(finding)]}, status_code=422)


def _say_misshapen(request: Request, error: Exception) -> JSONResponse:
    """A request that no page of ours makes: said in the same form, without what was sent."""
    del request
    assert isinstance(error, RequestValidationError)
    fields = {".".join(map(str, fault["loc"][1:]))[:200] or "request" for fault in error.errors()}
    findings = [asdict(Finding(field, "is missing or of the wrong type.", "Reload the page.")) for field in sorted(fields)]
    return JSONResponse({"findings": findings}, status_code=422)
