"""The server's application: our own routes and static files, the Gradio page, and the gate before all of them."""

from __future__ import annotations

from dataclasses import asdict

import gradio as gr
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles

from limner.errors import Finding, UserError
from limner.web import asked, models, page, pictures, presets, runs_api
from limner.web.context import Context
from limner.web.theme import STATIC, STYLES, theme

ROUTERS = (asked.router, models.router, pictures.router, presets.router, runs_api.router)


def make_app(context: Context) -> FastAPI:
    """Everything that answers a request. `web.server` puts the gate before it."""
    app = FastAPI(title="Limner", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(UserError, _say)
    app.add_exception_handler(RequestValidationError, _say_misshapen)
    for part in ROUTERS:
        app.include_router(part(context))
    app.mount("/studio", StaticFiles(directory=STATIC))
    return gr.mount_gradio_app(
        app,
        page.build(context),
        path="/",
        theme=theme(),
        css_paths=STYLES,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
    )


def _say(request: Request, error: Exception) -> JSONResponse:
    """A user's mistake: 422 with the findings, which the page shows at their fields."""
    del request
    assert isinstance(error, UserError)
    return JSONResponse({"findings": [asdict(f) for f in error.findings]}, status_code=422)


def _say_misshapen(request: Request, error: Exception) -> JSONResponse:
    """A request that no page of ours makes: said in the same form, without what was sent."""
    del request
    assert isinstance(error, RequestValidationError)
    fields = {".".join(map(str, fault["loc"][1:]))[:200] or "request" for fault in error.errors()}
    findings = [asdict(Finding(field, "is missing or of the wrong type.", "Reload the page.")) for field in sorted(fields)]
    return JSONResponse({"findings": findings}, status_code=422)
