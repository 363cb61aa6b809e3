"""A real Ray cluster of one machine: runs are submitted from the page and the terminal, followed, stopped and fetched.

Ray's dashboard listens on 127.0.0.1 and asks for a token; the cluster ends with this module, by its own processes' ids.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file
from starlette.testclient import TestClient

import tiny
from limner import disk, jobs, queue, runner, runs
from limner.runs import LIVE, Run
from limner.settings import Settings
from limner.web.app import make_app
from limner.web.context import Context
from limner.web.words import Words
from trainer import losses

pytest.importorskip("ray.job_submission", reason="needs ray[default]: pip install limner[ray]")
pytestmark = pytest.mark.slow

SECONDS = 240.0
"""Far more than it takes on a machine that is not busy."""


def until(true: Callable[[], object], run: Run | None = None, seconds: float = SECONDS) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{run.state()}\n{run.tail()}" if run is not None else "not in time"
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def cluster(machine_file: Path) -> Iterator[str]:
    """The address of a Ray head's dashboard. What runs there has a home of its own, as another machine would."""
    folder = Path(tempfile.mkdtemp(prefix="lr-", dir="/tmp"))  # sockets' paths must be short
    (folder / "home").mkdir()
    shutil.copy(machine_file, folder / "home" / "machine.json")
    dashboard, client, agent = free_ports(3)
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = os.environ | token | {
        "RAY_USAGE_STATS_ENABLED": "0", "LIMNER_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    words = [
        "start", "--head", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}",
        "--port=0", "--min-worker-port=0", "--max-worker-port=0", "--num-cpus=2", "--object-store-memory=80000000",
        f"--temp-dir={folder / 'ray'}",
    ]  # fmt: skip
    command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", *words]
    with (folder / "head.txt").open("wb") as log:
        head = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment)
    before = {name: os.environ.get(name) for name in token}
    os.environ.update(token)
    address = f"http://127.0.0.1:{dashboard}"

    def answers() -> bool:
        assert head.poll() is None, (folder / "head.txt").read_text()
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=2).close()
        except urllib.error.HTTPError as error:
            return error.code == 401  # it is there, and wants the token
        except OSError:
            return False
        return True

    try:
        until(answers)
        yield address
    finally:
        _end(head)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        shutil.rmtree(folder, ignore_errors=True)


def _end(head: subprocess.Popen[bytes]) -> None:
    """End the head and all it started."""
    processes = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)] if head.poll() is None else []
    head.terminate()
    _, alive = psutil.wait_procs(processes, 10)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    head.wait()


@pytest.fixture
def values(home: Path, machine_file: Path, tiny_model: Path, tmp_path: Path, cluster: str) -> dict[str, str]:
    """The options of a small run for the cluster, as typed."""
    home.mkdir(parents=True)
    shutil.copy(machine_file, home / "machine.json")
    return {
        "model.base": str(tiny_model), "data.path": str(tiny.pictures(tmp_path / "pictures")), "data.resolution": "32",
        "data.bucket_min_px": "16", "data.bucket_max_px": "64", "data.bucket_step_px": "8", "adapter.rank": "4",
        "train.batch_size": "2", "train.seed": "3", "optimizer.lr": "1e-3", "output.name": "cat", "output.dtype": "fp32",
        "sample.prompts": '["a cat --s 2 --w 16 --h 16"]', "launch.device": "cpu", "launch.num_threads": "1",
        "launch.target": "ray", "launch.ray_address": cluster, "launch.upload": "all",
    }  # fmt: skip


@pytest.fixture
def page(values: dict[str, str], tmp_path: Path) -> TestClient:
    """Asks the application as its page does."""
    client = TestClient(
        make_app(Context(Settings(), (tmp_path.parent,), Words())),
        base_url="http://127.0.0.1",
        headers={"Origin": "http://127.0.0.1"},
    )
    assert client.get("/").status_code == 200
    return client


