"""What is true of a run is derived from its folder and the process table, whatever state they are in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from limner import disk, processes, runs
from limner.config import Config, Output
from limner.errors import UserError
from limner.runs import Run, State


@pytest.fixture
def run() -> Run:
    return runs.create(Config(output=Output(name="cat")))


def me() -> dict:
    return {"pid": os.getpid(), "process_started": psutil.Process().create_time()}


def dead() -> dict:
    """A process that has just ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    started = psutil.Process(process.pid).create_time()
    process.wait()
    return {"pid": process.pid, "process_started": started}


def test_a_new_run_is_whole(run: Run, home: Path) -> None:
    assert run.path.parent == home / "runs" and run.id.endswith("_cat")
    assert run.config() == Config(output=Output(name="cat"))
    assert run.state().status == "queued"
    assert {p.name for p in run.path.iterdir()} >= {"config.toml", "state.json", "samples", "checkpoints", "states", "control"}
    assert run.plan() == {} and run.tail() == "" and list(run.events()) == []


def test_two_starts_in_one_minute_get_two_folders() -> None:
    made = [runs.create(Config()) for _ in range(5)]
    assert len({r.path for r in made}) == 5
    assert {r.id for r in runs.all_runs()} == {r.id for r in made}


@pytest.mark.parametrize("name", ["../../x", "a/b", "", ".", "-rf", "x" * 300, "猫 🐈", "CON", "a\nb"])
def test_any_name_gives_a_folder_inside(name: str, home: Path) -> None:
    path = runs.create(Config(output=Output(name=name))).path
    assert path.parent == home / "runs" and path.is_dir() and "\n" not in path.name


@pytest.mark.parametrize("status", ["queued", "waiting", "done", "failed", "stopped"])
def test_a_run_that_is_not_live_is_what_it_says(run: Run, status: str) -> None:
    run.write_state(State(status=status, step=3, error="e", **dead()))  # type: ignore[arg-type]
    assert (run.state().status, run.state().step, run.state().error) == (status, 3, "e")


@pytest.mark.parametrize("status", runs.LIVE)
def test_a_live_run_is_alive_only_with_its_process(run: Run, status: runs.Status) -> None:
    run.write_state(State(status=status, **me()))
    assert run.state().status == status
    for gone in (dead(), {**me(), "process_started": time.time() - 9999}, {"pid": 0}, {"pid": -1}, {"pid": 2**70}):
        run.write_state(State(status=status, **gone))
        assert run.state().status == "failed"
        assert run.state().error == "the trainer is gone (killed, or the machine was restarted)"


@pytest.mark.skipif(os.name == "nt", reason="POSIX processes")
def test_a_zombie_is_dead() -> None:
    process = subprocess.Popen(["true"])
    started = psutil.Process(process.pid).create_time()
    until = time.time() + 5
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE and time.time() < until:
        time.sleep(0.01)
    assert not processes.is_alive(process.pid, started)
    process.wait()


@pytest.mark.parametrize(
    ("exit_file", "said"),
    [
        (
            {"code": -9, "pid": 99},
            "the trainer was killed (signal 9); if nobody did that, the computer ran out of memory",
        ),
        ({"code": 137, "pid": 99}, "the trainer ended with exit code 137, as a shell says of what was killed (signal 9)"),
        ({"code": -11, "pid": 99}, "the trainer crashed (signal 11)"),
        ({"code": 3, "pid": 98}, "the trainer ended with exit code 3"),
        ({"code": -9, "pid": 97}, "the trainer is gone"),
        ({"code": "x", "pid": 99}, "the trainer is gone"),
        ([], "the trainer is gone"),
    ],
)
def test_why_a_run_died(run: Run, exit_file: object, said: str) -> None:
    run.write_state(State(status="running", pid=99, process_started=1.0, parent=98))
    disk.write_json(run.path / "exit.json", exit_file)
    assert run.state().status == "failed" and run.state().error.startswith(said)


def test_a_full_disk_is_seen_by_whoever_looks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write_state(State(status="running", **dead()))
    monkeypatch.setattr("limner.disk.free_bytes", lambda path: 4096 if path == run.path else 1 << 30)
    said = f"the trainer is gone (killed, or the machine was restarted); the disk of {run.path} is full: free some space"
    assert run.state().error.startswith(said)


def test_an_own_word_about_the_end_comes_first(run: Run) -> None:
    run.write_state(State(status="running", error="out of memory", **dead()))
    assert run.state().error == "out of memory"


