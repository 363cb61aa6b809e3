"""Several processes on a CPU: counted, fed the same pictures, and the same result as one that accumulates."""

from __future__ import annotations

import re
import time

import pytest
from safetensors.torch import load_file

from limner import disk, jobs, progress, queue
from trainer import config, losses, new_run, train


@pytest.mark.long
def test_two_processes_train_what_one_accumulates(tiny_model, pictures):
    sections = {"sample": {"prompts": ["a cat --s 2 --w 16 --h 16"]}, "output": {"save_every_steps": 4}, "data": {"flip": True}}
    two = new_run(config(tiny_model, pictures, launch={"num_processes": 2}, train={"steps": 8}, **sections))
    queue.enqueue(two)
    assert progress.follow(two) == 0, two.tail(20_000)
    argv = disk.read_json(two.path / "command.json")["argv"]
    assert "--nproc_per_node=2" in argv
    until = time.monotonic() + 60
    while not (two.path / "exit.json").exists() and time.monotonic() < until:
        time.sleep(0.1)  # the run is done before its launcher is gone
    assert disk.read_json(two.path / "exit.json")["code"] == 0
    assert two.state().status == "done" and two.plan()["num_processes"] == 2
    cached = [e for e, _ in two.events() if e["event"] == "cached"]
    assert [(e["latents"], e["captions"]) for e in cached] == [(8, 4)]  # one journal, and every entry made once
    assert len(list(two.samples.iterdir())) == 1

    one = new_run(config(tiny_model, pictures, train={"steps": 8, "accumulation": 2}, **sections))
    assert train(one) == 0, one.tail()
    assert [e for e, _ in one.events() if e["event"] == "cached"] == [], "the two processes left entries out"
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    for name in ("cat-step00000004", "cat"):
        ours, theirs = (load_file(r.checkpoints / f"{name}.safetensors") for r in (two, one))
        assert ours.keys() == theirs.keys()
        difference = max((ours[k] - theirs[k]).abs().max().item() for k in ours)
        assert difference < 1e-5, name
    assert max(v.abs().max().item() for k, v in ours.items() if "lora_up" in k) > 1e-3


@pytest.mark.long
def test_a_request_to_stop_reaches_all_processes(tiny_model, pictures):
    run = new_run(config(tiny_model, pictures, launch={"num_processes": 2}, train={"steps": 100_000}))
    process = jobs.start(run, "cpu")
    assert process is not None
    while process.poll() is None and run.state().step == 0:
        time.sleep(0.1)
    run.request("stop")
    assert process.wait(300) == 0, run.tail(20_000)
    state = run.state()
    assert state.status == "stopped" and 0 < state.step < 100_000
    newest = sorted(p.name for p in run.states.iterdir())[-1]
    assert re.fullmatch(r"step-\d{8}", newest) and int(newest[5:]) == state.step
