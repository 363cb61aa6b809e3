"""SIGTERM, ctrl-C and a request to stop: in time wherever a run is, with all finished steps saved; twice means now."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import faults
import forked
from limner import jobs, runs
from limner.config import files
from limner.engine.stopping import StopFlag
from limner.errors import StopRequested
from limner.runs import Run
from trainer import Moment, config, launch, new_run, result, states, train

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="POSIX signals")]
LONG = {"prompts": ["picture number 1 --s 20 --w 16 --h 16", "a word --s 20 --w 16 --h 16"], "every_steps": 4}
HELD = {"share": 0.5, "every_steps": 2}


def wait(condition: Callable[[], object], run: Run) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until, (run.state(), run.tail())
        time.sleep(0.02)


@pytest.mark.long
@pytest.mark.parametrize(
    ("sections", "moments"),
    [
        # it asks at the start, then before each picture and before each step of the solver, or each held-out picture
        ({"sample": LONG | {"at_start": True}}, [("term", 15, 0), ("stop", 70, 4), ("term", 80, 8)]),
        ({"validation": HELD}, [("term", 3, 0), ("stop", 5, 2)]),
    ],
    ids=["pictures", "validation"],
)
def test_a_look_is_left_and_made_up_for(
    tiny_model: Path, pictures: Path, sections: dict[str, Any], moments: list[tuple[str, int, int]]
) -> None:
    chosen = config(tiny_model, pictures, output={"state_every_steps": 3}, train={"steps": 9}, **sections)
    whole, run = new_run(chosen), new_run(chosen)
    assert train(whole) == 0
    for what, count, step in moments:
        assert train(run, Moment(what, "look", count)) == (143 if what == "term" else 0), run.tail()
        assert (run.state().status, run.state().step) == ("stopped", step)
        assert [p.name for p in states(run)][-1:] == ([f"step-{step:08d}"] if step else [])
        assert not (run.samples / f"step-{step:08d}_01.png").exists()
    assert train(run) == 0
    assert result(run) == result(whole)
    told = [[e["loss"] for e in one.history() if e["event"] == "validation"] for one in (run, whole)]
    assert told[0] == told[1] and bool(told[0]) == ("validation" in sections)


def test_at_the_last_step_what_is_due_is_left_for_the_next_time(tiny_model: Path, pictures: Path) -> None:
    chosen = config(tiny_model, pictures, train={"steps": 4}, sample=LONG)
    run = new_run(chosen)
    assert train(run, Moment("term", "step", 4)) == 143
    assert (run.state().status, run.state().step) == ("stopped", 4) and (run.checkpoints / "cat.safetensors").exists()
    assert train(run) == 0 and run.state().status == "done" and len(list(run.samples.iterdir())) == 2


def test_twice_means_now(tiny_model: Path, pictures: Path) -> None:
    """In a step of minutes: the first signal waits for its end, the second does not. What was saved before is whole."""
    chosen = config(tiny_model, pictures, train={"steps": 4, "accumulation": 4096}, output={"state_every_steps": 1})
    run = new_run(chosen)
    process = launch(run)
    wait(lambda: run.state().phase == "training", run)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGTERM)  # at once: whoever started it passes the same wish on
    time.sleep(1.3)
    assert process.is_alive() and run.state().status == "running"
    for _ in range(20):  # on a busy machine it may have seen the first ones late
        os.kill(process.pid, signal.SIGTERM)
        process.join(1.3)
        if process.exitcode is not None:
            break
    assert process.exitcode == 143
    assert run.state().status == "failed" and states(run) == [] and not run.is_locked()


def _flagged(said: Any, is_alone: bool) -> None:
    flag = StopFlag()
    try:
        with flag.at_once(is_alone=is_alone):
            said.send("ready")
            while not flag.is_set:
                time.sleep(0.01)
        said.send(flag.exit_code)
    except StopRequested:
        said.send("left")
    time.sleep(60)


@pytest.mark.parametrize("is_alone", [False, True])
def test_the_flag(is_alone: bool) -> None:
    forked.start_server()
    hears, says = forked.CONTEXT.Pipe(duplex=False)
    process = forked.CONTEXT.Process(target=_flagged, args=(says, is_alone))
    process.start()
    assert hears.recv() == "ready"
    os.kill(process.pid, signal.SIGINT)
    assert hears.recv() == ("left" if is_alone else 130)
    time.sleep(1.1)
    os.kill(process.pid, signal.SIGTERM)
    process.join(10)
    assert process.exitcode == 143


@pytest.mark.long
def test_the_same_command_started_again_goes_on(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    """As on a machine that is taken away without a word, then with SIGTERM, and given back: `limner train FILE --resume`."""
    chosen = config(tiny_model, pictures, train={"steps": 40})
    whole = new_run(chosen)
    assert train(whole) == 0
    expected = result(whole)
    runs.delete(whole)
    file = tmp_path / "cat.toml"
    file.write_text(files.render(chosen), encoding="utf-8")
    words = [sys.executable, "-m", "limner.cli", "train", str(file), "--resume"]
    with forked.forks(), (tmp_path / "said.txt").open("wb") as said:
        first = subprocess.Popen(words, stdout=said, stderr=said)
        wait(lambda: runs.all_runs() and runs.all_runs()[0].state().step >= 6, Run(tmp_path))
        (run,) = runs.all_runs()
        for pid in (first.pid, run.state().pid):
            os.kill(pid, signal.SIGKILL)
        first.wait()
        wait(lambda: run.state().status == "failed", run)
        second = subprocess.Popen(words, stdout=said, stderr=said)
        wait(lambda: run.state().step >= 12, run)
        second.send_signal(signal.SIGTERM)
        assert second.wait(60) == 143, (tmp_path / "said.txt").read_text()
        stopped = run.state()
        assert stopped.status == "stopped" and 12 <= stopped.step < 40
        assert subprocess.Popen(words, stdout=said, stderr=said).wait(120) == 0, (tmp_path / "said.txt").read_text()
        assert subprocess.Popen(words, stdout=said, stderr=said).wait(60) == 0
    assert "is finished" in (tmp_path / "said.txt").read_text()
    assert [r.id for r in runs.all_runs()] == [run.id] and result(run) == expected
    with runs.lock("runner", 60):
        pass  # it has left


def _fetch_for_hours() -> None:
    from limner.engine import prepare

    prepare.find_base = lambda _: time.sleep(7200)


def test_a_stop_is_heard_while_a_model_is_fetched(tiny_model: Path, pictures: Path) -> None:
    """Nobody looks at requests there: the trainer is told."""
    run = new_run(config(tiny_model, pictures))
    forked.start_server()
    process = forked.CONTEXT.Process(
        target=faults._train, args=(str(run.path), os.environ["LIMNER_HOME"], _fetch_for_hours, ())
    )
    process.start()
    wait(lambda: run.state().status == "running", run)
    began = time.monotonic()
    assert jobs.stop(run).status == "stopped" and time.monotonic() - began < 10
    process.join(60)
    assert process.exitcode == 128 + signal.SIGTERM
    assert train(run) == 0
