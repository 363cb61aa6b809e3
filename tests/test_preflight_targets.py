"""Before a job is submitted: what is missing here, who does not answer, what would not be found there."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from limner import launch, runner, runs
from limner.config import Config, Launch, files
from limner.errors import Finding, UserError
from limner.machine import Device, Machine
from limner.preflight import examine
from limner.preflight import targets as checks
from limner.targets.asked import sbatch_options

CPU = Machine("2.13.0", "cpu", (Device("cpu", "cpu", 0, bf16=False),), 2, 8192, "")


class Answer(http.server.BaseHTTPRequestHandler):
    """A dashboard that wants a token, as Ray's does when it is set up so."""

    status = 401

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def dashboard() -> Iterator[str]:
    server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The packages that seem to be installed."""
    there = {"ray", "submitit"}
    monkeypatch.setattr(checks, "find_spec", lambda name: object() if name in there else None)
    return there


def look(**options: str) -> dict[str, Finding]:
    config = files.build({}, {f"launch.{k}" if "." not in k else k: v for k, v in options.items()})
    return {f.field: f for f in checks.check_target(config, None, None) if f.severity != "note"}  # type: ignore[arg-type]


def test_nothing_is_said_of_a_run_that_is_trained_here() -> None:
    assert list(checks.check_target(Config(), None, None)) == []  # type: ignore[arg-type]


def test_a_dashboard_that_answers_be_it_for_a_token_is_one(dashboard: str) -> None:
    assert look(target="ray", ray_address=dashboard) == {}


def test_each_fault_is_said_with_its_option(dashboard: str, installed: set[str], tmp_path: Path) -> None:
    ray = {"target": "ray", "ray_address": dashboard}
    big = tmp_path / "pictures"
    big.mkdir()
    with (big / "a.png").open("wb") as file:
        file.truncate(101 << 20)
    cases = [
        (ray | {"trainer": "sd-scripts"}, "launch.target", "error", "on this machine only"),
        ({"target": "ray", "ray_address": "http://127.0.0.1:1"}, "launch.ray_address", "error", "no Ray dashboard answers"),
        (ray | {"shared_path": "nowhere"}, "launch.shared_path", "error", "is no folder here"),
        (ray | {"data.path": str(big)}, "launch.upload", "error", "more than 100 MiB"),
        (ray | {"data.subsets": str(tmp_path / "d.toml")}, "data.subsets", "error", "are not sent"),
        (ray | {"output.path": str(tmp_path)}, "output.path", "warning", "come into the run's folder"),
        (ray | {"device": "cpu", "job_gpus": "1"}, "launch.job_gpus", "warning", "uses none"),
        (ray | {"device": "cuda", "job_gpus": "1", "num_processes": "2"}, "launch.job_gpus", "error", "1 for 2 processes"),
        ({"target": "slurm"}, "launch.target", "error", "no sbatch here"),
    ]
    for options, field, severity, words in cases:
        found = look(**options)
        assert list(found) == [field] and found[field].severity == severity and words in found[field].message, (options, found)
    assert look(**ray, shared_path=str(tmp_path), **{"data.path": str(big), "data.subsets": str(tmp_path / "d.toml")}) == {}
    assert look(**ray, upload="run", **{"data.path": str(big)}) == {}
    installed.clear()
    for target, extra in (("ray", "limner[ray]"), ("slurm", "limner[slurm]")):
        found = look(target=target, ray_address=dashboard)
        assert extra in found["launch.target"].remedy


def test_a_distant_dashboard_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_SECONDS", 0.01)
    found = list(
        checks.check_target(
            files.build({}, {"launch.target": "ray", "launch.ray_address": "http://192.0.2.1:8265"}), None, None
        )
    )  # type: ignore[arg-type]
    assert [f.severity for f in found if f.field == "launch.ray_address"] == ["error", "warning"]


def test_what_this_machine_lacks_is_no_fault_of_a_job_elsewhere(dashboard: str) -> None:
    options = {"launch.device": "cuda", "launch.target": "ray", "launch.ray_address": dashboard}
    elsewhere, _ = examine(files.build({}, options), CPU)
    here, _ = examine(files.build({}, options | {"launch.target": "local"}), CPU)
    assert "launch.device" in {f.field for f in here} - {f.field for f in elsewhere}
    assert any("is not known here" in f.message for f in elsewhere if f.severity == "note")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:8265", "ftp://a:1", "http://a", "http://a:99999", "http://a:1/x", "http://a:1?x", "http://u@a:1",
        "http://a b:1", "http://a:1\n", "http://$(id):1", "ray://a:10001",
    ],
)  # fmt: skip
def test_an_address_is_a_host_and_a_port(address: str) -> None:
    with pytest.raises(UserError, match=r"launch\.ray_address"):
        look(target="ray", ray_address=address)


@pytest.mark.parametrize(
    "text", ["wrap=id", "output=/etc/x", "qos", "qos=", "qos=a b", "qos=$(id)", "qos=a\n#SBATCH --wrap=id", "QOS=a"]
)
def test_sbatch_is_told_nothing_that_names_a_program_or_a_file(text: str) -> None:
    with pytest.raises(UserError, match=r"launch\.slurm_options"):
        sbatch_options(Launch(slurm_options=(text,)))
    with pytest.raises(UserError, match=r"launch\.slurm_partition"):
        look(target="slurm", slurm_partition="a b")


def test_jobs_elsewhere_keep_no_device_busy(home: Path) -> None:
    made = [runs.create(files.build({}, {"launch.target": "slurm", "output.name": name})) for name in "ab"]
    assert len({runner.device_of(run) for run in made} | {"cpu", "cuda", "mps"}) == 5
    for run in made:
        assert launch.argv(run.config(), run.path, "cuda")[1:] == ["-m", "limner.targets", str(run.path)]
