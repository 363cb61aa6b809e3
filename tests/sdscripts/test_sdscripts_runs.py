"""Runs that sd-scripts trains, as real processes: what is left of them, however they end."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import fake_sd_scripts as fake
from limner import disk, jobs, progress
from limner.runs import Run, State
from limner.web import run_facts

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")


@pytest.fixture(autouse=True)
def _machine(home: Path) -> None:
    fake.known_machine(home)


def new_run(folder: Path, trouble: str = "", **sections: dict[str, Any]) -> Run:
    return jobs.prepare(fake.config(folder, trouble, **sections))


def started(run: Run) -> subprocess.Popen[bytes]:
    run.write_state(State("waiting", step=run.state().step, steps=run.state().steps))
    process = jobs.start(run, "cpu")
    assert process is not None
    return process


def ended(run: Run, process: subprocess.Popen[bytes]) -> int:
    code = process.wait(60)
    jobs.note_exit(run, process.pid, code)
    return code


def train(run: Run) -> int:
    return ended(run, started(run))


def wait_for(holds: Callable[[], object], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def of_kind(run: Run, kind: str) -> list[dict[str, Any]]:
    return [e for e in run.history() if e["event"] == kind]


def warnings(run: Run) -> str:
    return "\n".join(e["message"] for e in of_kind(run, "warning"))


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = {"prompts": ["a cat --d 5", 'b "$(touch x)" --n q --w 256'], "every_steps": 10}
    run = new_run(tmp_path, "keep", sample=prompts, output={"title": "T"})
    assert train(run) == 0
    state = run.state()
    assert (state.status, state.phase, state.step, state.steps, state.error) == ("done", "", 20, 20, "")
    # the losses are those that tqdm prints, three digits each
    assert [(e["step"], e["loss"], e["epoch"]) for e in of_kind(run, "step")] == [
        (n, float(f"{1 / n:.3g}"), 1 + (n > 10)) for n in range(1, 21)
    ]
    assert [(e["event"], e["step"]) for e in run.history() if e["event"] in ("start", "stop")] == [("start", 0), ("stop", 20)]
    # what sd-scripts removed is gone here too, and what is kept lies in one place only
    assert names(run.checkpoints) == ["cat-step00000015.safetensors", "cat-step00000020.safetensors", "cat.safetensors"]
    assert all((run.checkpoints / name).stat().st_nlink == 1 for name in names(run.checkpoints))
    assert {(e["step"], Path(e["path"]).name) for e in of_kind(run, "checkpoint")} >= {(15, "cat-step00000015.safetensors")}
    assert names(run.states) == ["step-00000015", "step-00000020"]
    assert names(run.path / "sd-scripts") == ["config.toml", "dataset.toml", "prompts.json"]
    samples = [(e["step"], e["path"], e["prompt"], e["seed"]) for e in of_kind(run, "sample")]
    assert samples == [
        (10, "step-00000010_00.png", "a cat", 5), (10, "step-00000010_01.png", 'b "$(touch x)"', 1),
        (20, "step-00000020_00.png", "a cat", 5), (20, "step-00000020_01.png", 'b "$(touch x)"', 1),
    ]  # fmt: skip
    assert run_facts.sample_names(run) == [path for _, path, _, _ in samples]
    assert set(run_facts.checkpoint_files(run, run.config(), {})) == set(names(run.checkpoints))
    told = fake.seen(tmp_path / "sd-scripts")
    assert told["arguments"]["metadata_title"] == "T" and told["arguments"]["network_module"] == "networks.lora"
    ((subset,),) = [d["subsets"] for d in told["dataset"]["datasets"]]
    assert subset == {"image_dir": str(tmp_path / "pictures"), "num_repeats": 1, "caption_extension": ".txt"}
    written = json.loads((run.path / "sd-scripts" / "prompts.json").read_text(encoding="utf-8"))
    assert (written[1]["prompt"], written[1]["negative_prompt"], written[1]["width"]) == ('b "$(touch x)"', "q", 256)
    command = disk.read_json(run.path / "command.json")
    words, folder = json.loads((tmp_path / "sd-scripts" / "launched.json").read_text(encoding="utf-8"))
    assert command["argv"][1:3] == ["-m", "accelerate.commands.launch"] and command["argv"][3:] == words
    assert command["folder"] == folder == str(tmp_path / "sd-scripts")
    log = run.log.read_text(encoding="utf-8")
    assert "running training / 学習開始\n" in log and log.count("avr_loss") < 20 and "\r" not in log
    assert progress.show(run) == 0
    shown = capsys.readouterr().out
    assert "done, step 20 of 20" in shown and str(run.checkpoints / "cat.safetensors") in shown


def test_a_crash_is_told_in_its_own_words_and_the_run_goes_on_from_its_state(tmp_path: Path) -> None:
    run = new_run(tmp_path, "crash late", output={"save_every_steps": 5})
    assert train(run) == 1
    state = run.state()
    assert (state.status, state.step) == ("failed", 7)
    said = "sd-scripts: RuntimeError: Error(s) in loading state_dict for UNet: size mismatch for conv_in"
    assert state.error == said and of_kind(run, "stop")[-1]["error"] == said
    assert "CalledProcessError" in run.log.read_text(encoding="utf-8")
    assert names(run.states) == ["step-00000005"] and names(run.checkpoints) == ["cat-step00000005.safetensors"]
    # a newer state that was not written to its end is passed over
    (run.states / "step-00000006").mkdir()
    (tmp_path / "sd-scripts" / "trouble.txt").write_text("", encoding="utf-8")
    assert train(run) == 0
    told = fake.seen(tmp_path / "sd-scripts")["arguments"]
    assert told["resume"] == str(run.states / "step-00000005") and told["max_train_steps"] == 20
    assert (told["initial_step"], told["skip_until_initial_step"]) == (5, True)
    assert told["output_dir"].endswith("output-from-5")
    assert [e["step"] for e in of_kind(run, "step")] == list(range(1, 21))
    assert "step-00000006" in warnings(run)
    assert (run.state().status, run.state().step, run.state().steps) == ("done", 20, 20)
    steps = [f"cat-step{n:08d}.safetensors" for n in (5, 10, 15, 20)]
    assert names(run.checkpoints) == [*steps, "cat.safetensors"]


@pytest.mark.long
def test_it_is_resumed_in_a_later_epoch_under_the_runs_own_steps(tmp_path: Path) -> None:
    """sd-scripts counts from the epoch it begins in: the run's step 14, in epochs of 10, is its step 4."""
    run = new_run(tmp_path, "slow 0.05", train={"steps": 40}, output={"save_every_steps": 7})
    process = started(run)
    wait_for((run.states / "step-00000014").exists)
    run.request("stop")
    assert ended(run, process) == 0 and run.state().status == "stopped"
    (tmp_path / "sd-scripts" / "trouble.txt").write_text("", encoding="utf-8")
    first = int(names(run.states)[-1][5:])
    assert first % 10 and first < 40
    before = set(names(run.checkpoints))
    assert train(run) == 0
    # it saves at every seventh of its own steps, which are 10 or 20 fewer than the run's
    own = [n + first // 10 * 10 for n in range(first % 10 + 1, 41 - first // 10 * 10) if n % 7 == 0]
    made = {f"cat-step{n:08d}.safetensors" for n in own}
    assert set(names(run.checkpoints)) == before | made | {"cat.safetensors"}
    assert {e["step"] for e in of_kind(run, "checkpoint")} >= {*own, 40}
    assert names(run.states)[-1] == f"step-{own[-1]:08d}"
    assert [e["step"] for e in of_kind(run, "step")] == list(range(1, 41))


def test_a_polite_stop_keeps_what_was_saved_and_says_what_is_lost(tmp_path: Path) -> None:
    run = new_run(tmp_path, "slow 0.1")
    process = started(run)
    wait_for(lambda: of_kind(run, "checkpoint"))
    run.request("sample")
    run.request("save")
    disk.write_text(run.path / "control" / "change-1.toml", "[optimizer]\nlr = 1.0\n")
    wait_for(lambda: "cannot be changed" in warnings(run))
    assert run.state().status == "running"
    assert "sample.every_steps" in warnings(run) and "output.save_every_steps" in warnings(run)
    run.request("stop")
    assert ended(run, process) == 0
    state = run.state()
    assert state.status == "stopped" and 5 <= state.step < 20
    assert "cannot save when it is stopped: its last training state is of step" in warnings(run)
    assert "cat-step00000005.safetensors" in names(run.checkpoints) and "cat.safetensors" not in names(run.checkpoints)


@pytest.mark.long
def test_a_save_that_was_begun_is_waited_for(tmp_path: Path) -> None:
    run = new_run(tmp_path, "slow save")
    process = started(run)
    wait_for(lambda: run.state().phase == "saving")
    run.request("stop")
    assert ended(run, process) == 0
    assert run.state().status == "stopped"
    assert names(run.checkpoints)[0] == "cat-step00000005.safetensors" and names(run.states)[0] == "step-00000005"


@pytest.mark.long
def test_one_that_ignores_signals_is_ended_all_the_same(tmp_path: Path) -> None:
    run = new_run(tmp_path, "ignore hang")
    process = started(run)
    wait_for(lambda: run.state().phase == "saving")
    below = psutil.Process(process.pid).children(recursive=True)
    assert len(below) == 2  # the launcher and the script
    begun = time.monotonic()
    state = jobs.stop(run, now=True)
    assert time.monotonic() - begun < jobs.GRACE_SECONDS  # by its supervisor, not by who asked
    assert (state.status, ended(run, process)) == ("stopped", 0)
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in below)
    # half a file is no checkpoint
    assert names(run.checkpoints) == [] and run.state().step in (4, 5)


