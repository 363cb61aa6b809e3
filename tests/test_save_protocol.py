"""Whenever the power goes while a run saves, its old state or checkpoint is there whole, or the new one; never neither.

Not by trying some moments: `crashes` makes every state in which a disk may be found, and the real recovery reads it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import crashes
import tiny
from limner import disk, jobs, runs
from limner.engine import checkpoint
from limner.engine.journal import Journal
from limner.engine.prepare import prepare
from limner.engine.runtime import Runtime
from limner.engine.saving import save_state, save_weights
from limner.engine.train import move_weights
from limner.engine.training import Training
from limner.runs import Run
from trainer import config, tensors_hash

pytestmark = pytest.mark.skipif(os.name == "nt", reason="folders cannot be synced on Windows")
CPU = Runtime(torch.device("cpu"), "fp32")


@pytest.fixture(scope="module")
def prepared(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Training]:
    """prepared(kind) is a run in this process with such an adapter, each made once."""

    @cache
    def make(kind: str) -> Training:
        folder = tmp_path_factory.mktemp(kind)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LIMNER_HOME", str(folder / "home"))
            pictures = tiny.pictures(folder / "p", ((32, 32),) * 2)
            chosen = config(model, pictures, adapter={"kind": kind}, output={"keep_last": 1}, train={"ema": 0.5})
            run = jobs.prepare(chosen)
            made = prepare(run, chosen, CPU, Journal(run, is_main=True), lambda: False)
        made.saves_aside = False
        return made

    return make


@pytest.fixture
def job(prepared: Callable[[str], Training], tmp_path: Path, request: pytest.FixtureRequest) -> Training:
    """It, in a new run folder."""
    made = prepared(getattr(request, "param", "lora"))
    made.run = made.journal.run = Run(tmp_path / "run")
    made.journal._folder = None  # which is watched for being deleted
    for folder in (made.run.checkpoints, made.run.states, made.run.path / "control"):
        folder.mkdir(parents=True)
    made.written, made.saved_at = [], None
    return made


def at_step(job: Training, step: int, save: Callable[[Training, int], None] = save_state) -> None:
    move_weights(job, step - 1)
    save(job, step)


def weights(job: Training) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in job.adapter.state_dict().items()}


def check(made: crashes.Record, tmp_path: Path, recovered: Callable[[Path], str]) -> int:
    """Recover from every state; `recovered` says what was found there: "old" or "new". Returns how many states there were."""
    disks, count, found = crashes.Disk(tmp_path / "disk"), 0, set[str]()
    for is_done, tree in crashes.states(made):
        what = recovered(disks.make(tree))
        assert what == "new" or (what == "old" and not is_done), (what, is_done, sorted(tree))
        found.add(what)
        count += 1
    assert found == {"old", "new"}
    print(f"{len(made.did)} operations, {count} states")
    return count


def whole_states(folder: Path) -> list[str]:
    """What recovery finds; all that has a state's name is whole."""
    disk.sweep(folder)
    names = sorted(p.name for p in folder.iterdir())
    newest, faults = checkpoint.newest_state(folder)
    assert newest is not None and newest.name == names[-1] and not faults
    assert not any(disk.manifest_faults(folder / name) for name in names)
    return names


def test_a_training_state(job: Training, tmp_path: Path) -> None:
    at_step(job, 1)
    at_step(job, 2)
    before = weights(job)
    move_weights(job, 2)
    after = weights(job)
    made = crashes.record(job.run.states, lambda: save_state(job, 3))
    loaded = set[tuple[str, ...]]()

    def recovered(folder: Path) -> str:
        names = whole_states(folder)
        assert names[-2:] in (["step-00000001", "step-00000002"], ["step-00000002", "step-00000003"])
        is_new = names[-1] == "step-00000003"
        if tuple(names) not in loaded:  # each is whole by its hashes; what is the same need not be read again
            loaded.add(tuple(names))
            facts = checkpoint.load_state(folder / names[-1], job.adapter, job.optimizer, job.average, job.runtime)
            assert facts["step"] == 2 + is_new
            expected = after if is_new else before
            assert all(torch.equal(expected[name], value) for name, value in job.adapter.state_dict().items())
        return "new" if is_new else "old"

    assert check(made, tmp_path, recovered) > 100
    assert len(loaded) == 3, "the old ones, all three, the new ones"


def test_a_damaged_state_that_is_written_anew(job: Training, tmp_path: Path) -> None:
    at_step(job, 1)
    at_step(job, 2)
    damaged = job.run.states / "step-00000002" / "optimizer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    made = crashes.record(job.run.states, lambda: save_state(job, 2))

    def recovered(folder: Path) -> str:
        disk.sweep(folder)
        newest, _ = checkpoint.newest_state(folder)
        assert newest is not None and (folder / "step-00000001").is_dir()
        return "new" if newest.name == "step-00000002" else "old"

    check(made, tmp_path, recovered)


