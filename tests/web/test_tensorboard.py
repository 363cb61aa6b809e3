"""The button opens a real TensorBoard, which ends with the server, even a killed one."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import Page

pytestmark = pytest.mark.slow
OPEN = "fetch('api/tensorboard', {method: 'POST'}).then(a => a.json())"


@pytest.mark.long
def test_it_opens_once_and_ends_with_a_killed_server(home: Path, limner_web: Callable[..., Any], browser: Any) -> None:
    server = limner_web("--port", "0")
    page: Page = browser.new_page()
    page.set_default_timeout(120_000)
    page.goto(server.url)
    page.wait_for_selector("#tabs")
    answer = page.evaluate(OPEN)
    assert answer["url"].startswith("http://127.0.0.1:")
    assert page.evaluate(OPEN) == answer
    with urllib.request.urlopen(answer["url"], timeout=60) as shown:
        assert b"TensorBoard" in shown.read()
    page.close()
    children = psutil.Process(server.process.pid).children(recursive=True)
    assert any("limner.web.tensorboard" in child.cmdline() for child in children)
    server.process.kill()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(answer["url"], timeout=5)


def test_one_that_was_ended_is_started_again(tmp_path: Path) -> None:
    from limner.web.tensorboard import Board

    board = Board(tmp_path / "runs")
    first = board.open()
    assert board._process is not None
    board._process.kill()
    board._process.wait()
    again = board.open()
    assert board._process.poll() is None and again > 0 and first > 0
    began = time.monotonic()
    board.close()
    assert time.monotonic() - began < 60 and board._process is None
