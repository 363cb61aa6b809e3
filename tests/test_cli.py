"""The commands as a user types them: real processes, exit codes, messages without tracebacks."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import forked
import tiny
from limner import queue, runs
from limner.config import Config, Launch, Output, files
from limner.runs import Run, State


def limner(*words: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`limner WORDS...`, forked."""
    with forked.forks():
        return started(*words, cwd=cwd)


def started(*words: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`limner WORDS...`, in an interpreter of its own."""
    command = [sys.executable, "-m", "limner.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd, stdin=subprocess.DEVNULL)


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path) -> Path:
    """A folder with pictures and a configuration, its name with spaces and beyond ASCII."""
    folder = tmp_path / "my pictures é 猫"
    tiny.pictures(folder / "pics")
    text = tiny.toml(
        model={"base": str(tiny_model)},
        data={"path": "pics", "resolution": 32},
        train={"steps": 3, "batch_size": 2},
        output={"name": "tiny"},
    )
    (folder / "run.toml").write_text(text, encoding="utf-8")
    return folder


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    for word in words:
        assert word in done.stderr


def test_what_is_wrong_with_the_home_is_said_with_all_else(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the runner, which the command starts before it looks, comes upon it first."""
    monkeypatch.setenv("LIMNER_HOME", str(project / "run.toml" / "home"))
    refused(limner("train", project / "run.toml", "--data.path", "nowhere"), "LIMNER_HOME", "data.path")


def test_help_lists_every_command():
    done = started("--help")
    assert done.returncode == 0
    for word in ("train", "check", "command", "sample", "demo", "config", "doctor", "runs"):
        assert word in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 80


def test_every_command_answers_help():
    for words in (["train"], ["check"], ["command"], ["sample"], ["demo"], ["doctor"], ["config", "new"], ["runs", "show"]):
        assert limner(*words, "--help").returncode == 0, words


def test_new_configuration_is_the_default_one(tmp_path: Path):
    done = limner("config", "new", tmp_path / "a.toml", "--family", "sd1", "--kind", "lora")
    assert done.returncode == 0, done.stderr
    assert files.read(tmp_path / "a.toml") == files.build({"model": {"family": "sd1"}}, {})
    refused(limner("config", "new", tmp_path / "a.toml"), "exists already")
    assert limner("config", "new", "--kind", "none").stdout.count('kind = "none"') == 1
    refused(limner("config", "new", "--kind", "lara"), "adapter.kind", "lora")


def test_options_are_found_by_kohya_name():
    assert "--adapter.rank" in limner("config", "options", "network_dim").stdout


def test_check_reports_everything_at_once(project: Path):
    done = limner("check", project / "run.toml", "--train.precision", "fp16", "--output.name", "a/b", "--train.epochs", "3")
    refused(done, "train.precision", "output.name", "train.epochs")
    assert done.stderr.count("error:") == 3


def test_check_passes_and_says_the_plan(project: Path):
    done = limner("check", project / "run.toml")
    assert done.returncode == 0, done.stderr
    assert "sd1 · lora · 4 pictures in 4 buckets at 32 px · 3 steps of 2" in done.stdout


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--optimizer.lerning_rate", "1"], "optimizer.lr"),
        (["--data.pth", "x"], "data.path"),
        (["nonsense.toml"], "nonsense.toml"),
        (["--data.path", "does-not-exist"], "does-not-exist"),
        (["--train.steps", "1e999"], "train.steps"),
        (["--model.base", "no/such/thing/at/all"], "model.base"),
        (["--data.path", "."], "data.path"),
        (["--output.name", "con"], "output.name"),
        (["--output.path", "/proc/nowhere"], "output.path"),
        (["stray.toml", "words"], "words"),
    ],
)
def test_mistakes_are_refused_in_words(words: list[str], named: str, tmp_path: Path):
    refused(limner("train", *words, cwd=tmp_path), named)
    assert not runs.all_runs()


