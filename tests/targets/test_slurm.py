"""Slurm's side: what sbatch is told, how its words are read; then a run through submitit's own stand-in on this machine."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

import tiny
import trainer
from limner import disk, jobs, queue, runner
from limner.config import Launch
from limner.errors import UserError
from limner.runs import LIVE, Run, State

pytest.importorskip("submitit", reason="needs submitit: pip install limner[slurm]")

from limner.targets import slurm
from limner.targets.job import Job, Seen

SBATCH = """#!/bin/sh
for file in "$@"; do :; done
cp "$file" "$(dirname "$0")/seen.sh"
[ -e "$(dirname "$0")/refuses" ] && { echo "sbatch: error: invalid partition specified: dark" >&2; exit 1; }
echo "Submitted batch job 4711"
"""
SACCT = """#!/bin/sh
echo "JobID|State|NodeList"
echo "4711|$(cat "$(dirname "$0")/state")|n1"
echo "4711.batch|RUNNING|n1"
"""
SCANCEL = """#!/bin/sh
echo "$@" > "$0.told"
"""


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slurm's commands as scripts, in a folder that is looked at first."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"sbatch": SBATCH, "sacct": SACCT, "srun": "#!/bin/sh\n", "scancel": SCANCEL}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def target(folder: Path, **options: object) -> slurm.SlurmTarget:
    return slurm.SlurmTarget(Job("slurm", "slurm", "", str(folder)), Launch(target="slurm", **options))  # type: ignore[arg-type]


def directives(script: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH --")]
    return {name: value.strip("'\"") for name, _, value in (line.partition("=") for line in lines)}


def test_what_sbatch_is_told(commands: Path, tmp_path: Path) -> None:
    options = {
        "slurm_partition": "gpu",
        "slurm_minutes": 90,
        "slurm_options": ["account=physics", "mail-type=END", "constraint=a100&nvlink"],
    }
    job = target(tmp_path, **options, job_gpus=2, job_cpus=12, job_memory_gib=48).submit(tmp_path)
    assert job.id == "4711"
    script = (commands / "seen.sh").read_text()
    told = directives(script)
    wanted = {"partition": "gpu", "time": "90", "gpus-per-node": "2", "cpus-per-task": "12", "mem": "48GB", "nodes": "1"}
    wanted |= {"ntasks-per-node": "1", "account": "physics", "mail-type": "END", "constraint": "a100&nvlink"}
    assert wanted.items() <= told.items(), told
    assert "submitit.core._submit" in script


def test_one_gpu_for_each_process_unless_it_trains_on_the_cpu(commands: Path, tmp_path: Path) -> None:
    target(tmp_path, num_processes=4).submit(tmp_path)
    assert directives((commands / "seen.sh").read_text())["gpus-per-node"] == "4"
    target(tmp_path, device="cpu").submit(tmp_path)
    assert "gpus-per-node" not in directives((commands / "seen.sh").read_text())


def test_a_refusal_is_said_in_sbatchs_words(commands: Path, tmp_path: Path) -> None:
    (commands / "refuses").touch()
    with pytest.raises(UserError, match="invalid partition specified: dark"):
        target(tmp_path, slurm_partition="dark").submit(tmp_path)


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("PENDING", "waiting"), ("REQUEUED", "waiting"), ("RUNNING", "running"), ("COMPLETING", "running"),
        ("COMPLETED", "ended"), ("CANCELLED by 1000", "ended"), ("CANCELLED+", "ended"), ("OUT_OF_MEMORY", "ended"),
        ("NODE_FAIL", "ended"), ("TIMEOUT", "ended"), ("UNKNOWN", "unknown"), ("PREEMPTED", "ended"),
    ],
)  # fmt: skip
def test_what_slurm_says_of_a_job(commands: Path, tmp_path: Path, word: str, status: str) -> None:
    (commands / "state").write_text(word)
    Run(tmp_path).write_state(State("running", step=3))
    asked = target(tmp_path)
    asked.submit(tmp_path)
    seen = asked.poll()
    assert (seen.status, seen.words.endswith(word)) == (status, True)
    if word == "PREEMPTED":  # and put back, as its own process has noted
        Run(tmp_path).write_state(State("queued", step=3))
        asked._asked = 0.0
        assert asked.poll().status == "waiting"
    disk.write_json(tmp_path / "exit.json", {"code": 0})
    assert asked.poll() == Seen("ended"), "the job's folder tells of its end before Slurm does"
    asked.stop()
    assert (commands / "scancel.told").read_text().split() == ["4711"]


def test_before_its_time_is_up_the_trainer_saves_and_the_job_is_put_back(tmp_path: Path) -> None:
    """`checkpoint` is what submitit calls then, in the job's process."""
    run = Run(tmp_path)
    (tmp_path / "control").mkdir()
    run.write_state(State("running", step=40, steps=90, pid=1))

    def ends() -> None:
        while not run.is_asked_to_stop():
            time.sleep(0.02)
        run.write_state(State("stopped", step=41, steps=90))

    threading.Thread(target=ends).start()
    again = slurm.Training(str(tmp_path)).checkpoint()
    assert again.function.folder == str(tmp_path)
    state = State.read(tmp_path / "state.json")
    assert (state.status, state.step, state.steps) == ("queued", 41, 90)


