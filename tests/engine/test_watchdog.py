"""The watchdog's judgement as scripts of time: it finds what hangs, and never what is slow, asleep, or compiled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from limner import disk, hung, runs
from limner.engine import together
from limner.engine.together import why
from limner.engine.watchdog import LEAST_SECONDS, Hang, Limits, Watchdog
from limner.hung import Silence
from limner.runs import LAUNCHER, Run, State

HOUR = 3600.0


class World:
    """A clock that moves when told, and a process that works or does not."""

    def __init__(self, folder: Path) -> None:
        self.now, self.cpu, self.moved = 1e6, 0.0, 0.0
        self.dog = Watchdog(Run(folder), clock=lambda: self.now, work=lambda: (self.cpu, self.moved))

    def passes(self, seconds: float, *, cpu: float = 0.0, moved: float = 0.0) -> Hang | None:
        """Time goes by while the watchdog looks; what it finds, and then no more time passes."""
        end = self.now + seconds
        while self.now < end:
            step = min(self.dog.tick, end - self.now)
            self.now, self.cpu, self.moved = self.now + step, self.cpu + cpu * step, self.moved + moved * step
            if (found := self.dog.look()) is not None:
                return found
        return None

    def steps(self, count: int, seconds: float) -> None:
        for _ in range(count):
            assert self.passes(seconds) is None
            self.dog.sign("step")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.delenv("LIMNER_HANG_SECONDS", raising=False)
    return World(tmp_path)


def test_limits_are_learnt_from_what_is_usual_and_from_the_longest() -> None:
    limits = Limits()
    assert {name: limits.of(name) for name in LEAST_SECONDS} == LEAST_SECONDS | {"a step": LEAST_SECONDS["the first step"]}
    for _ in range(9):
        limits.learn("a step", 5.0)
    assert limits.of("a step") == 120.0
    for _ in range(11):
        limits.learn("a step", 9.0)
    assert limits.of("a step") == 180.0, "20 times the median, 9 s"
    limits.learn("a step", 60.0)
    assert limits.of("a step") == 240.0, "4 times the longest"
    for _ in range(1000):
        limits.learn("a step", 0.1)
    assert limits.of("a step") == 120.0, "what is long past counts no more"


def test_a_step_that_hangs_is_found_at_its_limit_and_not_before(world: World) -> None:
    world.steps(30, 2.0)
    assert world.passes(119) is None
    found = world.passes(11)
    assert found is not None and (found.section, found.limit) == ("a step", 120.0) and 120 < found.seconds <= 130
    said = "It hung in a step after step 7: no sign of life for 125 s, where 120 s are the limit."
    assert Hang("a step", "training", 125.2, 120.0).words(7) == said


def test_slow_steps_are_no_hang(world: World) -> None:
    world.steps(5, 500.0 / 5)
    assert world.passes(20 * 100 - 5) is None
    assert world.passes(15) is not None


def test_computing_does_not_excuse_a_step(world: World) -> None:
    """On a GPU a process that waits for it spins."""
    world.steps(3, 1.0)
    found = world.passes(200, cpu=1.0)
    assert found is not None and found.seconds <= 130


def test_a_machine_that_slept_is_no_hang(world: World) -> None:
    world.steps(3, 1.0)
    for _ in range(8):
        world.now += 8 * HOUR  # nobody looked meanwhile
        assert world.dog.look() is None
    assert world.passes(60) is None
    world.dog.sign("step")
    assert world.passes(119) is None


def test_a_first_step_may_be_compiled_and_a_model_come_from_a_slow_disk(world: World) -> None:
    world.dog.sign("loading")
    assert world.passes(1.5 * HOUR, moved=1e6) is None, "it is read at 1 MB/s"
    world.dog.sign("training")
    assert world.passes(1.5 * HOUR, cpu=1.0) is None, "it is compiled"
    world.dog.sign("step")
    assert world.passes(1.5 * HOUR, cpu=1.0) is None, "it is as slow without"
    world.dog.sign("step")
    assert world.passes(29 * HOUR, cpu=1.0) is None and world.passes(2 * HOUR, cpu=1.0) is not None, "by then it is known"


def test_a_second_step_that_does_nothing_is_found(world: World) -> None:
    world.dog.sign("training")
    world.dog.sign("step")
    assert world.passes(599) is None and world.passes(11) is not None


@pytest.mark.parametrize("phase", ["loading", "caching", "training", "sampling", "validating", "saving"])
def test_what_does_nothing_at_all_is_found_in_every_section(world: World, phase: str) -> None:
    world.dog.sign(phase)
    least = LEAST_SECONDS[{"training": "the first step", "loading": "setup", "caching": "setup"}.get(phase, phase)]
    assert world.passes(least - 1, cpu=0.01, moved=1000.0) is None
    found = world.passes(11)
    assert found is not None and found.limit == least and found.phase == phase
    assert (f"in {phase}:" in found.words(3)) == (phase in ("loading", "caching"))


def test_what_loops_for_ever_is_found_too(world: World) -> None:
    world.dog.sign("caching")
    found = world.passes(3 * HOUR, cpu=1.0)
    assert found is not None and 5900 < found.seconds < 6100


def test_pictures_that_take_minutes_teach_how_long_the_next_may_take(world: World) -> None:
    world.dog.sign("sampling")
    for _ in range(3):
        assert world.passes(400) is None
        world.dog.sign("sampling")
    assert world.passes(7900) is None and world.passes(200) is not None


def test_back_to_loading_the_first_step_is_first_again(world: World) -> None:
    world.steps(3, 1.0)
    world.dog.sign("loading")
    world.dog.sign("training")
    assert world.passes(400) is None


def test_saving_between_steps_teaches_nothing_about_steps(world: World) -> None:
    world.steps(3, 1.0)
    world.dog.sign("saving")
    assert world.passes(1000) is None
    world.dog.sign("training")
    assert world.passes(130) is not None


def test_compiling_and_waiting_for_other_processes_are_expected(world: World) -> None:
    world.dog.expect(compiles=True, waits_seconds=1800)
    world.dog.sign("caching")
    assert world.passes(2300) is None
    world.steps(3, 1.0)
    assert world.passes(3500) is None and world.passes(200) is not None


def test_the_silence_of_a_watchdog_counts_while_somebody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIMNER_HANG_SECONDS", raising=False)
    now, run = [0.0], Run(tmp_path)
    silence = Silence(clock=lambda: now[0])

    def listen(seconds: float) -> bool:
        for _ in range(int(seconds / 0.5)):
            now[0] += 0.5
            if silence.is_too_long(run):
                return True
        return False

    assert not listen(5000), "of a trainer without a watchdog nothing is known"
    (tmp_path / hung.HEARTBEAT).touch()
    now[0] += 8 * HOUR
    assert not listen(599)
    (tmp_path / hung.HEARTBEAT).write_text("")
    assert not listen(599) and listen(5)


def test_a_run_goes_on_three_times(home: Path) -> None:
    (home / "runs" / "a").mkdir(parents=True)
    disk.write_json(runs.runner_sign(), {})
    run, state = Run(home / "runs" / "a"), State("running", "training", step=5, steps=9)
    for times in (1, 2, 3):
        state = hung.after(run, state, "It hung.")
        assert (state.status, state.hangs, state.step) == ("waiting", times, 5)
        assert state.error == f"It hung. It goes on from its newest training state ({times} of 3)."
    state = hung.after(run, state, "It hung.")
    assert (state.status, state.hangs) == ("failed", 4) and "not started again" in state.error
    assert [hung.pause(n) for n in (1, 2, 3)] == [10, 30, 90]


def test_a_run_that_was_to_stop_or_that_no_queue_knows_does_not_go_on(home: Path, tmp_path: Path) -> None:
    (home / "runs" / "a").mkdir(parents=True)
    run = runs.named("a")
    assert hung.after(run, State("running"), "It hung.").status == "failed", "there is no runner"
    disk.write_json(runs.runner_sign(), {})
    assert hung.after(run, State("running"), "It hung.", is_stopping=True).status == "failed"
    run.request("stop")
    assert hung.after(run, State("running"), "It hung.").status == "failed"
    assert run.take_requests() == ["stop"]
    assert hung.after(run, State("running"), "It hung.").status == "failed", "the trainer took it"
    run.drop_requests(before=4e9)
    assert hung.after(run, State("running"), "It hung.").status == "waiting"
    assert hung.after(Run(tmp_path), State("running"), "It hung.").status == "failed"


@dataclass
class Failure:
    """What torchrun knows of a process that failed."""

    timestamp: int
    exitcode: int
    error_file_data: dict[str, Any]


def told(code: int, *, is_echo: bool) -> dict[str, Any]:
    return {"message": {"message": "It hung in a step."}, "code": code, "is_echo": is_echo}


def test_of_several_processes_the_one_that_stood_still_is_named_and_the_run_goes_on() -> None:
    hung_rank = told(hung.EXIT_CODE, is_echo=True)
    both = {0: Failure(100, hung.EXIT_CODE, hung_rank), 1: Failure(115, -9, {})}
    assert why(both, 2) == ("process 2 of 2 gave no answer any more", hung.EXIT_CODE)
    both = {0: Failure(101, 1, told(1, is_echo=True)), 1: Failure(100, hung.EXIT_CODE, hung_rank)}
    assert why(both, 2) == ("process 2 of 2: It hung in a step.", hung.EXIT_CODE)
    both = {0: Failure(101, hung.EXIT_CODE, hung_rank), 1: Failure(100, 2, told(2, is_echo=False))}
    assert why(both, 2) == ("It hung in a step.", 2), "a cause comes before what followed from it"


def test_what_is_done_stays_done_whatever_becomes_of_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path)
    monkeypatch.setenv(LAUNCHER, "")
    monkeypatch.setattr(together.signal, "signal", lambda *_: None)
    for status, code in (("done", 0), ("running", hung.EXIT_CODE)):

        def launch(*_: object, status: Any = status) -> tuple[str, int]:
            run.write_state(State(status, step=9, steps=9))
            return "process 2 of 2: It hung on its way out", hung.EXIT_CODE

        monkeypatch.setattr(together, "_launch", launch)
        assert together.main([str(tmp_path), "0", "torch.distributed.run"]) == code
        assert State.read(tmp_path / "state.json").status == ("done" if status == "done" else "failed")
