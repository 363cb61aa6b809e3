"""The fast ways of a step on a GPU: nothing in it waits for the device, and each gives what the plain way gives."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from limner import jobs
from limner.config import files
from limner.engine.feed import Feed, places, tensors_of
from limner.engine.journal import Journal
from limner.engine.prepare import prepare
from limner.engine.runtime import Runtime
from limner.engine.saving import save_state, save_weights
from limner.engine.train import move_weights
from limner.engine.training import Training

FAMILIES = ("sd1", "sdxl", "sd3", "flux")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    return tiny.pictures(tmp_path_factory.mktemp("pictures"))


def job_for(model: Path, folder: Path, **sections: dict[str, Any]) -> Training:
    given: dict[str, Any] = {
        "model": {"base": str(model)},
        "data": {"path": str(folder), "resolution": 32, "bucket_min_px": 16, "bucket_step_px": 8},
        "adapter": {"rank": 3},
        "train": {"steps": 40, "batch_size": 2, "accumulation": 2, "seed": 7, "precision": "fp32"},
        "optimizer": {"lr": 1e-3, "warmup_steps": 0},
        "launch": {"device": "cuda"},
    }
    for name, values in sections.items():
        given[name] = {**given.get(name, {}), **values}
    config = files.build(given, {})
    run = jobs.prepare(config)
    runtime = Runtime(torch.device("cuda"), config.train.precision or "fp32")
    return prepare(run, config, runtime, Journal(run, is_main=True), lambda: False)


def walk(job: Training, steps: range) -> list[float]:
    return torch.stack([move_weights(job, step)[0].clone() for step in steps]).tolist()


@pytest.fixture
def no_waiting() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", [{}, {"cuda_graph": True}], ids=str)
def test_no_step_waits_for_the_device(
    models: dict[str, Path], folder: Path, family: str, way: dict[str, Any], no_waiting: None
):
    """Moving average, limited gradients, min-SNR weights: torch ends the run where something is read from the device."""
    more = {"objective": {"weighting": "min_snr"}} if family in ("sd1", "sdxl") else {}
    job = job_for(models[family], folder, speed=way, train={"precision": "bf16", "ema": 0.9}, **more)
    walk(job, range(16))
    torch.cuda.set_sync_debug_mode("error")
    for step in range(16, 24):
        move_weights(job, step)
    torch.cuda.set_sync_debug_mode("default")
    job.feed.close()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_run_by_graphs_is_the_run(models: dict[str, Path], folder: Path, family: str, checkpointing: bool):
    memory = {"checkpointing": checkpointing}
    plain = job_for(models[family], folder, memory=memory)
    graph = job_for(models[family], folder, memory=memory, speed={"cuda_graph": True})
    assert walk(graph, range(30)) == pytest.approx(walk(plain, range(30)), rel=1e-3)
    assert graph.graphs is not None and len(graph.graphs._recorded) >= 3
    save_weights(graph, 30)
    save_state(graph, 30)
    graph.saver.collect(wait=True)
    assert walk(graph, range(30, 34)) == pytest.approx(walk(plain, range(30, 34)), rel=1e-3)


def test_batches_made_ahead_are_the_same(models: dict[str, Path], folder: Path):
    job = job_for(models["sdxl"], folder)
    plain, ahead = Feed(job, 0), Feed(job, 3)
    for step in range(12):
        for place in places(job, step):
            pairs = list(zip(tensors_of(ahead.take(place)), tensors_of(plain.take(place)), strict=True))
            assert len(pairs) > 6 and all(a.is_cuda and torch.equal(a, b) for a, b in pairs)
    ahead.close()


def test_copies_are_of_their_step(models: dict[str, Path], folder: Path):
    """The copy is ordered behind the step it is of, whatever is ordered next."""
    from safetensors.torch import load_file

    job = job_for(models["sd1"], folder)
    walk(job, range(3))
    expected = {k: v.cpu() for k, v in job.adapter.state_dict().items()}
    save_state(job, 3)
    walk(job, range(3, 12))
    job.saver.collect(wait=True)
    found = load_file(job.run.states / "step-00000003" / "weights.safetensors")
    assert all(torch.equal(found[k], v) for k, v in expected.items())


@pytest.mark.parametrize("kernel", ["flash", "efficient", "cudnn", "math"])
def test_each_attention_kernel_learns_the_same(models: dict[str, Path], folder: Path, kernel: str):
    precision = {"precision": "bf16"}
    plain = job_for(models["flux"], folder, train=precision)
    other = job_for(models["flux"], folder, train=precision, speed={"attention": kernel}, memory={"checkpointing": True})
    assert walk(other, range(12)) == pytest.approx(walk(plain, range(12)), rel=0.02)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_channels_side_by_side_learn_the_same(models: dict[str, Path], folder: Path, family: str):
    plain, other = job_for(models[family], folder), job_for(models[family], folder, speed={"channels_last": True})
    assert walk(other, range(12)) == pytest.approx(walk(plain, range(12)), rel=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
@pytest.mark.parametrize("speed", [{}, {"cuda_graph": True}, {"compile_mode": "reduce-overhead"}], ids=str)
def test_compiled_blocks_learn_the_same(models: dict[str, Path], folder: Path, speed: dict[str, Any]):
    plain = job_for(models["flux"], folder)
    other = job_for(models["flux"], folder, speed={"compile": "blocks", **speed})
    assert walk(other, range(12)) == pytest.approx(walk(plain, range(12)), rel=1e-3)
