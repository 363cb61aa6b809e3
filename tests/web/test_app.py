"""What the application does beside answering: it sees to it that what waits is started. And what it refuses as a whole."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from limner import queue, runner, runs
from limner.config import files
from limner.settings import Settings
from limner.web import app, gate, places, tensorboard
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
