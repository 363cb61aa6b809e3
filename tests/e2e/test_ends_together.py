"""Several processes under their real launcher: one that is killed or hangs ends all, with a reason; they may begin again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from limner import disk, jobs, launch, queue
from limner.runs import LIVE, Run
from trainer import config, losses, new_run, train

pytestmark = pytest.mark.slow


@pytest.fixture
def start(monkeypatch) -> Iterator[Callable[[Run], subprocess.Popen]]:
    """Start a run as the queue does; whatever it left is ended behind the test."""
    started = []

    def begin(run: Run) -> subprocess.Popen:
        process = jobs.start(run, "cpu")
        assert process is not None
        started.append(process)
        return process

    yield begin
    for process in started:
        jobs.kill(process.pid)
        process.wait(30)


def workers(launcher: int) -> list[psutil.Process]:
    """The trainers that a launcher started, by rank."""
    found = [p for p in psutil.Process(launcher).children(recursive=True) if "limner.engine" in p.cmdline()]
    return sorted(found, key=lambda p: int(p.environ()["RANK"]))


def at_step(run: Run, step: int, process: subprocess.Popen) -> None:
    until = time.monotonic() + 240
    while run.state().step < step:
        assert process.poll() is None and time.monotonic() < until, run.tail(20_000)
        time.sleep(0.05)


def endless(model: Path, pictures: Path, **launched) -> Run:
    launched = {"num_processes": 2, **launched}
    return new_run(config(model, pictures, launch=launched, train={"steps": 100_000}, output={"state_every_steps": 2}))


def is_whole(run: Run) -> bool:
    return all(not disk.manifest_faults(p) for p in run.states.iterdir() if "tmp" not in p.name)


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_all(rank, tiny_model, pictures, start):
    run = endless(tiny_model, pictures)
    process = start(run)
    at_step(run, 3, process)
    both = workers(process.pid)
    since = time.monotonic()
    both[rank].kill()
    assert process.wait(60) == 1
    took = time.monotonic() - since
    assert took < 30
    state = run.state()
    assert (state.status, state.error) == ("failed", f"process {rank + 1} of 2 was killed (signal 9)")
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in both)
    assert not run.is_locked() and is_whole(run)
    stop = next(e for e, _ in run.events() if e["event"] == "stop")
    assert stop["error"] == state.error
    if rank == 0:
        assert "[process 2 of 2] Traceback" in run.tail(100_000)


@pytest.mark.long
def test_a_process_that_hangs_is_noticed(tiny_model, pictures, start):
    run = endless(tiny_model, pictures, timeout_seconds=10)
    process = start(run)
    at_step(run, 3, process)
    both = workers(process.pid)
    both[1].suspend()
    assert process.wait(90) == 1
    assert run.state().error == "process 2 of 2 gave no answer any more"
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in both)
    assert not run.is_locked() and is_whole(run)


@pytest.mark.long
def test_a_run_begins_again_from_its_newest_state(tiny_model, pictures, start):
    sections = {"train": {"steps": 100}, "output": {"state_every_steps": 10}}
    run = new_run(config(tiny_model, pictures, launch={"num_processes": 2, "restarts": 2}, **sections))
    process = start(run)
    at_step(run, 11, process)
    workers(process.pid)[1].kill()
    seen = set[str]()
    while process.poll() is None:
        seen.add(run.state().status)
        time.sleep(0.05)
    assert process.wait(1) == 0 and run.state().status == "done", run.tail(20_000)
    assert seen <= {*LIVE, "done"}, "who follows it never sees it end in between"
    said = [e["message"] for e, _ in run.events() if e["event"] == "warning"]
    assert said == ["process 2 of 2 was killed (signal 9); the run is started again (1 of 2)"]
    resumed = [e["step"] for e, _ in run.events() if e["event"] == "resume"]
    assert len(resumed) == 1 and resumed[0] >= 10 and resumed[0] % 10 == 0
    one = new_run(config(tiny_model, pictures, **{**sections, "train": {"steps": 100, "accumulation": 2}}))
    assert train(one) == 0
    assert losses(run)[:50] == pytest.approx(losses(one)[:50], rel=1e-4)
    assert len(losses(run)) == 100


@pytest.mark.long
def test_what_the_user_is_to_mend_is_not_tried_again(tiny_model, pictures, start):
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    run = new_run(config(tiny_model, pictures, launch={"num_processes": 2, "restarts": 3}))
    process = start(run)
    assert process.wait(120) == 2
    state = run.state()
    assert state.status == "failed" and "broken.png" in state.error
    assert [e["event"] for e, _ in run.events() if e["event"] == "warning"] == []


@pytest.mark.long
def test_accelerates_launcher_is_looked_after_alike(tiny_model, pictures):
    # it starts several processes where it takes the machine for one of several GPUs; those train on the CPU all the same
    run = new_run(config(tiny_model, pictures, launch={"num_processes": 2}, train={"steps": 3}))
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    words = launch.argv(run.config(), run.path, "cuda")
    assert "accelerate.commands.launch" in words
    for code, status in ((2, "failed"), (0, "done")):
        assert jobs.spawn(words, run.log, launch.environment(run.config(), "cpu")).wait(240) == code, run.tail(20_000)
        assert run.state().status == status
        assert ("broken.png" in run.state().error) == bool(code)
        (pictures / "broken.png").unlink(missing_ok=True)
    assert run.plan()["num_processes"] == 2 and len(losses(run)) == 3


@pytest.mark.long
def test_a_signal_to_the_launcher_stops_all_with_their_state_saved(tiny_model, pictures, start):
    run = endless(tiny_model, pictures)
    process = start(run)
    at_step(run, 2, process)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) == 143, run.tail(20_000)
    state = run.state()
    assert state.status == "stopped"
    newest = sorted(p.name for p in run.states.iterdir())[-1]
    assert int(newest[5:]) == state.step and is_whole(run)
    queue.set_processes(run, 1)
    assert launch.argv(run.config(), run.path, "cpu") == [sys.executable, "-m", "limner.engine", str(run.path)]
