"""The queue's order: kept, complete and repaired, whatever happened to the file or to those who wrote it."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

import filelock
import psutil
import pytest

from at_once import together
from limner import queue, runs
from limner.config import Config, Output
from limner.errors import UserError
from limner.runs import Run, State
from tiny_runner import lines


def new(name: str = "cat") -> Run:
    return runs.create(Config(output=Output(name=name)))


def enqueued(*names: str) -> list[Run]:
    made = [new(name) for name in names]
    for run in made:
        queue.enqueue(run)
    return made


def damaged(home: Path) -> list[str]:
    return sorted(p.name for p in home.glob("queue.sqlite.damaged-*") if not p.name.endswith(("-wal", "-shm")))


def test_runs_wait_in_the_order_they_came(home: Path) -> None:
    assert queue.waiting() == []
    made = enqueued("c", "a", "b")
    assert queue.waiting() == [r.id for r in made]
    assert [r.state().status for r in made] == ["waiting"] * 3
    connection = sqlite3.connect(home / "queue.sqlite")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    assert damaged(home) == []


@pytest.mark.parametrize("status", ["stopped", "failed", "queued"])
def test_what_stands_still_can_be_enqueued_and_keeps_its_steps(status: runs.Status) -> None:
    run = new()
    run.write_state(State(status, phase="saving", step=3, steps=9, pid=77, process_started=5.0, error="e"))
    run.request("stop")  # asked of the trainer that is gone
    queue.enqueue(run)
    state = run.state()
    assert (state.status, state.phase, state.step, state.steps, state.pid, state.error) == ("waiting", "", 3, 9, 0, "")
    assert run.take_requests() == []
    assert queue.waiting() == [run.id]


def test_what_cannot_be_enqueued_is_refused_in_words() -> None:
    run = new()
    queue.enqueue(run)
    with pytest.raises(UserError, match="in the queue already"):
        queue.enqueue(run)
    assert queue.waiting() == [run.id]
    me = {"pid": os.getpid(), "process_started": psutil.Process().create_time()}
    for status, said in (("running", "is running"), ("starting", "is running"), ("done", "Start a new run to train longer")):
        run.write_state(State(status, **me))  # type: ignore[arg-type]
        with pytest.raises(UserError, match=said):
            queue.enqueue(run)
        assert run.state().status == status and queue.waiting() == []


def test_a_run_whose_trainer_has_only_its_lock_is_running(monkeypatch: pytest.MonkeyPatch) -> None:
    run = new()
    monkeypatch.setattr(Run, "hold", lambda self: filelock.FileLock(self.path / "lock", timeout=0.1))
    with filelock.FileLock(run.path / "lock"), pytest.raises(UserError, match="is running"):
        queue.enqueue(run)
    assert run.state().status == "queued" and queue.waiting() == []


def test_a_run_taken_out_is_stopped_and_comes_back_last() -> None:
    a, b, c = enqueued("a", "b", "c")
    assert queue.remove(b) and not queue.remove(b)
    assert queue.waiting() == [a.id, c.id] and b.state().status == "stopped"
    assert not queue.remove(new("d"))
    queue.enqueue(b)
    assert queue.waiting() == [a.id, c.id, b.id]


def test_a_started_run_is_not_taken_out() -> None:
    a, b = enqueued("a", "b")
    a.write_state(a.starting(os.getpid()))
    assert queue.waiting() == [b.id]
    assert not queue.remove(a) and a.state().status == "starting"
    a.write_state(State("stopped", step=1, steps=2, pid=1))
    queue.enqueue(a)
    assert queue.waiting() == [b.id, a.id], "its old place counts no more"


def test_a_run_that_is_being_started_is_not_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = enqueued("a")
    monkeypatch.setattr(Run, "hold", lambda self: filelock.FileLock(self.path / "lock", timeout=0.1))
    with filelock.FileLock(run.path / "lock"):
        assert not queue.remove(run)
    assert run.state().status == "waiting" and queue.remove(run)


def test_reordering_passes_over_the_unknown_and_forgets_nobody() -> None:
    a, b, c, d = enqueued("a", "b", "c", "d")
    a.write_state(State("done"))
    queue.reorder([d.id, "no such run", a.id, d.id, "../x", c.id])
    assert queue.waiting() == [d.id, c.id, b.id]
    (e,) = enqueued("e")
    assert queue.waiting() == [d.id, c.id, b.id, e.id]
    queue.reorder([])
    assert queue.waiting() == [d.id, c.id, b.id, e.id]


def test_a_waiting_run_is_not_deleted_before_it_is_stopped() -> None:
    (run,) = enqueued("a")
    with pytest.raises(UserError, match="waiting in the queue"):
        runs.delete(run)
    assert queue.remove(run)
    runs.delete(run)
    assert queue.waiting() == []


def test_a_row_without_a_folder_means_nothing() -> None:
    a, b = enqueued("a", "b")
    a.path.rename(a.path.with_name("elsewhere"))
    assert queue.waiting() == [b.id]


def other_table(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE queue (something TEXT)")
    connection.commit()
    connection.close()


def overwritten(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100:] = b"\xa5" * (len(content) - 100)
    path.write_bytes(content)


DAMAGES = {
    "garbage": lambda path: path.write_bytes(b"\x00garbage" * 999),
    "text": lambda path: path.write_text("x" * 5000),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "overwritten": overwritten,
    "another table": other_table,
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_file_is_set_aside_and_rebuilt_from_the_folders(kind: str, home: Path) -> None:
    made = []
    for name in "cab":
        made += enqueued(name)
        time.sleep(0.02)
    DAMAGES[kind](home / "queue.sqlite")
    before = (home / "queue.sqlite").read_bytes()
    assert queue.waiting() == [r.id for r in made], "in the order they came"
    (aside,) = damaged(home)
    assert (home / aside).read_bytes()[100:] == before[100:]  # but for the header, which says that it was opened
    made += enqueued("d")
    assert queue.waiting() == [r.id for r in made] and len(damaged(home)) == 1


@pytest.mark.parametrize("content", [None, b"", b"x"])
def test_a_lost_file_is_rebuilt(content: bytes | None, home: Path) -> None:
    a, b = enqueued("b", "a")
    (home / "queue.sqlite").unlink()
    if content is not None:
        (home / "queue.sqlite").write_bytes(content)
    assert queue.waiting() == [a.id, b.id] and damaged(home) == []


def test_a_run_that_was_enqueued_by_halves_is_repaired() -> None:
    """Whoever enqueued it was killed between its state and its row."""
    (first,) = enqueued("b")
    lost = new("a")
    lost.write_state(State("waiting"))
    assert queue.waiting() == [first.id]
    assert queue.repair() == [lost.id] and queue.repair() == []
    assert queue.waiting() == [first.id, lost.id]
    other = new("c")
    other.write_state(State("waiting"))
    assert queue.remove(other) and other.state().status == "stopped"


def test_a_folder_in_its_place_is_set_aside(home: Path) -> None:
    a, b = enqueued("b", "a")
    for end in ("", "-wal"):
        (home / f"queue.sqlite{end}").unlink(missing_ok=True)
        (home / f"queue.sqlite{end}").mkdir()
        assert queue.waiting() == [a.id, b.id]
    assert len(list(home.glob("queue.sqlite.damaged-*"))) == 3, "the folder; later the other folder, and the file beside it"


def test_a_file_that_cannot_be_used_is_said_in_words(home: Path) -> None:
    enqueued("a")
    (home / "queue.sqlite").unlink()
    (home / "queue.sqlite").symlink_to(home / "not there" / "queue.sqlite")
    with pytest.raises(UserError, match=r"queue\.sqlite.*cannot be used"):
        queue.waiting()
    assert (home / "queue.sqlite").is_symlink()


@pytest.mark.long
@pytest.mark.slow
def test_twenty_processes_at_one_barrier(home: Path) -> None:
    """Nothing is lost, nothing started twice, two never at once, and each process's own order is kept."""
    count = 20
    made = together("starts", count, 2)
    every = [name for names in made for name in names]
    until = time.monotonic() + 240
    while any(runs.named(name).state().status != "done" for name in every) and time.monotonic() < until:
        time.sleep(0.2)
    order = lines(home, "started.txt")
    assert sorted(order) == sorted(every) and len(set(every)) == 2 * count
    for first, second in made:
        assert order.index(first) < order.index(second)
    busy = lines(home, "busy.txt")
    assert busy == [sign + name for name in order for sign in "+-"], "one at a time"
    assert queue.waiting() == []
    with runs.lock("runner", 60):
        pass  # it has left
