"""The runner's logic as scripts of events, without time or processes; then the real one, killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

import tiny_runner
from limner import disk, jobs, processes, progress, queue, runner, runs
from limner.config import Config, Launch, Output
from limner.errors import Finding, wrong
from limner.machine import NoAnswer
from limner.runner import Runner
from limner.runs import Run, State
from limner.web import run_facts
from limner.web.curves import CurvesOfRuns


class World:
    """Trainers that live and die as the script says, and a clock that stands still."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.pid = 0.0, 1000
        self.codes: dict[int, int | None] = {}
        self.started: list[tuple[str, str]] = []
        self.said: list[str] = []
        self.refuse: Exception | None = None
        monkeypatch.setattr(processes, "is_alive", lambda pid, started: pid in self.codes and self.codes[pid] is None)
        self.runner = self.new_runner()

    def new_runner(self) -> Runner:
        return Runner(clock=lambda: self.now, spawn=self.spawn, say=self.said.append)

    def trainer(self, run: Run) -> int:
        """A trainer begins, whoever started it; returns its pid."""
        self.pid += 1
        self.codes[self.pid] = None
        run.write_state(State("running", pid=self.pid))
        return self.pid

    def spawn(self, run: Run, device: str):
        if self.refuse is not None:
            raise self.refuse
        self.started.append((run.id, device))
        pid = self.trainer(run)

        class Process:
            def poll(process) -> int | None:
                return self.codes[pid]

        process = Process()
        process.pid = pid  # type: ignore[attr-defined]
        return process

    def end(self, run: Run, code: int = 0, status: runs.Status | None = "done") -> None:
        """A trainer ends: with a last word, or (None) without."""
        state = State.read(run.path / "state.json")
        self.codes[state.pid] = code
        if status is not None:
            run.write_state(replace(state, status=status))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def enqueued(name: str, device: str = "cpu") -> Run:
    run = runs.create(Config(output=Output(name=name), launch=Launch(device=device)))  # type: ignore[arg-type]
    queue.enqueue(run)
    return run


def exit_of(run: Run) -> object:
    ended = disk.read_json(run.path / "exit.json")
    return (ended["pid"], ended["code"]) if ended else None


def test_an_empty_queue_is_left(world: World) -> None:
    assert world.runner.tick() is False and world.started == []


def test_one_at_a_time_in_order_and_then_it_leaves(world: World) -> None:
    made = [enqueued(name) for name in ("c", "a", "b")]
    for number, run in enumerate(made):
        assert world.runner.tick() and world.runner.tick()
        assert world.started == [(r.id, "cpu") for r in made[: number + 1]]
        assert queue.waiting() == [r.id for r in made[number + 1 :]]
        world.now += 7
        world.end(run)
    assert world.runner.tick() is False
    assert [exit_of(run) for run in made] == [(1001, 0), (1002, 0), (1003, 0)]
    assert world.said[-1] == f"{made[2].id} ended after 7 s: done"


def test_devices_do_not_wait_for_one_another(world: World) -> None:
    a, b, c, d = enqueued("a"), enqueued("b"), enqueued("c", "cuda"), enqueued("d", "cuda")
    world.runner.tick()
    assert world.started == [(a.id, "cpu"), (c.id, "cuda")]
    world.end(c)
    world.runner.tick()
    assert world.started[2:] == [(d.id, "cuda")] and queue.waiting() == [b.id]


