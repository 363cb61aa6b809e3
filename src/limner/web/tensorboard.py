"""`POST /api/tensorboard`: opens TensorBoard on all runs, as a program of its own on this machine's loopback.

It has no login and no gate, so it never listens elsewhere, and is not opened where a password keeps other accounts of the
machine out of the page. It ends with the server, however that ends: its standard input is a pipe whose other end the server
holds, and it goes when that pipe closes. That works on every system and after `kill -9`; Linux's PR_SET_PDEATHSIG does not
serve, since it counts the end of the *thread* that started the program.
"""

from __future__ import annotations

import getpass
import importlib.util
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from fastapi import APIRouter

from limner import runs
from limner.errors import wrong
from limner.web import places
from limner.web.context import Context

PATIENCE_SECONDS = 60.0


def router(context: Context, *, has_password: bool) -> APIRouter:
    """Answers `{url, message}`; only one of them is said. Refuses if a password keeps other accounts out of the page."""
    routes, board = APIRouter(), Board(runs.home() / "runs")

    @routes.post("/api/tensorboard")
    def tensorboard() -> dict[str, str]:
        if has_password and places.has_other_users():
            by_hand = f"To open it to them, run by hand: tensorboard --logdir {board.folder}"
            raise wrong("TensorBoard", "has no password: every account of this machine could open it.", by_hand)
        port = board.open()
        if context.loopback:
            return {"url": f"http://127.0.0.1:{port}/", "message": ""}
        line = f"ssh -L {port}:127.0.0.1:{port} {getpass.getuser()}@{socket.gethostname()}"
        said = context.words("TensorBoard has no password, so it answers only on the machine it runs on. On yours, run")
        return {"url": "", "message": f"{said}: {line} | http://127.0.0.1:{port}/"}

    return routes


class Board:
    """The one TensorBoard of a server, started when it is first asked for and again if somebody ended it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    def open(self) -> int:
        """The port on which it answers. Raises UserError if it cannot be started."""
        with self._turn:
            if self._process is None or self._process.poll() is not None:
                if importlib.util.find_spec("tensorboard") is None:
                    raise wrong("TensorBoard", "is not installed.", "pip install tensorboard")
                self.folder.mkdir(parents=True, exist_ok=True)
                with socket.create_server(("127.0.0.1", 0)) as free:
                    self._port = free.getsockname()[1]
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "limner.web.tensorboard", str(self.folder), str(self._port)],
                    stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )  # fmt: skip
            self._wait(self._process)
            return self._port

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until and process.poll() is None:
            try:
                with socket.create_connection(("127.0.0.1", self._port), timeout=1):
                    return
            except OSError:
                time.sleep(0.1)
        self.close()
        raise wrong("TensorBoard", "does not start.", f"Try it by hand: tensorboard --logdir {self.folder}")

    def close(self) -> None:
        """End it."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()
            self._process = None


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def _run(folder: str, port: str) -> None:
    """TensorBoard itself, in the process that :class:`Board` starts."""
    from tensorboard import main as tensorboard

    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.argv = ["tensorboard", "--logdir", folder, "--host", "127.0.0.1", "--port", port]
    tensorboard.run_main()


if __name__ == "__main__":
    _run(*sys.argv[1:])