def test_killing_the_supervisor_ends_all(tmp_path: Path) -> None:
    run = new_run(tmp_path, "ignore slow save")
    process = started(run)
    wait_for(lambda: run.state().phase == "saving")
    below = psutil.Process(process.pid).children(recursive=True)
    jobs.stop_at_once(run)
    assert ended(run, process) == -9
    wait_for(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in below))
    assert run.state().status == "failed" and run.state().error.startswith("the trainer was killed (signal 9)")


@pytest.mark.long
def test_what_never_trained_says_why_and_what_lost_its_steps_is_not_resumed(tmp_path: Path) -> None:
    run = new_run(tmp_path, "crash early")
    assert train(run) == 1
    assert (run.state().status, run.state().error) == ("failed", "sd-scripts: ValueError: no such model: 猫")
    (tmp_path / "sd-scripts" / "trouble.txt").write_text("silent", encoding="utf-8")
    assert train(run) == 1
    assert run.state().error == "sd-scripts ended without writing a model; the log says why."
    assert names(run.checkpoints) == []
    run.write_state(State("stopped", step=4, steps=20))
    assert train(run) == 2
    assert "before sd-scripts had saved a training state" in run.state().error
    assert "output.save_every_steps" in run.state().error


def test_a_loss_that_is_no_number_is_said_once(tmp_path: Path) -> None:
    run = new_run(tmp_path, "nan", output={"save_every_steps": None})
    assert train(run) == 0
    assert of_kind(run, "step") == [] and warnings(run).count("not a number") == 1


