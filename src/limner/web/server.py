"""`limner web`: the address, the password, the life of the server's process."""

from __future__ import annotations

import socket

import uvicorn

from limner import runs
from limner.settings import Settings
from limner.web import app
from limner.web.context import Context
from limner.web.words import words_of


def serve(port: int | None) -> int:
    """Answer until somebody ends it."""
    listening = socket.create_server(("127.0.0.1", port or 0))
    context = Context(Settings(), (runs.home().resolve(),), words_of("en"))
    server = uvicorn.Server(uvicorn.Config(app.make_app(context), access_log=False, log_level="warning"))
    print(f"Limner is at http://127.0.0.1:{listening.getsockname()[1]}/", flush=True)
    server.run(sockets=[listening])
    return 0
