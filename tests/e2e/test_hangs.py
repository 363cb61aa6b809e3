"""A trainer that hangs is found, its stacks are in the log, and the run goes on by itself to the same result."""

from __future__ import annotations

import os
import shutil
import time

import pytest

import hanging
from limner import disk, hung, processes, runs
from trainer import Moment, config, new_run, result, train

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="POSIX pipes and signals")]


def options(**more):
    """Pictures are read at every step."""
    return {"memory": {"cache_latents": False}, "train": {"steps": 60}, "output": {"state_every_steps": 5}, **more}


def ended(run) -> bool:
    return run.state().status in ("done", "failed", "stopped")


@pytest.mark.long
@pytest.mark.usefixtures("forks")
def test_pictures_that_do_not_answer_and_then_do(tiny_model, pictures, monkeypatch):
    plain = new_run(config(tiny_model, pictures, **options()))
    assert train(plain) == 0
    monkeypatch.setenv(hanging.SECONDS, "3")
    run = new_run(config(tiny_model, pictures, **options()))
    hanging.begin(run)
    answer = hanging.stop_answering(pictures / "p0.png")
    took = hanging.wait(lambda: run.state().status == "waiting", what=run.tail)
    answer()
    assert run.state().hangs == 1 and "It hung in a step after step" in run.state().error
    hanging.wait(lambda: ended(run), what=run.tail)
    print(f"found after {took:.1f} s, where 3 s are the limit")
    assert run.state().status == "done", run.state().error
    log = run.log.read_text()
    assert "The stacks of all its threads:" in log and "images.py" in log, log[-3000:]
    (said,) = hanging.warnings(run)
    assert said.endswith("It goes on from its newest training state (1 of 3).")
    assert result(run) == result(plain)


@pytest.mark.long
@pytest.mark.usefixtures("forks")
def test_a_trainer_that_stands_still_as_a_whole(tiny_model, pictures, monkeypatch):
    monkeypatch.setenv(hanging.SECONDS, "4")
    run = new_run(config(tiny_model, pictures, **options(train={"steps": 150})))
    hanging.begin(run)
    pid, started, began = run.state().pid, run.state().process_started, time.monotonic()
    hanging.freeze(run)
    hanging.wait(lambda: run.state().status == "waiting", what=run.tail)
    print(f"found after {time.monotonic() - began:.1f} s, where 4 s are the limit")
    hanging.wait(lambda: not processes.is_alive(pid, started), 10)
    hanging.wait(lambda: ended(run), what=run.tail)
    assert run.state().status == "done", run.state()
    (said,) = hanging.warnings(run)
    assert "The trainer stood still for" in said and "it was stopped by a signal" in said


@pytest.mark.long
@pytest.mark.parametrize(
    ("where", "count", "section"),
    [
        ("step", 4, "a step after step"),
        ("file", 4, "saving after step"),
        ("picture", 1, "sampling after step"),
        ("cache", 1, "caching"),
    ],
)
def test_each_section_is_watched_and_the_run_goes_on_to_the_bit(tiny_model, pictures, monkeypatch, where, count, section):
    sections = {"sample": {"prompts": ["a cat --s 2 --w 16 --h 16"], "every_steps": 6}}
    plain, run = (new_run(config(tiny_model, pictures, **sections)) for _ in range(2))
    shutil.rmtree(runs.home() / "cache", ignore_errors=True)
    monkeypatch.setenv(hanging.SECONDS, "2")
    disk.write_json(runs.runner_sign(), {})  # there is a runner for it to go on by itself
    assert train(run, Moment("hang", where, count), seconds=60) == hung.EXIT_CODE, run.tail()
    state = run.state()
    assert (state.status, state.hangs) == ("waiting", 1) and f"It hung in {section}" in state.error, state
    assert "The stacks of all its threads:" in run.log.read_text()
    assert "in counted" in run.log.read_text(), "where it hung"
    assert not run.is_locked()
    assert train(run) == 0 and run.state().status == "done", run.tail()
    monkeypatch.delenv(hanging.SECONDS)
    assert train(plain) == 0
    assert result(run) == result(plain)
