"""Starting what still waits, and stopping: only the process that wrote the state is ever signalled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import filelock
import psutil
import pytest

from limner import disk, jobs, launch, queue, runs
from limner.config import Config, files
from limner.runs import State


def test_a_recycled_pid_is_never_signalled() -> None:
    """A trainer that is just starting holds the lock, while the state still tells of an earlier one, whose pid is another's."""
    run = runs.create(Config())
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        run.write_state(State(status="stopped", pid=bystander.pid, process_started=1.0))
        with filelock.FileLock(run.path / "lock"):
            jobs.stop(run, now=True, grace_seconds=0.2)
        assert bystander.poll() is None
        assert run.take_requests() == ["stop-now"]
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize(("name", "copied"), [("a.txt", "prompts.txt"), ("b.TOML", "prompts.toml"), ("c.json", "prompts.json")])
def test_the_prompt_file_is_copied_under_its_ending(tmp_path: Path, name: str, copied: str) -> None:
    (tmp_path / name).write_text("content", encoding="utf-8")
    run = jobs.prepare(files.build({"sample": {"prompt_file": str(tmp_path / name)}}, {}))
    assert run.prompts == run.path / copied and (run.path / copied).read_text(encoding="utf-8") == "content"
    assert jobs.prepare(Config()).prompts is None


def test_stopping_what_is_over_asks_nothing() -> None:
    run = runs.create(Config())
    run.write_state(State(status="done", step=3, steps=3))
    assert jobs.stop(run).status == "done"
    assert run.take_requests() == []


def test_stopping_a_waiting_run_takes_it_out_of_the_queue() -> None:
    run = runs.create(Config())
    queue.enqueue(run)
    assert jobs.stop(run).status == "stopped"
    assert queue.waiting() == [] and run.take_requests() == []


def test_a_started_run_says_so_before_its_trainer_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """And goes on in a session of its own, its output in the log, what was there before kept."""
    words = [sys.executable, "-c", "import sys; print('hello'); sys.stdin.read(); print('bye')"]
    monkeypatch.setattr(launch, "argv", lambda *_: words)
    run = runs.create(Config())
    run.log.write_bytes(b"before\n")
    disk.write_json(run.path / "exit.json", {"code": 1, "pid": 1})
    run.write_state(State("waiting", step=4, steps=9))
    process = jobs.start(run, "cpu")
    assert process is not None
    state = State.read(run.path / "state.json")
    assert (state.status, state.pid, state.step, state.steps) == ("starting", process.pid, 4, 9)
    assert state.parent == os.getpid() and not (run.path / "exit.json").exists()
    assert abs(state.process_started - psutil.Process(process.pid).create_time()) < 1
    assert disk.read_json(run.path / "command.json")["argv"] == words
    assert process.wait(60) == 0 and run.log.read_bytes() == b"before\nhello\nbye\n"
    jobs.note_exit(run, process.pid, 0)
    assert (run.state().status, run.state().error) == ("failed", "the trainer ended with exit code 0")


@pytest.mark.parametrize("status", ["stopped", "done", "failed", "running"])
def test_only_a_new_or_waiting_run_is_started(status: runs.Status, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "spawn", lambda *words: pytest.fail("started"))
    run = runs.create(Config())
    run.write_state(State(status, pid=os.getpid(), process_started=psutil.Process().create_time()))
    assert jobs.start(run, "cpu") is None
    jobs.fail(run, "never said")
    assert (run.state().status, run.state().error) == (status, "")


def test_a_run_that_is_being_trained_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs.Run, "hold", lambda self: filelock.FileLock(self.path / "lock", timeout=0.1))
    run = runs.create(Config())
    with filelock.FileLock(run.path / "lock"):
        assert jobs.start(run, "cpu") is None
    assert run.state().status == "queued" and not (run.path / "command.json").exists()


def test_a_long_log_begins_anew_and_the_one_before_is_kept(tmp_path) -> None:
    log = tmp_path / "log.txt"
    log.write_bytes(b"x" * 11)
    jobs.rotate(log, 11)
    assert log.exists()
    jobs.rotate(log, 10)
    assert not log.exists() and (tmp_path / "log.1.txt").stat().st_size == 11


def test_a_log_that_is_written_to_is_shortened_under_its_writer(tmp_path):
    log = tmp_path / "log.txt"
    jobs.shorten(log)
    with log.open("ab", buffering=0) as file:  # as a trainer's output
        for number in range(1000):
            file.write(f"line {number}\n".encode())
            jobs.shorten(log, 1000)
            assert log.stat().st_size < 1020
    both = (tmp_path / "log.1.txt").read_text() + log.read_text()
    numbers = [int(line.split()[1]) for line in both.splitlines()]
    assert numbers == list(range(numbers[0], 1000)) and len(numbers) > 80, "the newest are all there, without a hole"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.1.txt", "log.txt"]
