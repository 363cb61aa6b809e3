"""What the application does beside answering: it sees to it that what waits is started. And what it refuses as a whole."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gradio.queueing import Queue
from starlette.testclient import TestClient

from limner import queue, runner, runs
from limner.config import files
from limner.settings import Settings
from limner.web import app, gate, page, pictures, places, tensorboard
from limner.web.context import Context
from limner.web.words import Words

CONTEXT = Context(Settings(), (), Words())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Counts how often a runner was asked for."""
    counted = threading.Semaphore(0)
    monkeypatch.setattr(runner, "ensure_runner", counted.release)
    monkeypatch.setattr(app, "QUEUE_SECONDS", 0.01)
    return counted


def waiting_run(tmp_path: Path) -> runs.Run:
    run = runs.create(files.build({"data": {"path": str(tmp_path)}, "model": {"base": "pocket"}}, {}))
    queue.enqueue(run)
    return run


def test_a_runner_is_asked_for_again_and_again_while_something_waits(tmp_path: Path, asked: threading.Semaphore) -> None:
    waiting_run(tmp_path)
    with TestClient(app.bare_app(CONTEXT)):
        assert all(asked.acquire(timeout=60) for _ in range(3))


def test_a_run_that_lost_its_place_is_found_at_the_start(tmp_path: Path, home: Path, asked: threading.Semaphore) -> None:
    run = waiting_run(tmp_path)
    (home / "queue.sqlite").write_text("no table")
    with TestClient(app.bare_app(CONTEXT)):
        assert asked.acquire(timeout=60)
    assert queue.waiting() == [run.id]


def test_no_runner_for_nothing(monkeypatch: pytest.MonkeyPatch, asked: threading.Semaphore) -> None:
    looked, real = threading.Semaphore(0), queue.waiting
    monkeypatch.setattr(queue, "waiting", lambda: (looked.release(), real())[1])
    with TestClient(app.bare_app(CONTEXT)):
        assert all(looked.acquire(timeout=60) for _ in range(3))
    assert not asked.acquire(blocking=False)


def test_a_queue_that_cannot_be_read_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: threading.Semaphore
) -> None:
    waiting_run(tmp_path)
    tries, real = iter([OSError("no space")] * 2), queue.repair

    def repair() -> list[str]:
        if (error := next(tries, None)) is not None:
            raise error
        return real()

    monkeypatch.setattr(queue, "repair", repair)
    with TestClient(app.bare_app(CONTEXT)):
        assert asked.acquire(timeout=60)
    assert next(tries, None) is None


def test_what_interrupted_uploads_left_is_removed_at_the_start(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: threading.Semaphore
) -> None:
    token, elsewhere = home / "pictures" / ("0123456789abcdef" * 2), tmp_path / "elsewhere"
    old = time.time() - 25 * 3600

    def file(path: Path, *, age: float = old) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        os.utime(path, (age, age))
        return path

    gone = [file(token / ".tmp-0a1b"), file(token / "10_cat" / "inner" / ".tmp-0a1c")]
    kept = [
        file(token / ".tmp-new", age=time.time() - 3600),
        file(token / "cat.png"),
        file(home / "pictures" / ".tmp-0a1b"),
        file(home / "pictures" / "my own" / ".tmp-0a1b"),
        file(elsewhere / ".tmp-0a1b"),
        file(token / ".tmp-folder" / "cat.png"),
    ]
    (token / "link").symlink_to(elsewhere)
    (token / ".tmp-link").symlink_to(kept[-2])
    (home / "pictures" / ("a" * 32)).symlink_to(elsewhere)
    swept, real, loop = threading.Event(), pictures.sweep, threading.get_ident()

    def sweep() -> None:
        assert threading.get_ident() != loop
        real()
        swept.set()

    monkeypatch.setattr(pictures, "sweep", sweep)
    with TestClient(app.bare_app(CONTEXT)):
        assert swept.wait(60)
    assert not any(path.exists() for path in gone) and all(path.exists() for path in kept)
    assert (token / ".tmp-link").is_symlink() and (token / "link").is_symlink()


def test_uploads_are_written_beside_the_event_loop(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes or opens does so where no event loop runs."""
    asked: list[str] = []
    for name in ("mkdir", "open"):
        real = getattr(Path, name)

        def checked(path: Path, *words: Any, name: str = name, real: Callable[..., Any] = real, **more: Any) -> Any:
            if path.is_relative_to(home / "pictures"):
                with pytest.raises(RuntimeError):
                    asyncio.get_running_loop()
                asked.append(name)
            return real(path, *words, **more)

        monkeypatch.setattr(Path, name, checked)
    asking = TestClient(app.bare_app(CONTEXT))
    sent = {"token": "0123456789abcdef", "name": "cat.txt"}
    assert asking.post("/api/upload", params=sent, content=b"a cat").json()["saved"] == ["cat.txt"]
    assert {"mkdir", "open"} <= set(asked)


def test_no_tensorboard_for_those_whom_the_password_keeps_out(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(tensorboard.Board, "open", lambda self: 6006)
    monkeypatch.setattr(places, "has_other_users", lambda: True)
    rules = gate.Rules("t" * 40, password="a long password")
    headers = {"Origin": "http://127.0.0.1", "Cookie": f"{rules.cookie}={rules.session}"}
    guarded = TestClient(app.make_app(CONTEXT, rules), base_url="http://127.0.0.1", headers=headers)
    answer = guarded.post("/api/tensorboard")
    [finding] = answer.json()["findings"]
    assert answer.status_code == 422 and "no password" in finding["message"] and str(home / "runs") in finding["remedy"]
    free = TestClient(app.make_app(CONTEXT), base_url="http://127.0.0.1", headers={"Origin": "http://127.0.0.1"})
    assert free.get("/").status_code == 200
    assert free.post("/api/tensorboard").json() == {"url": "http://127.0.0.1:6006/", "message": ""}
    monkeypatch.setattr(places, "has_other_users", lambda: False)
    assert "url" in guarded.post("/api/tensorboard").json()


def test_gradios_queue_does_not_look_for_work_all_the_time() -> None:
    """It took 4 % of a core from a page that nobody watched. Gradio must still wait by this attribute."""
    assert page.build(CONTEXT)._queue.sleep_when_free >= 1
    assert "self.sleep_when_free" in inspect.getsource(Queue.start_processing)