def test_a_run_that_ends_while_it_is_looked_at_has_not_failed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write_state(State(status="running", **me()))

    def ends(*_) -> bool:
        run.write_state(State(status="done", **me()))
        return False

    monkeypatch.setattr(processes, "is_alive", ends)
    assert run.state().status == "done"


DAMAGED = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"x"',
    b"\xff",
    b'{"unknown": 1}',
    b'{"status": null, "pid": "x", "step": [1], "progress": 3}',
]
DAMAGED += [b'{"progress": ["a", "b"], "process_started": "x", "updated": {}}', b'{"progress": [1, 2, 3]}']


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_state_has_failed_and_is_kept_aside_by_the_next_start(run: Run, content: bytes) -> None:
    (run.path / "state.json").write_bytes(content)
    state = run.state()
    assert (
        state.status == "failed"
        and "state.json is damaged" in state.error
        and replace(state, status="queued", error="") == State()
    )
    run.lay_out()
    (aside,) = run.path.glob("state.json.damaged-*")
    assert aside.read_bytes() == content and run.state() == State()


def test_members_of_other_kinds_are_as_in_a_new_state(run: Run) -> None:
    odd = {"status": "stopped", "phase": "x", "step": 10**30, "steps": 5, "pid": "7", "process_started": [], "error": 3}
    disk.write_json(run.path / "state.json", odd)
    assert run.state() == State("stopped", steps=5)


def test_a_state_of_another_run_is_not_believed_while_that_one_is_trained(run: Run) -> None:
    other = runs.create(Config(output=Output(name="other")))
    other.write_state(State("running", **me()))
    shutil.copy(other.path / "state.json", run.path / "state.json")
    assert other.state().status == "running" and other.state().worker == os.getpid()
    assert run.state().status == "failed" and "of another run" in run.state().error and run.state().worker is None
    other.write_state(State("done", step=3))
    shutil.copy(other.path / "state.json", run.path / "state.json")  # as in a folder that was given another name
    assert run.state().status == "done"


@pytest.mark.parametrize("jump", [365 * 86400.0, -365 * 86400.0])
def test_a_clock_that_is_set_changes_neither_who_lives_nor_how_long(
    run: Run, jump: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.write_state(replace(run.starting(os.getpid()), status="running"))
    run.event("start")
    true_time, true_boot = time.time, psutil.boot_time
    monkeypatch.setattr(time, "time", lambda: true_time() + jump)
    if sys.platform == "linux":  # whose kernel tells of starts by the clock that was set
        moved = true_boot() + jump
        monkeypatch.setattr(psutil, "boot_time", lambda: moved)
        monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: moved)
        assert abs(psutil.Process().create_time() - run.state().process_started) > 1e7
    assert run.state().status == "running" and run.state().worker == os.getpid()
    run.event("step", step=1)
    (first, _), (second, _) = run.events()
    assert 0 <= second["time"] - first["time"] < 60


def test_after_another_start_of_the_machine_a_recycled_pid_is_nobody(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    state = replace(run.starting(os.getpid()), status="running")
    run.write_state(replace(state, boot="another", process_started=state.process_started - 9999, booted=state.booted - 9999))
    assert run.state().status == "failed" and run.state().worker is None


def test_a_state_comes_back(run: Run) -> None:
    state = State("running", "training", (3, 9), 3, 9, error="ü", **me())
    before = time.time()
    run.write_state(state)
    assert run.state().updated >= before
    assert State(**{**run.state().__dict__, "updated": 0.0}) == state


def test_events_are_read_once_each_and_damaged_lines_passed_over(run: Run) -> None:
    run.event("start", step=0, name="ü\n")
    with (run.path / "events.jsonl").open("ab") as file:
        file.write(b"{half\n[1]\n\xff\xff\n\n" + b"[" * 100_000 + b'\n{"event": "step", "step": 1}\n{"event": "step", "st')
    found = list(run.events())
    assert [e["event"] for e, _ in found] == ["start", "step"] and found[0][0]["name"] == "ü\n"
    offset = found[-1][1]
    assert list(run.events(offset)) == []
    run.end_last_line()
    run.end_last_line()
    run.event("step", step=2)
    assert [e["step"] for e, _ in run.events(offset)] == [2]
    assert (run.path / "events.jsonl").read_bytes().count(b"\n\n") == 1
    with pytest.raises(ValueError, match="JSON"):
        run.event("step", loss=float("nan"))


def test_a_line_without_an_end_takes_no_memory(run: Run) -> None:
    run.event("start")
    with (run.path / "events.jsonl").open("ab") as file:
        file.truncate(100 << 20)
    tracemalloc.start()
    assert [e["event"] for e, _ in run.events()] == ["start"]
    run.end_last_line()
    run.event("step", step=2)
    assert [e["event"] for e, _ in run.events()] == ["start", "step"]
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()


def test_history_is_that_of_one_uninterrupted_run(run: Run) -> None:
    run.event("start", step=0)
    for step in range(1, 8):
        run.event("step", step=step, loss=step)
    run.event("resume", step=4)
    for step in range(5, 7):
        run.event("step", step=step, loss=step + 0.5)
    run.event("resume", step=5)
    run.event("step", step=6, loss=9)
    run.event("resume")  # damaged: from the start, then
    run.event("step", step=1, loss=1)
    told = [(e["event"], e.get("step")) for e in run.history()]
    assert told == [("start", 0), ("resume", None), ("step", 1)]
    path = run.path / "events.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))
    steps = [e for e in run.history() if e["event"] == "step"]
    assert [(e["step"], e["loss"]) for e in steps] == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5.5), (6, 9)]