def test_what_came_before_a_state_is_told(job: Training, tmp_path: Path) -> None:
    """A state that is there is one whose losses are known: they are on the disk before it is."""
    job.journal.event("start", step=0)

    def work() -> None:
        for step in (1, 2):
            job.journal.event("step", step=step, loss=0.5)
        job.run.sync_events()
        save_state(job, 2)

    made = crashes.record(job.run.path, work)
    disks = crashes.Disk(tmp_path / "disk")
    for _, tree in crashes.states(made):
        run = Run(disks.make(tree))
        newest, _ = checkpoint.newest_state(run.states)
        steps = [e["step"] for e, _ in run.events() if e["event"] == "step"]
        assert newest is None or steps == [1, 2], sorted(tree)
        assert steps == [1, 2][: len(steps)]


def test_the_first_state_of_a_new_run(home: Path, tmp_path: Path) -> None:
    """What was told to be saved is there, with all folders above it."""
    home.mkdir()
    chosen = config(tmp_path / "no model", tmp_path)
    tensors, run = {"a": torch.arange(3.0)}, list[Run]()

    def work() -> None:
        run.append(runs.create(chosen))
        part = checkpoint.Copies()
        checkpoint.save_state(run[0].states, 1, [("weights", tensors, {"a": 1})], {"watch": {"above": []}}, part)

    made = crashes.record(home, work)

    def recovered(root: Path) -> str:
        found = Run(root / "runs" / run[0].id)
        newest, faults = checkpoint.newest_state(found.states)
        assert not faults
        if newest is None:
            return "old"
        assert found.config() == chosen and load_file(newest / "weights.safetensors")["a"].tolist() == [0, 1, 2]
        return "new"

    check(made, tmp_path, recovered)


def test_a_file_of_weights_and_those_it_replaces(job: Training, tmp_path: Path) -> None:
    """The one before is deleted when the new one is there for good, never earlier."""
    at_step(job, 1, save_weights)
    move_weights(job, 1)
    old = job.run.checkpoints / "cat-step00000001.safetensors"
    hashes = {tensors_hash(old): "old"}
    made = crashes.record(job.run.checkpoints, lambda: save_weights(job, 2))
    hashes[tensors_hash(job.run.checkpoints / "cat-step00000002.safetensors")] = "new"
    assert len(hashes) == 2 and not old.exists()

    def recovered(folder: Path) -> str:
        disk.sweep(folder)
        found = {hashes[tensors_hash(path)] for path in folder.iterdir()}
        return "new" if "new" in found else "old"

    check(made, tmp_path, recovered)
    # and under one name
    move_weights(job, 2)
    made = crashes.record(job.run.checkpoints, lambda: save_weights(job, 2))
    (name,) = (path.name for path in job.run.checkpoints.iterdir())
    hashes = {digest: "old" for digest, what in hashes.items() if what == "new"}
    hashes[tensors_hash(job.run.checkpoints / name)] = "new"
    check(made, tmp_path / "same", lambda folder: hashes[tensors_hash(folder / name)])


@pytest.mark.parametrize("job", ["none"], indirect=True)
def test_a_whole_model_as_a_folder(job: Training, tmp_path: Path) -> None:
    """The two renames that replace a folder by another are put right by the recovery, wherever the power went."""
    at_step(job, 1, save_weights)
    move_weights(job, 1)
    (folder,) = job.run.checkpoints.iterdir()
    hashes = {tensors_hash(folder): "old"}
    made = crashes.record(job.run.checkpoints, lambda: save_weights(job, 1))
    hashes[tensors_hash(folder)] = "new"
    assert len(hashes) == 2

    known = dict[tuple[Any, ...], str]()

    def recovered(root: Path) -> str:
        disk.sweep(root)
        assert [path.name for path in root.iterdir()] == [folder.name]
        key = tuple((str(path.relative_to(root)), path.stat().st_ino) for path in sorted(root.rglob("*")) if path.is_file())
        if key not in known:  # contents are linked, so that an inode is a content
            assert disk.manifest_faults(root / folder.name) == []
            known[key] = hashes[tensors_hash(root / folder.name)]
        return known[key]

    check(made, tmp_path, recovered)


# --- the enumeration finds what is wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("left_out", ["contents", "folders"])
def test_a_protocol_without_its_syncs_is_found_out(job: Training, tmp_path: Path, left_out: str) -> None:
    at_step(job, 1)
    move_weights(job, 1)
    real = disk.fsync

    def some(path: Path) -> None:
        if path.is_dir() == (left_out == "contents"):
            real(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "fsync", some)
        made = crashes.record(job.run.states, lambda: save_state(job, 2))
    with pytest.raises(AssertionError):
        check(made, tmp_path, lambda folder: "new" if whole_states(folder)[-1] == "step-00000002" else "old")


def test_deleting_under_a_final_name_is_found_out(job: Training, tmp_path: Path) -> None:
    for step in (1, 2):
        at_step(job, step)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "remove", shutil.rmtree)
        made = crashes.record(job.run.states, lambda: at_step(job, 3))
    with pytest.raises(AssertionError):
        check(made, tmp_path, lambda folder: "new" if whole_states(folder)[-1] == "step-00000003" else "old")
