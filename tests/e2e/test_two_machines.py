"""Two machines on the loopback, each with a home of its own: the main one saves, both train, and either may be stopped."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
from safetensors.torch import load_file

from limner import jobs, launch
from limner.runs import Run
from trainer import Moment, config, losses, new_run, states, train, train_together

pytestmark = pytest.mark.slow
SAMPLES = {"prompts": ["a cat --s 2 --w 16 --h 16", "a dog --s 2 --w 16 --h 16"]}


def on_two(model: Path, pictures: Path, home: Path, monkeypatch, **sections) -> tuple[Run, Run]:
    """The run folders of one run on two machines, the second in another home, with pictures of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found, homes = [], (home, home.with_name("other home"))
    for rank, its in enumerate(homes):
        its.mkdir(exist_ok=True)
        if rank:
            shutil.copy(home / "machine.json", its)
            pictures = Path(shutil.copytree(pictures, its / "pictures", dirs_exist_ok=True))
        launched = {"num_processes": 2, "num_machines": 2, "machine_rank": rank, "main_process_port": port}
        launched["main_process_ip"] = "127.0.0.1"
        monkeypatch.setenv("LIMNER_HOME", str(its))
        found.append(new_run(config(model, pictures, launch=launched, sample=SAMPLES, data={"flip": True}, **sections)))
    monkeypatch.setenv("LIMNER_HOME", str(home))
    return found[0], found[1]


@pytest.mark.long
def test_two_machines_train_what_one_accumulates(tiny_model, pictures, home, monkeypatch):
    sections = {"train": {"steps": 6, "ema": 0.9}}
    main, second = on_two(tiny_model, pictures, home, monkeypatch, **sections)
    started = [
        jobs.spawn(launch.argv(r.config(), r.path, "cpu"), r.log, {"LIMNER_HOME": str(r.path.parents[1])})
        for r in (main, second)
    ]
    assert [p.wait(240) for p in started] == [0, 0], main.tail() + second.tail()
    assert [r.state().status for r in (main, second)] == ["done", "done"]
    alone = {"train": {"steps": 6, "ema": 0.9, "accumulation": 2}, "sample": SAMPLES, "data": {"flip": True}}
    one = new_run(config(tiny_model, pictures, **alone))
    assert train(one) == 0
    assert losses(main) == pytest.approx(losses(one), rel=1e-5)
    assert losses(second) == losses(main), "the second machine's page shows the same curve"
    ours, theirs = (load_file(r.checkpoints / "cat.safetensors") for r in (main, one))
    assert max((ours[k] - theirs[k]).abs().max().item() for k in ours) < 1e-5
    # the second one's folder has neither weights, nor states, nor pictures
    assert [list(f.iterdir()) for f in (second.checkpoints, second.states, second.samples)] == [[], [], []]
    assert len(list(main.samples.iterdir())) == 2
    assert "[process 2 of 2]" not in main.tail(), "each machine has a log of its own"


@pytest.mark.long
def test_the_second_machine_is_sent_the_state_to_resume_from(tiny_model, pictures, home, monkeypatch):
    main, second = on_two(tiny_model, pictures, home, monkeypatch, train={"steps": 6, "ema": 0.9})
    unbroken, its = on_two(tiny_model, pictures, home, monkeypatch, train={"steps": 6, "ema": 0.9})
    assert train_together(unbroken, 2, others={1: its}) == [0, 0], unbroken.tail() + its.tail()
    asked = {1: Moment("stop", "step", 3)}  # at the second machine
    assert train_together(main, 2, asked, others={1: second}) == [0, 0], main.tail() + second.tail()
    assert [(r.state().status, r.state().step) for r in (main, second)] == [("stopped", 3), ("stopped", 3)]
    assert train_together(main, 2, others={1: second}) == [0, 0], main.tail() + second.tail()
    assert losses(main) == losses(unbroken)
    for name in ("weights", "average", "optimizer"):
        ours, theirs = (load_file(states(r)[-1] / f"{name}.safetensors") for r in (main, unbroken))
        assert all((ours[k] == theirs[k]).all() for k in theirs), name
    caches = [{p.name for p in (r.path.parents[1] / "cache").glob("*.safetensors")} for r in (main, second)]
    assert all(caches), "each machine has encoded for itself"


def test_machines_that_were_told_different_things_are_refused(tiny_model, pictures, home, monkeypatch):
    main, second = on_two(tiny_model, pictures, home, monkeypatch, train={"steps": 2})
    text = (second.path / "config.toml").read_text(encoding="utf-8")
    (second.path / "config.toml").write_text(text.replace("seed = 3", "seed = 4"), encoding="utf-8")
    assert train_together(main, 2, others={1: second}) == [2, 2]
    assert "train: it is not the same on all machines" in main.state().error
