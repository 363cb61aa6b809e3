"""Twenty pages on one run: no error, and each sees the run go on. `make torture` has fifty of them beside a real trainer."""

from __future__ import annotations

import asyncio
import http.client
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from limner import runs
from limner.config import files
from limner.runs import State
from pollers import Page, crowd

pytestmark = pytest.mark.slow


def session_of(url: str) -> str:
    """The cookie that a server without a password gives."""
    parts = urlsplit(url)
    asking = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=60)
    asking.request("GET", "/")
    answer = asking.getresponse()
    answer.read()
    asking.close()
    return (answer.getheader("set-cookie") or "").partition(";")[0]


@pytest.mark.long
def test_twenty_pages_watch_a_run(home: Path, limner_web: Callable[..., Any]) -> None:
    run = runs.create(files.build({}, {"output.name": "cat"}))
    run.write_state(State("done", step=0, steps=1000))
    run.event("start", step=0, steps=1000)
    server = limner_web("--port", "0", is_forked=True)
    cookie, ends = session_of(server.url), threading.Event()

    def trains() -> None:
        step = 0
        while not ends.wait(0.02):
            step += 1
            run.event("step", step=step, loss=1 / step, lr=1e-4, grad_norm=0.5)
            run.write_state(State("done", step=step, steps=1000), durable=False)

    trainer = threading.Thread(target=trains)
    trainer.start()
    pages = [Page(server.url, cookie, run.id) for _ in range(20)]
    began = time.monotonic()
    with ThreadPoolExecutor(1) as beside:  # this thread may have a browser's event loop
        seen = beside.submit(asyncio.run, crowd(pages, 3, every=0.5)).result()
    assert time.monotonic() - began < 60
    ends.set()
    trainer.join()
    print(seen)
    assert not seen.errors and len(seen.seconds) >= 20 * 3
    assert {page._versions["curves"] for page in pages} != {""} and "Traceback" not in server.output
