"""Micro-batches made ahead by a thread are those that the loop would make, and the thread's faults are the loop's."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from limner import jobs
from limner.config import files
from limner.data.cache import Cache
from limner.engine import feed as feeding
from limner.engine.feed import Feed, places, tensors_of
from limner.engine.journal import Journal
from limner.engine.prepare import prepare
from limner.engine.runtime import Runtime
from limner.engine.train import train
from limner.engine.training import Training

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: Any) -> Path:
    return tiny.build(tmp_path_factory.mktemp("models") / "sd1")


def job_for(model: Path, folder: Path, **sections: dict[str, Any]) -> Training:
    given: dict[str, Any] = {
        "model": {"base": str(model)},
        "data": {"path": str(folder), "resolution": 32, "bucket_min_px": 16, "bucket_step_px": 8, "flip": True,
                 "shuffle_tags": True, "caption_dropout": 0.2, "caption_dropout_epochs": 2},
        "adapter": {"rank": 2},
        "train": {"steps": 8, "batch_size": 2, "accumulation": 2, "seed": 7},
        "objective": {"noise_offset": 0.1, "pyramid_levels": 2},
        "launch": {"device": "cpu"},
    }  # fmt: skip
    for name, values in sections.items():
        given[name] = {**given.get(name, {}), **values}
    if given["adapter"].get("kind") == "none":
        del given["adapter"]["rank"]
    config = files.build(given, {})
    run = jobs.prepare(config)
    return prepare(run, config, Runtime(CPU, "fp32"), Journal(run, is_main=True), lambda: False)


def test_they_are_the_same(model: Path, tmp_path: Path):
    """From the start, after a leap (a resumed run), with the data set's length changed on the way."""
    # plainly cut captions vary, so they are encoded by the loop unless they are all stored
    job = job_for(model, tiny.pictures(tmp_path / "p"), data={"shuffle_tags": False})
    assert not job.samples.needs_model
    plain, ahead = Feed(job, 0), Feed(job, 3)
    for step in (0, 1, 2, 3, 11, 12):
        if step == 2:
            job.dataset = replace(job.dataset, total_steps=100)
        for place in places(job, step):
            expected, found = plain.take(place), ahead.take(place)
            assert found.batch.captions == expected.batch.captions and found.batch.positions == expected.batch.positions
            pairs = list(zip(tensors_of(found), tensors_of(expected), strict=True))
            assert len(pairs) > 6 and all(torch.equal(a, b) for a, b in pairs)
    ahead.close()


def test_what_needs_the_model_is_made_in_the_loop(model: Path, tmp_path: Path):
    folder = tiny.pictures(tmp_path / "p")
    for sections in ({"memory": {"cache_latents": False}}, {"memory": {"cache_text": False}}):
        job = job_for(model, folder, **sections)
        assert job.samples.needs_model
        (place, *_) = places(job, 0)
        Feed(job, 2).take(place)
        assert not any(thread.name.startswith("feed") for thread in threading.enumerate())
    assert not job_for(model, folder, adapter={"text_encoder": True}).samples.needs_model


def test_a_fault_reaches_the_loop(model: Path, tmp_path: Path, monkeypatch: Any):
    job = job_for(model, tiny.pictures(tmp_path / "p"), data={"shuffle_tags": False})
    job.feed = Feed(job, 2)
    asked, made = list[int](), feeding.ask

    def breaks(job: Training, batch: Any, step: int) -> Any:
        asked.append(step)
        if step == 3:
            raise OSError(5, "the disk is gone")
        return made(job, batch, step)

    monkeypatch.setattr(feeding, "ask", breaks)
    with pytest.raises(OSError, match="the disk is gone"):
        train(job, 0)
    assert job.journal.state.step <= 3 and max(asked) >= 3
    assert not [t for t in threading.enumerate() if t.name.startswith("feed")]


def test_a_damaged_entry_is_made_again_by_the_loop(model: Path, tmp_path: Path):
    folder = tiny.pictures(tmp_path / "p")
    job = job_for(model, folder, data={"shuffle_tags": False}, memory={"cache_path": str(tmp_path / "cache")})
    plain = [t.clone() for place in places(job, 0) for t in tensors_of(Feed(job, 0).take(place))]
    other = Cache(tmp_path / "cache")
    with other._index:
        other._index.execute("UPDATE entries SET checksum = checksum + 1")
    job.samples.cache = Cache(tmp_path / "cache")  # which has kept nothing in memory
    ahead = Feed(job, 2)
    found = [t for place in places(job, 0) for t in tensors_of(ahead.take(place))]
    ahead.close()
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    assert not job.family.has("vae")
