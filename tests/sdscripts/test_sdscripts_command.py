"""The command that is shown is one that can be pasted: the real launcher takes it, from any folder."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from starlette.testclient import TestClient

import fake_sd_scripts as fake
from limner import cli, disk, jobs
from limner.config import files
from limner.runs import State
from limner.settings import Settings
from limner.web import run_facts
from limner.web.app import bare_app
from limner.web.context import Context
from limner.web.curves import CurvesOfRuns
from limner.web.words import Words


def test_the_command_line_writes_what_the_command_needs(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Here with the real accelerate."""
    fake.known_machine(home)
    config = fake.config(tmp_path, train={"steps": 2}, output={"name": "a 'cat'", "save_every_steps": 1})
    shutil.rmtree(tmp_path / "sd-scripts" / "accelerate")
    disk.write_text(tmp_path / "run.toml", files.render(config))
    assert cli.command(str(tmp_path / "run.toml")) == 0
    line = capsys.readouterr().out.strip()
    done = subprocess.run(["sh", "-c", line], cwd="/", capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "avr_loss" in done.stderr and "model saved." in done.stdout
    (run,) = (home / "runs").iterdir()
    assert (run / "sd-scripts" / "output-from-0" / "a 'cat'.safetensors").is_file()
    assert shlex.split(line)[-1] == f"--config_file={run}/sd-scripts/config.toml"


def test_a_run_that_cannot_be_begun_is_refused_before_it(tmp_path: Path, home: Path) -> None:
    fake.known_machine(home)
    config = fake.config(tmp_path, launch={"sd_scripts": str(tmp_path)})
    disk.write_text(tmp_path / "run.toml", files.render(config))
    assert cli.command(str(tmp_path / "run.toml")) == 2 and not (home / "runs").exists()


def test_the_form_shows_the_command_before_it_is_run(tmp_path: Path, home: Path) -> None:
    fake.known_machine(home)
    values = files.overrides_of(fake.config(tmp_path))
    client = TestClient(bare_app(Context(Settings(), (tmp_path,), Words())))
    said = client.post("/api/command", json={"values": values}).json()
    words = shlex.split(said["process"])
    assert words[:3] == ["cd", str(tmp_path / "sd-scripts"), "&&"]
    assert words[-1] == f"--config_file={home / 'runs' / 'RUN'}/sd-scripts/config.toml"
    assert "--launch.trainer=sd-scripts" in shlex.split(said["flags"])
    outside = client.post("/api/command", json={"values": values | {"launch.python": "/usr/bin/env"}})
    assert [f["field"] for f in outside.json()["findings"]] == ["launch.python"]


def test_the_page_shows_the_command_as_it_was_run_and_offers_no_requests(tmp_path: Path) -> None:
    run = jobs.prepare(fake.config(tmp_path, sample={"prompts": ["x"]}))
    disk.write_json(run.path / "command.json", {"argv": ["python", "a b.py"], "environment": {"X": "1"}, "folder": "/c d"})
    brief = {"asked": False}
    full = run_facts.full(run, brief, CurvesOfRuns(), "")
    assert full["config"]["command"] == "cd '/c d' && X=1 python 'a b.py'"
    state, config = State("running", "training"), run.config()
    assert run_facts.actions(run, state, config, asked=False) == ["stop", "stop-now", "duplicate"]
    assert run_facts.actions(run, state, config, asked=True) == ["stop-now", "duplicate"]
