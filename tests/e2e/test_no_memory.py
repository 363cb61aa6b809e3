"""Memory runs out: it is said what to change, nothing is left behind, and a preview is not worth a run."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest

import faults
from limner import jobs, queue, runs
from limner.runner import Runner
from trainer import config, losses, new_run, result, states, train

PROMPT = {"prompts": ["a cat", "a dog"], "steps": 2, "width": 32, "height": 32, "every_steps": 3}


def test_while_pictures_are_encoded(tiny_model, pictures):
    run = new_run(config(tiny_model, pictures))
    assert faults.train(run, faults.no_device_memory, "encode", 2) == 2
    error = run.state().error
    assert "memory.vae_tiling = true" in error and "data.resolution" in error and "while caching" in error
    faults.require_ended(run)
    assert train(run) == 0


@pytest.mark.long
def test_while_it_paints_it_goes_on_without_the_picture(tiny_model, pictures):
    plain, run = (new_run(config(tiny_model, pictures, sample=PROMPT, train={"steps": 6})) for _ in range(2))
    assert train(plain) == 0
    assert faults.train(run, faults.no_device_memory, "paint", 2) == 0, run.tail()
    (said,) = (e["message"] for e in run.history() if e["event"] == "warning")
    assert "memory ran out while painting at step 3" in said and "sample.width" in said
    expected, found = result(plain), result(run)
    assert sorted(found.pop("samples")) == [n for n in sorted(expected.pop("samples")) if n != "step-00000003_01.png"]
    assert found == expected
    assert not [e for e in run.history() if e["event"] == "fit"]


@pytest.mark.long
def test_the_system_gives_no_more(tiny_model, pictures):
    """A real allocation fails in a step, under a limit of the operating system."""
    chosen = config(tiny_model, pictures, train={"steps": 6, "batch_size": 16}, data={"resolution": 128, "bucket_max_px": 256})
    run = new_run(chosen)
    assert faults.train(run, faults.no_memory, "step", 4, 8) == 2, run.tail()
    error = run.state().error
    assert "memory ran out" in error and 'memory.fit = "auto"' in error
    faults.require_ended(run)
    faults.require_whole(run)
    assert train(run) == 0 and len(losses(run)) == 6


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_the_kernel_ends_it_and_the_runner_says_why(tiny_model, pictures, forks):
    """The kernel's way out of a lack of memory is SIGKILL: all that is left is the exit code."""
    run = new_run(config(tiny_model, pictures, train={"steps": 100_000}, output={"state_every_steps": 2}))
    queue.enqueue(run)
    with runs.lock("runner", 5):
        runner = Runner()
        until = time.monotonic() + 60
        while not (run.states.is_dir() and states(run)) and time.monotonic() < until:
            runner.tick()
            time.sleep(0.02)
        pid = run.state().pid
        os.kill(pid, signal.SIGKILL)
        while runner.tick():
            assert time.monotonic() < until
            time.sleep(0.02)
    state = run.state()
    assert state.status == "failed" and "signal 9" in state.error
    assert "the computer ran out of memory. Lower train.batch_size or data.resolution" in state.error
    assert not psutil.pid_exists(pid), "not even a zombie"
    faults.require_ended(run)
    faults.require_whole(run)
    queue.enqueue(run)
    assert jobs.start(run, "cpu") is not None, "it can go on at once"
    jobs.stop(run, now=True)
