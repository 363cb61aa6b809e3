"""Files written beside the loop: what was true at their step, told of when they are whole, and their faults end the run."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_feed import job_for

import tiny
from limner.engine import checkpoint
from limner.engine.aside import MOST_BYTES, Copies, Saver, fits_aside
from limner.engine.saving import save_state, save_weights
from limner.engine.train import move_weights, train
from limner.engine.training import Training


@pytest.fixture(scope="module")
def model(tmp_path_factory: Any) -> Path:
    return tiny.build(tmp_path_factory.mktemp("models") / "sd1")


def held(monkeypatch: Any) -> threading.Event:
    """Files are written once this is set."""
    may_write, write = threading.Event(), checkpoint.save_file

    def waits(*args: Any, **kwargs: Any) -> None:
        assert may_write.wait(60)
        write(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "save_file", waits)
    return may_write


def names(job: Training) -> list[tuple[str, int]]:
    return [(e["event"], e["step"]) for e, _ in job.run.events() if e["event"] in ("checkpoint", "state")]


def test_the_files_are_of_their_step(model: Path, tmp_path: Path, monkeypatch: Any):
    """The loop goes on while they are written, and nothing of what it changes is in them."""
    job = job_for(model, tiny.pictures(tmp_path / "p"), train={"ema": 0.9}, output={"dtype": "fp32", "name": "cat"})
    may_write = held(monkeypatch)
    for step in range(3):
        move_weights(job, step)
    assert job.average is not None
    weights = {k: v.clone() for k, v in job.adapter.state_dict().items()}
    averages = [v.clone() for v in job.average.values]
    moments = [job.optimizer.state[p]["exp_avg"].clone() for p in job.params]  # type: ignore[union-attr]
    save_weights(job, 3)
    save_state(job, 3)
    for step in range(3, 6):
        move_weights(job, step)
    job.saver.collect()
    state = job.run.states / "step-00000003"
    assert names(job) == [] and not state.exists()
    may_write.set()
    job.saver.collect(wait=True)
    assert names(job) == [("checkpoint", 3), ("state", 3)]
    stored = load_file(state / "weights.safetensors")
    assert stored.keys() == weights.keys() and all(torch.equal(stored[k], weights[k]) for k in weights)
    assert not torch.equal(next(iter(weights.values())), next(iter(job.adapter.state_dict().values())))
    kept = load_file(state / "average.safetensors")
    assert all(torch.equal(kept[str(i)], v) for i, v in enumerate(averages))
    packed = load_file(state / "optimizer.safetensors")
    assert all(torch.equal(packed[f"{i}.exp_avg"], v) for i, v in enumerate(moments))
    written = load_file(job.run.checkpoints / "cat-step00000003.safetensors")
    ups = [v for k, v in written.items() if k.endswith("lora_up.weight")]
    assert ups and all(any(torch.equal(up, v.reshape(up.shape)) for v in averages if v.numel() == up.numel()) for up in ups)
    job.saver.close()


def test_the_next_save_waits_for_the_one_before(model: Path, tmp_path: Path, monkeypatch: Any):
    job = job_for(model, tiny.pictures(tmp_path / "p"), output={"name": "cat"})
    may_write = held(monkeypatch)
    save_state(job, 1)
    threading.Timer(0.3, may_write.set).start()
    save_state(job, 2)
    assert ("state", 1) in names(job)
    job.saver.collect(wait=True)
    assert names(job) == [("state", 1), ("state", 2)]
    job.saver.close()


def test_a_write_that_fails_ends_the_run(model: Path, tmp_path: Path, monkeypatch: Any):
    """With its words, at a later step, and no event of the file that is not there."""
    job = job_for(model, tiny.pictures(tmp_path / "p"), output={"name": "cat", "state_every_steps": 2}, train={"steps": 400})
    calls, write = 0, checkpoint.save_file

    def full(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 2:  # the second state's first file
            raise OSError(28, "No space left on device")
        write(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        train(job, 0)
    assert 4 <= job.journal.state.step < 400
    assert names(job) == [("state", 2)]
    assert [p.name for p in job.run.states.iterdir()] == ["step-00000002"]


def test_whole_models_and_large_adapters_are_written_in_the_loop(model: Path, tmp_path: Path):
    folder = tiny.pictures(tmp_path / "p")
    assert job_for(model, folder).saves_aside
    whole = job_for(model, folder, adapter={"kind": "none"}, output={"layout": "diffusers"})
    assert not whole.saves_aside
    save_weights(whole, 1)
    assert names(whole) == [("checkpoint", 1)]
    assert fits_aside([torch.empty(MOST_BYTES // 20 - 1, device="meta")])
    assert not fits_aside([torch.empty(MOST_BYTES // 20 + 1, device="meta")])


def test_copies_and_the_order_of_writes():
    source = torch.arange(6.0).view(2, 3).t()
    copies = Copies()
    copy = copies.take(source)
    source.zero_()
    copies.wait()
    assert copy.is_contiguous() and copy.tolist() == [[0, 3], [1, 4], [2, 5]]
    told = list[int]()
    saver = Saver(lambda kind, step: told.append(step))
    for step in (1, 2):
        saver.do(lambda step=step: {"kind": "state", "step": step}, aside=True)
    saver.collect(wait=True)
    saver.do(lambda: {"kind": "state", "step": 3}, aside=False)
    saver.close()
    assert told == [1, 2, 3]


@pytest.mark.long
def test_no_state_is_written_behind_a_checkpoint_that_failed(model: Path, tmp_path: Path, monkeypatch: Any):
    """The run would go on from that state, past the checkpoint, and at its end be done without a file."""
    job = job_for(model, tiny.pictures(tmp_path / "p"), output={"name": "cat", "state_every_steps": 100}, train={"steps": 3})
    write = checkpoint.save_file

    def full(tensors: Any, path: Path, *args: Any) -> None:
        if path.parent == job.run.checkpoints:
            raise OSError(28, "No space left on device")
        write(tensors, path, *args)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        train(job, 0)
    assert names(job) == [] and list(job.run.states.iterdir()) == []


def test_the_parts_of_a_large_state_are_made_one_after_the_other(tmp_path: Path):
    """Of a whole model two of them would be as much again as the model."""
    made = list[weakref.ref[torch.Tensor]]()

    def tensors() -> dict[str, torch.Tensor]:
        tensor = torch.ones(3)
        made.append(weakref.ref(tensor))
        return {"a": tensor}

    def parts() -> Iterator[checkpoint.Part]:
        for name in ("weights", "optimizer", "average"):
            assert all(ref() is None for ref in made)
            yield name, tensors(), {"step": 1}

    checkpoint.save_state(tmp_path, 1, parts(), {"watch": {"above": []}}, Copies())
    assert len(made) == 3 and not checkpoint.newest_state(tmp_path)[1]
