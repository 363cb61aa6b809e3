"""Several processes of which one stands still or never answers: all end with their stacks, and the run goes on by itself."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

import hanging
import tiny
from limner import queue, runner
from trainer import config, losses, new_run, train

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_stands_still_ends_all_and_the_run_goes_on(
    rank: int, home: Path, tmp_path: Path, tiny_model: Path, known_machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = tiny.pictures(tmp_path / "pictures")
    sections = {"train": {"steps": 80}, "output": {"state_every_steps": 10}}
    monkeypatch.setenv(hanging.SECONDS, "20")
    run = new_run(config(tiny_model, pictures, launch={"num_processes": 2}, **sections))
    queue.enqueue(run)
    runner.ensure_runner()
    hanging.wait(lambda: run.state().step >= 11, 240, run.tail)
    launcher = psutil.Process(run.state().parent)
    found = [p for p in launcher.children(recursive=True) if "limner.engine" in p.cmdline()]
    workers = sorted(found, key=lambda p: int(p.environ()["RANK"]))
    workers[rank].send_signal(signal.SIGSTOP)
    took = hanging.wait(lambda: run.state().status == "waiting", 120, run.tail)
    print(f"rank {rank}: found after {took:.1f} s, where 20 s are the limit")
    assert not psutil.wait_procs([*workers, launcher], timeout=20)[1], "the launcher says it just before it ends"
    # the main process is watched by the runner too, which may be the first to find it; then nobody waited long enough to tell
    if rank == 0 and "The trainer stood still" in run.state().error:
        assert "it was stopped by a signal" in run.state().error
    else:
        assert f"process {rank + 1} of 2 gave no answer any more" in run.state().error
        assert "The stacks of all its threads:" in run.log.read_text() and "sum_gradients" in run.log.read_text()
    hanging.wait(lambda: run.state().status in ("done", "failed"), 240, run.tail)
    assert run.state().status == "done", run.state().error
    monkeypatch.delenv(hanging.SECONDS)
    one = new_run(config(tiny_model, pictures, **{**sections, "train": {"steps": 80, "accumulation": 2}}))
    assert train(one) == 0
    assert len(losses(run)) == 80 and losses(run)[:50] == pytest.approx(losses(one)[:50], rel=1e-4)


def test_a_call_that_holds_the_interpreter(
    home: Path, tmp_path: Path, tiny_model: Path, known_machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No Python thread runs any more: the runner finds it, and faulthandler still writes where it is."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import ctypes, os, pathlib, sys, threading, time\n"
        "mark = pathlib.Path(os.environ['LIMNER_HOME'], 'hold')\n"
        "def hold():\n"
        "    while not mark.exists(): time.sleep(0.05)\n"
        "    mark.unlink()\n"
        "    ctypes.PyDLL(None).sleep(3600)\n"
        "if 'limner.engine' in sys.orig_argv: threading.Thread(target=hold, daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ["PYTHONPATH"]]))
    monkeypatch.setenv(hanging.SECONDS, "10")
    run = new_run(config(tiny_model, tiny.pictures(tmp_path / "pictures"), train={"steps": 200}))
    hanging.begin(run)
    (home / "hold").touch()
    took = hanging.wait(lambda: run.state().status == "waiting", 120, run.tail)
    print(f"found after {took:.1f} s, where 10 s are the limit")
    assert "The trainer stood still" in run.state().error
    assert "in hold" in run.log.read_text()
    hanging.wait(lambda: run.state().status in ("done", "failed"), 240, run.tail)
    assert run.state().status == "done", run.state().error