def test_requests_are_taken_once(run: Run) -> None:
    for what in ("stop", "sample", "stop"):
        run.request(what)
    (run.path / "control" / "rm -rf").write_text("x")
    assert sorted(run.take_requests()) == ["sample", "stop"]
    assert run.take_requests() == []
    run.request("save")
    run.drop_requests(before=time.time() - 60)  # asked of the trainer that is starting now
    assert run.take_requests() == ["save"]
    run.request("save")
    run.drop_requests(before=time.time() + 60)  # asked of an earlier one
    assert run.take_requests() == []
    shutil.rmtree(run.path / "control")
    assert run.take_requests() == []
    run.request("stop-now")
    assert run.take_requests() == ["stop-now"]
    with pytest.raises(AssertionError):
        run.request("../x")


def test_the_tail_of_a_log(run: Run) -> None:
    run.log.write_bytes(b"x" * 9000 + "ü end".encode())
    assert run.tail(6) == "ü end" and len(run.tail()) == 3999


def test_finding_a_run(home: Path) -> None:
    for name in ("2026-01-01_0900_cat", "2026-01-01_0901_cat", "2026-01-02_0900_dog", "cat"):
        (home / "runs" / name).mkdir(parents=True)
        (home / "runs" / name / "config.toml").write_text("")
        time.sleep(0.01)
    (home / "runs" / "no run").mkdir()
    (home / "runs" / "file").write_text("")
    assert [r.id for r in runs.all_runs()] == ["2026-01-01_0900_cat", "2026-01-01_0901_cat", "2026-01-02_0900_dog", "cat"]
    assert runs.find("dog").id == runs.find("2026-01-02").id == "2026-01-02_0900_dog"
    assert runs.find("cat").id == runs.find("last").id == "cat"
    for name, said in (
        ("2026-01-01", "names 2 runs"),
        ("", "names 4 runs"),
        ("bird", "names no run"),
        ("../runs/cat", "names no run"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            runs.find(name)
        assert caught.value.findings[0].remedy


def test_finding_among_none() -> None:
    assert runs.all_runs() == []
    for name in ("last", "x"):
        with pytest.raises(UserError, match="names no run"):
            runs.find(name)


def test_deleting_moves_to_the_trash_and_spares_the_living(run: Run, home: Path) -> None:
    run.write_state(State(status="running", **me()))
    with pytest.raises(UserError, match="is running"):
        runs.delete(run)
    run.write_state(State(status="running", **dead()))
    first = runs.delete(run)
    assert first == home / "trash" / run.id and (first / "config.toml").exists() and not run.path.exists()
    runs.create(Config(output=Output(name="cat"))).path.rename(run.path)
    assert runs.delete(run) != first and len(list((home / "trash").iterdir())) == 2


def test_a_damaged_config_is_a_users_matter(run: Run) -> None:
    (run.path / "config.toml").write_text("[train]\nsteps = 'x'\n")
    with pytest.raises(UserError, match=r"train\.steps"):
        run.config()
    (run.path / "plan.json").write_text(json.dumps([1]))
    assert run.plan() == {}
