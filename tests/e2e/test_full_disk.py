"""Disks that are full, gone or not to be written: the run ends in words, what was saved stays, and it goes on afterwards."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import faults
import tiny
from limner.engine import aside
from limner.preflight import examine
from limner.runs import Run
from trainer import config, losses, new_run, result, states, train

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX file systems only")
OFTEN = {"state_every_steps": 2, "save_every_steps": 4, "keep_last": 1}
PROMPT = {"prompts": ["a cat"], "steps": 2, "width": 32, "height": 32, "every_steps": 3}
LENGTH = {"steps": 8, "batch_size": 2}


@pytest.fixture
def elsewhere(tmp_path: Path, home: Path, machine_file: Path, monkeypatch: pytest.MonkeyPatch):
    """Limner's home is on a small disk of its own."""
    with faults.small_disk(tmp_path / "disk", 40) as folder:
        (folder / "home").mkdir()
        shutil.copy(machine_file, folder / "home" / "machine.json")
        monkeypatch.setenv("LIMNER_HOME", str(folder / "home"))
        yield folder


@pytest.fixture(scope="module")
def known() -> dict[str, dict]:
    """What the uninterrupted run gives, by what is trained."""
    return {}


def of_kind(kind: str, model: Path, pictures: Path) -> Run:
    return new_run(config(model, pictures, adapter={"kind": kind}, output=OFTEN, sample=PROMPT, train=LENGTH))


@pytest.mark.parametrize(
    ("kind", "where", "count", "needs"),
    [
        ("lora", "cache", 1, "what it caches"),
        ("lora", "file", 4, "a training state and a finished file"),
    ],
)
def test_a_disk_that_becomes_full(kind, where, count, needs, tiny_model, pictures, elsewhere, known):
    run = of_kind(kind, tiny_model, pictures)
    assert faults.train(run, faults.fill, where, count, str(elsewhere), 12 << 10) == 2, run.tail()
    state = run.state()
    assert state.status == "failed" and faults.NO_SPACE in state.error and needs in state.error
    told = re.search(rf"error: ({elsewhere}\S*): .*: ([0-9]+) MiB are free there, about ([0-9]+) MiB are needed", state.error)
    assert told and int(told[2]) == 0 and 1 <= int(told[3]) <= 14
    assert "Free some space and resume the run" in state.error
    faults.require_ended(run)
    faults.require_whole(run)
    assert not faults.leftovers(elsewhere)
    (elsewhere / "ballast").unlink()
    assert train(run) == 0, run.tail()
    if kind not in known:
        whole = of_kind(kind, tiny_model, pictures)
        assert train(whole) == 0
        known[kind] = result(whole)
    # where it ran out while painting, that picture is left out when it goes on
    assert {**result(run), "samples": 0} == {**known[kind], "samples": 0}


def nothing_left(folder: str) -> None:
    """Not a byte, from step 5 on. Saved in the loop: what is half written when the disk is filled would leave room again."""
    aside.MOST_BYTES = 0
    faults.fill("step", 5, folder, 0)


def test_not_a_byte_is_free(tiny_model, pictures, elsewhere):
    """Even the last word cannot be written: then whoever looks at the run says why."""
    run = of_kind("lora", tiny_model, pictures)
    assert faults.train(run, nothing_left, str(elsewhere)) != 0
    state = run.state()
    assert state.status == "failed" and f"the disk of {run.path} is full: free some space, and resume it" in state.error
    assert not run.is_locked() and not faults.leftovers(elsewhere)
    faults.require_whole(run)
    (elsewhere / "ballast").unlink()
    assert "is full" not in run.state().error
    assert train(run) == 0 and len(losses(run)) == 8


def test_a_disk_that_is_full_before_it_begins(tiny_model, pictures, elsewhere, tmp_path):
    """Not even its state can be written: it ends in words all the same, and begins when there is room."""
    run = of_kind("lora", tiny_model, pictures)
    log = run.path / "log.txt"
    log.symlink_to(tmp_path / "log.txt")  # whoever started it may be told elsewhere
    with (elsewhere / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(elsewhere).free)
    assert train(run) == 2
    assert run.state().status == "queued" and not run.is_locked()
    assert "MiB are needed" in log.read_text() and "training state is whole" not in log.read_text()
    (elsewhere / "ballast").unlink()
    assert train(run) == 0 and len(losses(run)) == 8


def test_what_is_said_to_be_needed_is_what_it_takes(tiny_model, pictures, elsewhere):
    """Every training state and finished file weighs at most what was told, and not much less."""
    run = of_kind("none", tiny_model, pictures)
    assert train(run) == 0
    told = run.plan()["space"]
    weighs = [sum(f.stat().st_size for f in s.iterdir()) / 2**20 for s in states(run)]
    (finished,) = [sum(f.stat().st_size for f in (run.checkpoints / "cat").rglob("*") if f.is_file()) / 2**20]
    assert max(weighs) <= told["state"] <= max(weighs) + 1.5
    assert finished <= told["checkpoint"] <= finished + 6