HOSTILE = "a'b\"; $(touch pwned) `touch pwned` & %PATH% 猫"


def test_hostile_values_arrive_as_they_are_and_run_nothing(tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s a "folder" $(touch pwned)'
    folder.mkdir()
    run = new_run(
        folder, "",
        data={"trigger": HOSTILE, "caption_prefix": "x\n[[datasets]]\ny = 1"},
        output={"name": "-cat $(x) 'q'", "title": f"{HOSTILE}\nresume = '/'", "save_every_steps": None},
        sample={"prompts": [HOSTILE + " --d 1"], "every_steps": 20},
    )  # fmt: skip
    (folder / "pictures" / "p0.txt").unlink()
    assert train(run) == 0
    told = fake.seen(folder / "sd-scripts")
    assert told["arguments"]["metadata_title"] == f"{HOSTILE}\nresume = '/'" and "resume" not in told["arguments"]
    ((subset,),) = [d["subsets"] for d in told["dataset"]["datasets"]]
    assert subset["class_tokens"] == HOSTILE and subset["caption_prefix"] == "x\n[[datasets]]\ny = 1"
    assert names(run.checkpoints) == ["-cat $(x) 'q'.safetensors"]
    assert [e["prompt"] for e in of_kind(run, "sample")] == [HOSTILE]
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.long
def test_a_whole_model_goes_on_only_under_a_constant_schedule(tmp_path: Path) -> None:
    given: dict[str, Any] = {"adapter": {"kind": "none"}, "output": {"layout": "original"}}
    run = new_run(tmp_path, "crash late", optimizer={"schedule": "constant"}, **given)
    assert train(run) == 1 and names(run.states) == ["step-00000005"]
    (tmp_path / "sd-scripts" / "trouble.txt").write_text("", encoding="utf-8")
    assert train(run) == 0
    told = fake.seen(tmp_path / "sd-scripts")["arguments"]
    assert told["max_train_steps"] == 15 and "initial_step" not in told
    assert [e["step"] for e in of_kind(run, "step")] == list(range(1, 21))
    assert names(run.checkpoints)[1:3] == ["cat-step00000010.safetensors", "cat-step00000015.safetensors"]

    other = new_run(tmp_path, **given)
    other.write_state(State("stopped", step=5, steps=20))
    os.rename(run.states / "step-00000015", other.states / "step-00000005")
    assert train(other) == 2
    assert "optimizer.schedule" in other.state().error and "'cosine'" in other.state().error
