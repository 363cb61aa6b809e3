"""Keys in the environment, the password and the session of a real server: found in nothing that a run or the server leaves.

A server with a password trains a run to its end; afterwards every byte is looked at that was written, logged or answered, the
commands as they were run (command.json) among them. With LIMNER_REAL_PROCESSES=1 nothing is forked, and the command lines of
all processes are looked at meanwhile.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import psutil
import pytest

from limner import runs
from limner.pocket import PICTURES

pytestmark = pytest.mark.slow

KEYS = ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "LIMNER_PASSWORD")
CANARIES = {name: f"canary{number}a1b2c3d4e5f6" for number, name in enumerate(KEYS)}


IS_REAL = os.environ.get("LIMNER_REAL_PROCESSES") == "1"


class Browser:
    """Asks a server as its page does, and keeps all that it was told."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.address, self.cookie, self.told = (parts.hostname or "", parts.port or 80), "", bytearray()

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
        asking = http.client.HTTPConnection(*self.address, timeout=120)
        origin = f"http://{self.address[0]}:{self.address[1]}"
        content = body if isinstance(body, str) else json.dumps(body) if body is not None else None
        asking.request(
            method, path, content, {"Origin": origin, "Cookie": self.cookie, "Content-Type": "application/json", **headers}
        )
        answer = asking.getresponse()
        said = answer.read()
        for name, value in answer.getheaders():
            if name.lower() == "set-cookie":
                self.cookie = value.partition(";")[0]
            else:
                self.told += f"{name}: {value}\n".encode()
        self.told += said
        asking.close()
        return answer.status, said


def command_lines() -> str:
    """Those of all processes of this machine."""
    found = []
    for process in psutil.process_iter():
        try:
            found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return "\n".join(found)


def test_canaries(home: Path, tmp_path: Path, machine_file: Path, limner_web: Callable[..., Any]) -> None:
    home.mkdir()
    shutil.copy(machine_file, home / "machine.json")
    (pics := tmp_path / "pics").mkdir()
    for picture in sorted(PICTURES.glob("*.png"))[:2]:
        shutil.copy(picture, pics)
    (home / "settings.toml").write_text(f"roots = [{json.dumps(str(pics))}, {json.dumps(str(tmp_path / 'out'))}]\n")
    server = limner_web("--port", "0", is_forked=not IS_REAL, **CANARIES)
    browser = Browser(server.url)
    assert browser.ask("POST", "/login", urlencode({"password": "wrong-password"}))[0] == 401
    assert browser.ask("GET", "/api/settings")[0] == 401
    assert browser.ask("POST", "/login", urlencode({"password": CANARIES["LIMNER_PASSWORD"]}))[0] == 303
    values = {
        "model.base": "pocket", "data.path": str(pics), "data.trigger": "zibbo", "train.steps": "2", "launch.device": "cpu",
        "output.path": str(tmp_path / "out"), "output.state_every_steps": "1", "sample.prompts": '["zibbo --s 1"]',
        "output.name": "cat",
    }  # fmt: skip
    status, said = browser.ask("POST", "/api/train", {"values": values})
    assert status == 200, said
    seen = ""
    good = runs.named(json.loads(said)["run"])
    until = time.monotonic() + 240
    while good.state().status not in ("done", "failed", "stopped"):
        assert time.monotonic() < until, good.tail()
        seen += command_lines() if IS_REAL else ""
        browser.ask("GET", f"/api/runs/{good.id}")
        time.sleep(0.1)
    assert good.state().status == "done", good.tail()
    assert good.id in seen or not IS_REAL  # the trainer was among them
    assert json.loads((good.path / "command.json").read_text())["argv"][1:] == ["-m", "limner.engine", str(good.path)]
    for path, body in (
        ("/api/nothing", {}), ("/api/train", []), ("/api/train", {"values": {"optimizer.lr": "x", "model.base": "/nothing"}}),
        ("/api/import", {"name": "x.json", "text": '{"wandb_api_key": "$WANDB_API_KEY", "huggingface_token": "${HF_TOKEN}"}'}),
        ("/api/command", {"values": values}), ("/api/toml", {"values": values}),
        ("/api/presets/save", {"values": values, "name": "mine"}),
    ):  # fmt: skip
        browser.ask("POST", path, body)
    for path in (
        "/",
        "/api/nothing",
        "/api/runs",
        f"/api/runs/{good.id}/log",
        f"/api/runs/{good.id}/config.toml",
        "/api/notices",
    ):
        browser.ask("GET", path)
    session = browser.cookie.partition("=")[2]
    server.process.terminate()
    server.process.wait(60)
    logged = server.output
    secret = (home / "token").read_text()
    left = {str(p): p.read_bytes() for folder in (home, tmp_path / "out", pics) for p in folder.rglob("*") if p.is_file()}
    assert any(p.endswith(".safetensors") for p in left) and any("states" in p for p in left) and len(left) > 10
    for name, canary in {**CANARIES, "the session": session}.items():
        assert [p for p, content in left.items() if canary.encode() in content] == [], name
        assert canary not in seen and canary not in logged and canary.encode() not in browser.told, name
    assert [p for p, content in left.items() if secret.encode() in content] == [str(home / "token")]
    assert secret not in seen and secret not in logged and secret.encode() not in browser.told