@posix
@pytest.mark.parametrize("number", [errno.EFBIG, errno.EIO])
def test_a_folder_that_takes_no_more_files(tiny_model, pictures, number):
    run = new_run(config(tiny_model, pictures, output=OFTEN, train=LENGTH))
    assert faults.train(run, faults.refused_files, "step", 4, number) == 2
    error = run.state().error
    assert os.strerror(number) in error and str(run.path) in error and "resume the run" in error
    assert ("MiB are needed" in error) == (number == errno.EFBIG)
    faults.require_ended(run)
    faults.require_whole(run)
    assert [p.name for p in states(run)] == ["step-00000002"] and not faults.leftovers(run.path)


def test_the_runs_folder_is_deleted_under_it(tiny_model, pictures):
    """It ends, and does not make a new folder of that name with half a run in it."""
    run = new_run(config(tiny_model, pictures, output=OFTEN, train={"steps": 2000}))
    assert faults.train(run, faults.delete, "step", 5, str(run.path)) == 2
    assert not run.path.exists()


def test_the_output_folder_is_deleted_under_it(tiny_model, pictures, tmp_path):
    out = tmp_path / "out"
    run = new_run(config(tiny_model, pictures, output={**OFTEN, "path": str(out)}, train=LENGTH))
    assert faults.train(run, faults.delete, "step", 6, str(out)) == 0
    assert [p.name for p in out.iterdir()] == ["cat.safetensors"]


@pytest.mark.slow
def test_the_output_disk_is_taken_out(tiny_model, pictures, tmp_path):
    """Nothing is written where it was mounted."""
    with faults.small_disk(tmp_path / "stick", 8) as stick:
        run = new_run(config(tiny_model, pictures, output={**OFTEN, "path": str(stick)}, train=LENGTH))
        assert faults.train(run, faults.run_words, "step", 6, "umount", "-l", str(stick)) == 2
        assert "output.path" in run.state().error and "another disk" in run.state().error
        assert list(stick.iterdir()) == []
    faults.require_ended(run)
    assert [p.name for p in states(run)][-1] == "step-00000006"


@pytest.mark.long
@pytest.mark.slow
def test_the_output_disk_becomes_read_only(tiny_model, pictures, tmp_path):
    with faults.small_disk(tmp_path / "stick", 8) as stick:
        run = new_run(config(tiny_model, pictures, output={**OFTEN, "path": str(stick)}, train=LENGTH))
        assert faults.train(run, faults.run_words, "step", 6, "mount", "-o", "remount,ro", str(stick)) == 2
        error = run.state().error
        assert f"{stick}/cat.safetensors: cannot be read or written any more (Read-only file system)" in error
        faults.require_ended(run)
        assert [p.name for p in stick.iterdir()] == ["cat-step00000004.safetensors"]
        subprocess.run(["mount", "-o", "remount,rw", str(stick)], check=True)
        assert train(run) == 0 and (stick / "cat.safetensors").exists()


def test_read_only_folders_are_named_before_the_start(tiny_model, pictures, tmp_path, monkeypatch):
    with faults.small_disk(tmp_path / "disk", 1) as folder:
        (folder / "home").mkdir()
        tiny.pictures(folder / "pictures")
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        monkeypatch.setenv("LIMNER_HOME", str(folder / "home"))
        given = {"output": {"path": str(folder / "out")}, "memory": {"cache_path": str(folder / "a" / "cache")}}
        findings, _ = examine(config(tiny_model, folder / "pictures", **given), None)
    said = {f.field: f.message for f in findings if "cannot be written (Read-only file system)" in f.message}
    assert said.keys() == {"LIMNER_HOME", "output.path", "memory.cache_path"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="makes root an ordinary user, by Linux's capabilities")
def test_a_user_who_may_not_write_there(tiny_model, pictures, tmp_path):
    run = new_run(config(tiny_model, pictures, output={**OFTEN, "path": str(tmp_path / "out")}, train=LENGTH))
    (tmp_path / "out").mkdir(mode=0o555)
    assert faults.train(run, faults.ordinary_user) == 2, run.tail()
    assert f"{tmp_path}/out" in run.state().error and "Permission denied" in run.state().error
    faults.require_ended(run)
    assert list((tmp_path / "out").iterdir()) == []


ODD = "it's \u732b \U0001f468\u200d\U0001f680 100 % #1 & co; (x) [y] {z} = ~ ,"


def test_odd_names_work(tiny_model, pictures, tmp_path):
    out = tmp_path / ("\U0001f408 'q' \"q\"\n" if os.name != "nt" else "out") / ("y" * 255)
    name = ODD + "x" * (200 - len(ODD.encode()))  # as long as may be
    embedding = {"token": "number"}
    chosen = config(tiny_model, pictures, output={"name": name, "path": str(out.with_name("y" * 255)), "save_every_steps": 1,
                                                  "keep_last": 1}, embedding=embedding, train={"steps": 2})  # fmt: skip
    run = new_run(chosen)
    assert train(run) == 0, run.tail()
    found = sorted(p.name for p in out.iterdir())
    assert len(found) >= 2 and all(n.startswith(name) and n.endswith(".safetensors") for n in found)
    assert not faults.leftovers(out)
