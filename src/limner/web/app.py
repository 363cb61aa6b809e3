"""The server's application: our own routes and static files, the Gradio page, and the gate before all of them."""

from __future__ import annotations

import gradio as gr
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles

from limner.errors import UserError
from limner.web import asked, models, page, pictures, presets
from limner.web.context import Context
from limner.web.theme import STATIC, STYLE, theme

ROUTERS = (asked.router, models.router, pictures.router, presets.router)


def make_app(context: Context) -> FastAPI:
    """Everything that answers a request. `web.server` puts the gate before it."""
    app = FastAPI(title="Limner", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(UserError, _say)
    for part in ROUTERS:
        app.include_router(part(context))
    app.mount("/studio", StaticFiles(directory=STATIC))
    return gr.mount_gradio_app(
        app,
        page.build(context),
        path="/",
        theme=theme(),
        css_paths=[STYLE],
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
    findings = [{"field": f.field, "message": f.message, "remedy": f.remedy, "severity": f.severity} for f in error.findings]
    return JSONResponse({"findings": findings}, status_code=422)
