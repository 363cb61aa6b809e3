"""A real `limner web` on a damaged home is up within five seconds and tells. All kinds: tests/test_damaged_home.py."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from limner import queue, runs
from limner.config import Config, Output


def told(url: str) -> list[dict[str, str]]:
    with httpx.Client() as client:
        assert client.get(url).status_code == 200
        assert client.get(f"{url}/api/runs").status_code == 200
        found = client.get(f"{url}/api/notices").json()
        return [finding for finding in found if finding["field"] != "limner web"]  # this machine's other users


def test_much_is_damaged_at_once(home: Path, limner_web: Callable[..., Any]) -> None:
    limner_web("--port", "0", is_forked=True).url  # noqa: B018  what is forked from is ready, then
    run = runs.create(Config(output=Output(name="a")))
    queue.enqueue(run)
    assert queue.remove(run)
    for name in ("queue.sqlite", "locks/queue.lock", "token"):
        (home / name).unlink(missing_ok=True)
        (home / name / "inside").mkdir(parents=True)
    (home / "settings.toml").write_text("theme = ")
    (home / "presets").write_text("a file")
    (run.path / "state.json").write_bytes(b"\x00" * 99)
    began = time.monotonic()
    found = told(limner_web("--port", "0", is_forked=True).url)
    assert time.monotonic() - began < 5
    assert {"settings.toml", "queue.sqlite", "locks/queue.lock", "token", "presets"} <= {finding["field"] for finding in found}
    assert all("kept as" in finding["remedy"] + finding["message"] for finding in found)
    assert len(list(home.rglob("*.damaged-*"))) == 5, "and none of them is gone"


def test_a_home_on_a_disk_that_is_not_there(home: Path, limner_web: Callable[..., Any]) -> None:
    home.symlink_to(home.with_name("usb") / "limner")
    (finding,) = told(limner_web("--port", "0", is_forked=True).url)
    assert finding["field"] == "LIMNER_HOME" and "which is not there" in finding["message"]
    assert home.is_symlink() and not home.with_name("usb").exists()