def test_the_whole_path_by_words(project: Path):
    done = limner("train", project / "run.toml", "--sample.prompts", "a picture --s 2")
    assert done.returncode == 0, done.stderr
    assert "Done: 3 steps." in done.stdout
    run = runs.find("last")
    assert (run.checkpoints / "tiny.safetensors").exists()
    assert len(list(run.samples.glob("*.png"))) == 1
    listed = limner("runs", "list")
    assert run.id in listed.stdout and "done" in listed.stdout and "3/3" in listed.stdout
    assert "tiny.safetensors" in limner("runs", "show", "last").stdout
    refused(limner("runs", "resume", "last"), "finished")
    refused(limner("runs", "show", "nothing"), "nothing")
    picture = project / "out.png"
    words = ["a picture", "--model", files.read(run.path / "config.toml").model.base, "--out", picture, "--steps", "2"]
    assert limner("sample", *words, "--lora", run.checkpoints / "tiny.safetensors").returncode == 0
    assert picture.read_bytes()[:4] == b"\x89PNG"
    refused(limner("sample", *words, "--lora", project / "none.safetensors"), "--lora")
    assert limner("runs", "delete", "last").returncode == 0
    assert not runs.all_runs()


@pytest.fixture
def busy() -> Iterator[Run]:
    """A run that keeps the CPU busy, as long as the test lasts: this process says that it trains it."""
    run = runs.create(Config(output=Output(name="busy"), launch=Launch(device="cpu")))
    run.write_state(replace(run.starting(os.getpid()), status="running"))
    yield run
    run.write_state(State("done"))
    with runs.lock("runner", 60):
        pass  # the runner has left


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_training_waits_for_the_device_and_ctrl_c_takes_it_out_of_the_queue(project: Path, busy: Run):
    words = [sys.executable, "-u", "-m", "limner.cli", "train", str(project / "run.toml"), "--launch.device", "cpu"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # what a shell runs in the background ignores ctrl-C, and so would all that it starts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:  # "waiting to be started" may come first
            if line == f"waiting for {busy.id} to finish on cpu\n":
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    run = runs.find("tiny")
    assert (process.returncode, err) == (130, "")
    assert out.endswith(f"Taken out of the queue before it started. Start it with: limner runs resume {run.id}\n")
    assert run.state().status == "stopped" and queue.waiting() == [] and not (run.path / "log.txt").exists()


@pytest.mark.slow
def test_the_queue_by_words(busy: Run):
    made = [runs.create(Config(output=Output(name=name), launch=Launch(device="cpu"))) for name in "abc"]
    assert limner("runs", "queue").stdout == "No run is waiting.\n"
    refused(limner("runs", "move", "_a", "1"), "is not waiting")
    for run in made:
        queue.enqueue(run)
    listed = limner("runs", "queue").stdout.splitlines()
    assert [line.split()[:2] for line in listed] == [[str(i), run.id] for i, run in enumerate(made, 1)]
    assert all(f"waiting for {busy.id} to finish on cpu" in line for line in listed)
    assert limner("runs", "move", "_c", "1").returncode == 0
    assert queue.waiting() == [made[2].id, made[0].id, made[1].id]
    for place in ("0", "4"):
        refused(limner("runs", "move", "_c", place), "places 1 to 3")
    done = limner("runs", "stop", "_a")
    assert (done.returncode, done.stdout) == (0, "stopped: it had not started\n")
    assert queue.waiting() == [made[2].id, made[1].id]
    refused(limner("runs", "resume", "_b"), "in the queue already")
    refused(limner("runs", "delete", "_b"), "waiting in the queue")
    refused(limner("runs", "sample", "_b"), "is not running")
    assert limner("runs", "sample", "busy").returncode == limner("runs", "save", "busy").returncode == 0
    assert sorted(busy.take_requests()) == ["sample", "save"]
    for run in made:
        queue.remove(run)


def test_printed_command_can_be_pasted(project: Path):
    done = limner("command", project / "run.toml", "--output.name", "it's; touch x #")
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stdout)
    environment = dict(w.split("=", 1) for w in words if "=" in w and not w.startswith("-"))
    command = [w for w in words if "=" not in w or w.startswith("-")]
    assert command[1:3] == ["-m", "limner.engine"]
    if os.name != "nt":
        shell = subprocess.run(["sh", "-c", done.stdout], capture_output=True, text=True, timeout=300, cwd=project)
        assert shell.returncode == 0, shell.stderr
        assert runs.find("last").state().status == "done"
        assert not (project / "x").exists()
    assert environment["PYTHONUNBUFFERED"] == "1"


def test_doctor_names_torch_and_devices():
    done = started("doctor")
    assert done.returncode == 0
    assert "torch" in done.stdout and "device    cpu" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 120