def test_the_machine_names_the_device_that_is_not_given(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    best = type("Best", (), {"best": lambda self: type("Device", (), {"kind": "mps"})})()
    monkeypatch.setattr(runner.machine, "describe", lambda home: best)
    run = runs.create(Config())
    queue.enqueue(run)
    world.runner.tick()
    assert world.started == [(run.id, "mps")]


def test_runs_wait_in_words_until_the_machine_answers(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, remarks = True, lambda run: run_facts.full(run, overview.brief(run), curves)["warnings"]
    curves = CurvesOfRuns()
    overview = run_facts.Overview(curves)

    def describe(home: Path) -> object:
        if broken:
            raise NoAnswer([Finding("torch", "gives no answer in two minutes.", "Install it again.")])
        return type("Best", (), {"best": lambda self: type("Device", (), {"kind": "cpu"})})()

    monkeypatch.setattr(runner.machine, "describe", describe)
    here, a, b = enqueued("here"), runs.create(Config()), runs.create(Config())
    queue.enqueue(a)
    queue.enqueue(b)
    for _ in range(3):
        assert world.runner.tick()
    assert world.started == [(here.id, "cpu")] and queue.waiting() == [a.id, b.id]
    reason = "torch gives no answer in two minutes. Install it again."
    assert (a.state().status, a.state().error, b.state().error) == ("waiting", reason, reason)
    assert remarks(b) == [reason] and progress.why_waiting(b) == f"waiting: {reason}"
    assert [words for words in world.said if "no answer" in words] == [f"runs wait: {reason}"]

    broken = False
    assert world.runner.tick() and queue.waiting() == [a.id, b.id]
    assert b.state().error == "" and remarks(b) == []
    assert progress.why_waiting(b) == f"waiting for {here.id} to finish on cpu"
    world.end(here)
    world.runner.tick()
    assert world.started[-1] == (a.id, "cpu") and a.state().error == ""


def test_a_run_that_waited_for_the_machine_leaves_the_queue_without_a_fault(world: World) -> None:
    run = enqueued("a")
    jobs.explain(run, "torch gives no answer.")
    assert queue.remove(run) and (run.state().status, run.state().error) == ("stopped", "")
    jobs.explain(run, "torch gives no answer.")
    assert run.state().error == "", "it does not wait"


@pytest.mark.parametrize(
    ("code", "said"), [(-9, "the trainer was killed (signal 9)"), (3, "the trainer ended with exit code 3")]
)
def test_a_trainer_that_ends_without_a_word_has_failed_and_the_next_starts(world: World, code: int, said: str) -> None:
    a, b = enqueued("a"), enqueued("b")
    world.runner.tick()
    world.end(a, code, None)
    world.runner.tick()
    assert a.state().status == "failed" and a.state().error.startswith(said)
    assert world.started[-1][0] == b.id


def test_what_cannot_be_started_fails_in_words_and_stops_nobody(world: World) -> None:
    a, b = enqueued("a"), enqueued("b")
    (a.path / "config.toml").write_text("[train]\nsteps = 'x'\n")
    assert world.runner.tick()
    assert a.state().status == "failed" and "train.steps" in a.state().error
    assert world.started == [(b.id, "cpu")]
    world.end(b)
    for error in (wrong("torch", "is broken."), OSError(28, "No space left on device")):
        world.refuse, run = error, enqueued("c")
        world.runner.tick()
        assert run.state().status == "failed" and str(error) in run.state().error
    assert world.runner.tick() is False


def test_a_full_disk_is_said_once_and_the_run_still_waits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    run = enqueued("a")
    world.refuse = OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "fail", lambda run, reason: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert world.runner.tick() and world.runner.tick() and world.runner.tick()
    assert len([words for words in world.said if "No space" in words]) == 1
    world.refuse = None
    world.runner.tick()
    assert world.started == [(run.id, "cpu")]


def test_a_run_taken_out_in_time_is_not_started(world: World) -> None:
    a, b = enqueued("a"), enqueued("b")
    assert queue.remove(a)
    world.runner.tick()
    assert world.started == [(b.id, "cpu")]
    assert not queue.remove(b)


def test_a_new_order_counts_at_once(world: World) -> None:
    a, b, c = enqueued("a"), enqueued("b"), enqueued("c")
    world.runner.tick()
    queue.reorder([c.id, b.id])
    world.end(a)
    world.runner.tick()
    assert world.started[-1][0] == c.id


def test_a_trainer_of_a_killed_runner_is_adopted_and_its_end_recorded_as_gone(world: World) -> None:
    a, b = enqueued("a"), enqueued("b")
    world.runner.tick()
    heir = world.new_runner()
    assert heir.tick() and heir.tick() and len(world.started) == 1, "the device is busy"
    world.end(a, -9, None)
    assert heir.tick()
    assert exit_of(a) == (1001, None)
    assert (a.state().status, a.state().error) == ("failed", "the trainer is gone (killed, or the machine was restarted)")
    assert world.started[-1][0] == b.id
    world.end(b)
    assert heir.tick() is False


def test_an_adopted_trainer_that_said_how_it_ended_is_believed(world: World) -> None:
    a = enqueued("a")
    world.runner.tick()
    heir = world.new_runner()
    world.end(a, 0, "stopped")
    assert heir.tick() is False
    assert a.state().status == "stopped" and exit_of(a) is None


def test_a_trainer_started_by_hand_is_waited_for(world: World) -> None:
    other = runs.create(Config(launch=Launch(device="cpu")))
    world.trainer(other)
    a = enqueued("a")
    assert world.runner.tick() and world.started == []
    world.end(other)
    world.runner.tick()
    assert world.started == [(a.id, "cpu")]


def test_a_launcher_that_dies_leaves_its_device_busy_as_long_as_its_trainers_live(world: World) -> None:
    a, b = enqueued("a"), enqueued("b")
    world.runner.tick()
    launcher = State.read(a.path / "state.json").pid
    child = world.trainer(a)
    world.codes[launcher] = -9
    assert world.runner.tick() and len(world.started) == 1
    world.codes[child] = -15
    world.runner.tick()
    assert a.state().status == "failed" and world.started[-1][0] == b.id


def test_a_run_left_outside_by_a_killed_enqueuer_is_found(world: World) -> None:
    run = runs.create(Config(launch=Launch(device="cpu")))
    run.write_state(State("waiting"))
    assert world.runner.tick() is False
    world.new_runner().tick()
    assert world.started == [(run.id, "cpu")]


# --- real processes -----------------------------------------------------------------------------------------------------


def wait(condition: Callable[[], object], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def runner_pid(home: Path) -> int:
    """The runner of this home: the process that leads the trainers' parent."""
    mine = [p for p in psutil.process_iter(["cmdline"]) if tiny_runner.__file__ in (p.info["cmdline"] or [])]
    (found,) = [p.pid for p in mine if p.environ().get("LIMNER_HOME") == str(home)]
    return found


def gone(home: Path) -> bool:
    with runs.lock("runner", 60):
        return True


def start() -> None:
    runner.ensure_runner(tiny_runner.WORDS)


@pytest.fixture(autouse=True)
def paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


@pytest.mark.slow
def test_ten_runs_unattended_and_one_that_fails(home: Path) -> None:
    made = [enqueued(name) for name in ("a", "fail", *"bcdefghi")]
    start()
    start()
    wait(lambda: all(run.state().status in ("done", "failed") and exit_of(run) for run in made))
    assert tiny_runner.lines(home, "started.txt") == [run.id for run in made]
    assert [run.state().status for run in made] == ["done", "failed", *["done"] * 8]
    assert made[1].state().error == "the trainer ended with exit code 3"
    assert gone(home) and "ended after" in (home / "runner.log").read_text()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_killing_the_runner_hurts_nobody_and_killing_the_trainer_shows(home: Path) -> None:
    first, second, third = enqueued("hang1"), enqueued("hang2"), enqueued("c")
    start()
    wait(lambda: first.state().status == "running")
    trainer, pid = first.state(), runner_pid(home)
    assert os.getsid(pid) == pid and os.getsid(trainer.pid) == trainer.pid, "each leads a session of its own"
    os.kill(pid, signal.SIGKILL)
    wait(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    start()
    wait(lambda: "is being trained on cpu already" in (home / "runner.log").read_text())
    assert first.state() == trainer and queue.waiting() == [second.id, third.id]
    assert jobs.stop(first).status == "stopped"
    wait(lambda: second.state().status == "running")
    killed = time.monotonic()
    os.kill(second.state().pid, signal.SIGKILL)
    wait(lambda: second.state().status == "failed" and exit_of(second), 60)
    print(f"known after {time.monotonic() - killed:.2f} s")
    assert second.state().error.startswith("the trainer was killed (signal 9); ")
    wait(lambda: third.state().status == "done")
    assert tiny_runner.lines(home, "started.txt") == [first.id, second.id, third.id]
    assert gone(home)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_the_runner_outlives_whoever_started_it(home: Path) -> None:
    """Its parent's whole process group is killed, as a closing terminal does."""
    run = enqueued("hang")
    code = f"import time; from limner import runner; runner.ensure_runner({tiny_runner.WORDS!r}); time.sleep(600)"
    parent = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    wait(lambda: run.state().status == "running")
    os.killpg(parent.pid, signal.SIGKILL)
    parent.wait()
    other = enqueued("b")
    assert jobs.stop(run).status == "stopped"
    wait(lambda: other.state().status == "done")
    assert gone(home)


@pytest.mark.slow
def test_a_runner_that_is_early_waits_for_a_run(home: Path) -> None:
    runner.ensure_runner(tiny_runner.WORDS, is_early=True)
    runner.ensure_runner(tiny_runner.WORDS)  # which knows of the other, though it may not have its lock yet
    wait((home / "runner.json").exists)
    pid = runner_pid(home)
    time.sleep(1)
    run, began = enqueued("a"), time.monotonic()
    wait(lambda: run.state().status == "done")
    print(f"done after {time.monotonic() - began:.2f} s")
    assert runner_pid(home) == pid and gone(home)


@pytest.mark.slow
def test_a_runner_that_is_early_leaves_with_who_started_it(home: Path) -> None:
    starter = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    early = subprocess.Popen([sys.executable, "-m", "limner.runner", str(starter.pid)])
    wait((home / "runner.json").exists)
    time.sleep(0.5)
    assert early.poll() is None
    starter.communicate(b"\n")
    assert early.wait(5) == 0 and gone(home)


def test_the_log_stays_small(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_LOG_BYTES", 1000)
    home.mkdir()
    for number in range(200):
        runner.say(f"words, number {number}")
    assert sorted(p.name for p in home.iterdir()) == ["runner.1.log", "runner.log"]
    assert all(p.stat().st_size < 1100 for p in home.iterdir())
    assert "number 199" in (home / "runner.log").read_text()


def test_the_runner_imports_no_torch() -> None:
    code = "import sys, limner.runner, limner.progress; assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 0
