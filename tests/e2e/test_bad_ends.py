"""Ends that nobody wants: said in words, with the right exit code, and nothing broken left behind."""

from __future__ import annotations

import os
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file

from limner import jobs
from trainer import Moment, config, launch, new_run, states, train


def error_of(run) -> str:
    return run.state().error


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "clip"), [("lora", "off"), ("none", 1.0)])
def test_a_learning_rate_far_too_high(tiny_model, pictures, kind, clip):
    adapter, length = {"kind": kind}, {"steps": 400, "clip_norm": clip, "on_nan": "stop"}
    rate, often = {"lr": 10.0, "warmup_steps": 0, "weight_decay": 0.0}, {"save_every_steps": 1, "state_every_steps": 1}
    run = new_run(config(tiny_model, pictures, adapter=adapter, train=length, optimizer=rate, output=often))
    # the schema allows no more than 10; weights this far off do the rest
    assert train(run, Moment("poison", "step", 3)) == 2, run.tail()
    state = run.state()
    assert state.status == "failed" and "optimizer.lr" in state.error and "not a number" in state.error
    assert "Lower the learning rate" in state.error and "Traceback" not in run.tail()
    files = [f for folder in (run.checkpoints, run.states) for f in folder.rglob("*.safetensors")]
    assert files
    for file in files:
        assert all(t.isfinite().all() for t in load_file(file).values()), file
    last = [e for e, _ in run.events()][-1]
    assert last["event"] == "stop" and last["status"] == "failed"


@pytest.mark.long
def test_two_trainers_on_one_run(tiny_model, pictures):
    run = new_run(config(tiny_model, pictures, train={"steps": 100_000}))
    first = launch(run)
    until = time.monotonic() + 60
    while run.state().phase != "training" and time.monotonic() < until:
        time.sleep(0.05)
    before = run.state()
    assert train(run) == 2
    assert "is being trained by another process already" in run.tail()
    after = run.state()
    assert (after.status, after.pid) == ("running", before.pid)
    assert jobs.stop(run, grace_seconds=30).status == "stopped"
    first.join(30)
    assert first.exitcode == 0


def test_pictures_that_vanished_before_the_start(tiny_model, pictures):
    run = new_run(config(tiny_model, pictures))
    (pictures / "p0.png").unlink()
    assert train(run) == 0 and run.plan()["num_pictures"] == 3
    other = new_run(config(tiny_model, pictures))
    shutil.rmtree(pictures)
    assert train(other) == 2
    assert other.state().status == "failed" and "data.path" in error_of(other) and "does not exist" in error_of(other)
    os.mkdir(pictures)
    assert train(other) == 2 and "holds no usable picture" in error_of(other)


@pytest.mark.slow
def test_a_picture_that_breaks_during_the_run(tiny_model, pictures):
    """Cached pictures are not read again; uncached ones are named when they fail."""
    run = new_run(config(tiny_model, pictures, memory={"cache_latents": False}))
    assert train(run, Moment("stop", "step", 2)) == 0
    (pictures / "p2.png").write_bytes((pictures / "p2.png").read_bytes()[:200])
    assert train(run) == 2
    assert "p2.png" in error_of(run) and "Traceback" not in run.tail()


@pytest.mark.slow
def test_a_model_that_vanished(tiny_model, pictures, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    run = new_run(config(model, pictures))
    (model / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert train(run) == 2
    assert "model.base" in error_of(run) and "unet" in error_of(run)


@pytest.mark.slow
def test_a_state_of_another_shape_is_refused(tiny_model, pictures):
    run = new_run(config(tiny_model, pictures))
    assert train(run, Moment("stop", "step", 4)) == 0
    other = new_run(config(tiny_model, pictures, adapter={"rank": 6}))
    shutil.copytree(states(run)[-1], other.states / states(run)[-1].name)
    assert train(other) == 2
    assert "shape" in error_of(other)
    assert not list(other.checkpoints.iterdir())


@pytest.mark.slow
def test_a_config_that_was_damaged(tiny_model, pictures):
    run = new_run(config(tiny_model, pictures))
    text = (run.path / "config.toml").read_text(encoding="utf-8")
    (run.path / "config.toml").write_text(text.replace("[train]", "[train]\nstepps = 3"), encoding="utf-8")
    assert train(run) == 2
    assert "stepps" in error_of(run) and run.state().status == "failed"


@pytest.mark.slow
def test_weights_in_half_precision_are_finite_too(tiny_model, pictures):
    """What fits into float32 need not fit into the file's float16."""
    run = new_run(config(tiny_model, pictures, train={"steps": 3}, output={"dtype": "fp16"}))
    assert train(run) == 0
    tensors = load_file(run.checkpoints / "cat.safetensors")
    assert {t.dtype for k, t in tensors.items() if not k.endswith(".alpha")} == {torch.float16}
    assert all(t.isfinite().all() for t in tensors.values())