def until(true, run: Run, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{run.state()}\n{run.tail()}"
        time.sleep(0.1)


def is_trained(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.long
def test_a_run_by_submitit_on_this_machine(tiny_model: Path, tmp_path: Path, home: Path, machine_file: Path) -> None:
    """Submitted, followed, stopped, resumed, finished: the same as if it were trained here, to the bit."""
    home.mkdir()
    shutil.copy(machine_file, home / "machine.json")
    pictures = tiny.pictures(tmp_path / "pictures")
    sections = {"sample": {"prompts": ["a cat --s 2 --w 16 --h 16"], "every_steps": 100}, "train": {"steps": 200}}
    elsewhere = {"target": "slurm", "slurm_cluster": "local", "shared_path": str(tmp_path)}
    run = trainer.new_run(trainer.config(tiny_model, pictures, launch=elsewhere, **sections))
    queue.enqueue(run)
    runner.ensure_runner()
    until(lambda: run.state().step >= 3, run)
    trains = psutil.Process(State.read(tmp_path / run.id / "state.json").pid)
    assert is_trained(trains) and trains.pid != run.state().pid
    state = jobs.stop(run)
    assert state.status == "stopped" and 0 < state.step < 200 and not is_trained(trains)

    queue.enqueue(run)
    runner.ensure_runner()
    until(lambda: run.state().status not in ("waiting", *LIVE), run)
    assert run.state().status == "done", run.tail()
    assert [e["step"] for e in run.history() if e["event"] == "step"] == list(range(1, 201))
    here = trainer.new_run(trainer.config(tiny_model, pictures, **sections))
    assert trainer.train(here) == 0
    theirs, ours = (trainer.tensors_hash(r.checkpoints / "cat.safetensors") for r in (run, here))
    assert theirs == ours
    assert sorted(p.name for p in run.samples.iterdir()) == sorted(p.name for p in here.samples.iterdir()) != []
    assert trainer.losses(run) == trainer.losses(here)
    assert (run.checkpoints / "cat.safetensors").samefile(tmp_path / run.id / "checkpoints" / "cat.safetensors")


def test_a_job_that_is_gone_has_ended(tmp_path: Path) -> None:
    job = Job("slurm", "local", str(os.getpid()), str(tmp_path), process_started=psutil.Process().create_time())
    assert slurm.SlurmTarget(job, Launch()).poll() == Seen("running")
    gone = slurm.SlurmTarget(replace(job, process_started=1.0), Launch())
    assert gone.poll().status == "ended"
    gone.stop()  # a recycled process id is left alone
    assert signal.getsignal(signal.SIGTERM) is not None and psutil.Process().is_running()