@pytest.mark.long
def test_from_the_page_sent_over_and_fetched(page: TestClient, values: dict[str, str]) -> None:
    answer = page.post("/api/train", json={"values": values | {"train.steps": "6"}})
    assert answer.status_code == 200, answer.text
    run = runs.named(answer.json()["run"])
    until(lambda: run.state().status not in ("waiting", *LIVE), run)
    assert run.state().status == "done", run.tail()
    assert [e["step"] for e in run.history() if e["event"] == "step"] == [1, 2, 3, 4, 5, 6]
    (checkpoint,) = [e for e in run.history() if e["event"] == "checkpoint"]
    assert Path(checkpoint["path"]) == run.checkpoints / "cat.safetensors"
    assert sum(v.abs().sum().item() for v in load_file(run.checkpoints / "cat.safetensors").values()) > 0
    brief = page.get("/api/runs").json()["runs"][run.id]
    assert brief["status"] == "done" and brief["sample"] is not None
    assert page.get(f"/api/runs/{run.id}/samples/{brief['sample']}").content.startswith(b"\x89PNG")
    assert page.get(f"/api/runs/{run.id}/checkpoints/cat.safetensors").status_code == 200
    assert not (run.path / "job").exists() and not (run.path / "job.zip").exists()


@pytest.mark.long
def test_from_the_terminal_stopped_resumed_and_stopped_at_once(values: dict[str, str], home: Path) -> None:
    flags = [word for name, value in (values | {"train.steps": "100000"}).items() for word in (f"--{name}", value)]
    with (home / "said.txt").open("wb") as said:
        train = subprocess.Popen([sys.executable, "-m", "limner.cli", "train", *flags], stdout=said, stderr=said)
    until(lambda: runs.all_runs() or train.poll() is not None)
    assert train.poll() is None, (home / "said.txt").read_text()
    (run,) = runs.all_runs()
    until(lambda: run.state().step >= 3, run)
    state = run.state()
    assert state.status == "running" and psutil.Process(state.pid).cmdline()[-2] == "limner.targets"

    psutil.Process(state.pid).kill()  # who follows; the job does not notice, and another one follows it
    until(lambda: run.state().pid != state.pid and run.state().status == "running", run)
    job = disk.read_json(run.path / "target.json")["id"]
    stop = subprocess.run([sys.executable, "-m", "limner.cli", "runs", "stop", run.id], capture_output=True, text=True)
    assert stop.returncode == 0 and stop.stdout.startswith("stopped at step"), stop
    assert train.wait(30) == 0, (home / "said.txt").read_text()
    assert disk.read_json(run.path / "target.json")["id"] == job
    steps = [e["step"] for e, _ in run.events() if e["event"] == "step"]
    assert steps == list(range(1, len(steps) + 1)), "a line was lost, or came twice"
    (saved,) = [p.name for p in run.states.iterdir()]
    assert saved == f"step-{steps[-1]:08}" and not disk.manifest_faults(run.states / saved)

    queue.enqueue(run)
    runner.ensure_runner()
    until(lambda: run.state().step > steps[-1], run)
    resumed = [e for e, _ in run.events() if e["event"] == "resume"]
    assert [e["step"] for e in resumed] == [steps[-1]]
    assert disk.read_json(run.path / "target.json")["id"] != job
    assert len(losses(run)) >= len(steps)
    assert jobs.stop(run, now=True).status == "stopped"


@pytest.mark.long
def test_no_server_is_said_before_the_start(page: TestClient, values: dict[str, str]) -> None:
    (port,) = free_ports(1)
    began = time.monotonic()
    answer = page.post("/api/train", json={"values": values | {"launch.ray_address": f"http://127.0.0.1:{port}"}})
    assert answer.status_code == 422 and time.monotonic() - began < 5
    assert [f["field"] for f in answer.json()["findings"]] == ["launch.ray_address"]
    assert runs.all_runs() == []
