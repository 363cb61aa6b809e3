"""A home, an allowed folder with links out of it, a folder outside that nobody may touch; and a watch over it all.

An audit hook sees all that Python opens, lists and starts while a request is answered. Used by the tests of hostile values,
of the advisories of other programs, and of requests from elsewhere.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import pytest
from PIL import Image
from starlette.testclient import TestClient

from limner import runner, runs, tool_jobs
from limner.config import files
from limner.config.tools import Tools, the_section
from limner.errors import UserError
from limner.pocket import MODEL
from limner.runs import Run, State
from limner.settings import Settings
from limner.tools import using
from limner.tools.__main__ import as_json
from limner.web.app import make_app
from limner.web.context import Context
from limner.web.gate import Rules
from limner.web.words import Words

HUGE = "<a number of 5000 digits>"
"""Stands for what the JSON of this process cannot write."""
SECRET = "the-words-of-another-folder"
T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """A good request, whose texts are replaced by hostile ones, one at a time."""

    body: Any = None
    query: dict[str, str] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)
    """The parts of the address that the route names."""
    files: dict[str, str] = field(default_factory=dict)
    """Names of files that are sent as a form's."""


def requests(pics: Path, run: str) -> dict[str, Asked]:
    """A good request for each POST route that takes anything, by the route's path."""
    view = {"data.path": str(pics), "data.trigger": "zwx", "data.caption_extensions": '[".txt"]'}
    form = view | {
        "model.base": "pocket", "output.name": "cat", "output.path": str(pics), "sample.prompt_file": str(pics / "prompts.txt"),
        "memory.cache_path": str(pics), "optimizer.lr": "1e-4", "train.steps": "5", "adapter.kind": "lora",
    }  # fmt: skip
    event = {"data": ["x"], "fn_index": 0, "session_hash": "abc", "event_id": "abc", "api_name": "x"}
    return {
        "/api/check": Asked({"values": form}),
        "/api/train": Asked({"values": form}),
        "/api/toml": Asked({"values": form}),
        "/api/command": Asked({"values": form}),
        "/api/import": Asked({"name": "a.toml", "text": "[train]\nsteps = 5\n"}),
        "/api/pictures/list": Asked({"values": view}),
        "/api/caption": Asked({"values": view, "path": str(pics / "a.png"), "text": "a cat"}),
        "/api/upload": Asked(query={"token": "0" * 16, "name": "a.txt"}),
        "/api/presets/save": Asked({"values": form, "name": "mine"}),
        "/api/presets/delete": Asked({"name": "mine"}),
        "/api/settings": Asked(
            {"pictures": str(pics), "models": str(pics), "output": str(pics), "theme": "dark", "language": "en",
             "defaults": {"output.name": "cat"}}
        ),
        "/api/dataset/preview": Asked({"view": view, "pictures": ["a.png"], "operation": {"kind": "set", "text": "a cat"}}),
        "/api/dataset/apply": Asked({"id": "0" * 16}),
        "/api/dataset/remove": Asked({"view": view, "pictures": ["a.png"]}),
        "/api/dataset/undo": Asked({"view": view}),
        "/api/dataset/redo": Asked({"view": view}),
        "/api/tools/look": Asked({"tool": "inspect", "values": {"inspect.file": str(pics / "a.safetensors")}}),
        "/api/tools/start": Asked({"tool": "inspect", "values": {"inspect.file": str(pics / "a.safetensors")}}),
        "/api/tools/stop": Asked({"job": "2026-01-01_000000_inspect"}),
        "/api/runs/{name}/{action}": Asked(where={"name": run, "action": "duplicate"}),
        "/api/queue": Asked({"order": [run]}),
        "/gradio_api/queue/join": Asked(event),
        "/gradio_api/cancel": Asked(event),
        "/gradio_api/run/{api_name}": Asked(event, where={"api_name": "x"}),
        "/gradio_api/run/{api_name}/": Asked(event, where={"api_name": "x"}),
        "/gradio_api/upload": Asked(files={"files": "a.png"}, query={"upload_id": "x"}),
        "/login": Asked(),  # takes a password and a name, which only the gate reads: test_gate
    }  # fmt: skip


# --- what is seen -----------------------------------------------------------------------------------------------------

_seen: list[tuple[str, tuple[Any, ...]]] | None = None
_WATCHED = {"open", "os.listdir", "os.scandir", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link"}
_PLANNER = [sys.executable, "-m", "limner.engine.estimate"]
"""What a look at a configuration may start: these words, to which nothing of what was asked is added."""
_STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile"}


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is not None and (event in _WATCHED or event in _STARTS):
        _seen.append((event, arguments))


sys.addaudithook(_note)  # cannot be taken back; it costs nothing while nobody looks


@dataclass
class World:
    """A root with pictures and links that lead out of it, and a folder outside that nobody may touch."""

    home: Path
    root: Path
    outside: Path
    app: Any
    """The whole application, gate and all."""
    asking: TestClient
    """The page's own browser, with a session."""
    run: Run

    @property
    def touched(self) -> Path:
        """The file that the payloads would make."""
        return self.outside.parent / "touched"

    def snapshot(self, *folders: Path) -> dict[str, tuple[bytes, int]]:
        """All that lies in these folders, or in the one outside: names, contents of files, and when these were written."""
        seen = [p for folder in folders or (self.outside,) for p in (folder, *folder.rglob("*"))]
        return {str(p): (p.read_bytes(), p.lstat().st_mtime_ns) if p.is_file() else (b"", 0) for p in seen}

    def ask(self, route: str, asked: Asked) -> Any:
        """The answer to a POST; what Python did meanwhile is checked."""
        address = route
        for name, text in asked.where.items():
            address = address.replace(f"{{{name}}}", quote(str(text).encode("utf-8", "replace"), safe=""))
        query = urlencode({k: str(v).encode("utf-8", "replace") for k, v in asked.query.items()})
        if asked.files:
            name = str(asked.files["files"]).encode("utf-8", "replace").replace(b'"', b"%22").replace(b"\n", b"").decode()
            content = {"files": {"files": (name, b"x")}}
        elif asked.body is None:
            content = {"content": b"x"}
        else:
            content = {
                "content": json.dumps(asked.body).replace(f'"{HUGE}"', "1" * 5000),
                "headers": {"Content-Type": "application/json"},
            }
        return self.watched(lambda: self.asking.post(f"{address}?{query}" if query else address, **content), route)

    def watched(self, work: Callable[[], T], what: str) -> T:
        """Do it; what Python opened, listed and started meanwhile is checked."""
        global _seen
        _seen = []
        try:
            answer = work()
        finally:
            seen, _seen = _seen, None
        reached = [(e, a) for e, a in seen if e in _WATCHED and any(self._is_outside(x) for x in a)]
        assert not reached, (what, reached)
        assert not [s for s in seen if s[0] in _STARTS and s[1][1:2] != (_PLANNER,)], (what, seen)
        return answer

    def _is_outside(self, argument: Any) -> bool:
        if isinstance(argument, bytes):
            argument = os.fsdecode(argument)
        if not isinstance(argument, str | os.PathLike) or not str(argument):
            return False
        real = os.path.realpath(argument) if "\0" not in str(argument) else str(argument)
        secret = ("/etc/passwd", "/proc/self", "/root/x", str(self.outside), str(self.outside.parent / "touched"))
        return os.path.isabs(str(argument)) and real.startswith(secret)


def alone(patch: pytest.MonkeyPatch) -> None:
    """No runner is started, and tools work in this process."""
    patch.setattr(runner, "ensure_runner", lambda: None)
    patch.setattr(tool_jobs, "look", partial(_worked_here, True))
    patch.setattr(tool_jobs, "start", partial(_worked_here, False))


@contextmanager
def standing_in(folder: Path, machine_file: Path) -> Iterator[World]:
    """A world in `folder` that serves many tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMNER_HOME", str(folder / "home"))
        alone(patch)
        yield build(folder / "home", folder, machine_file)


def cookie(world: World) -> dict[str, str]:
    """The header of who has a session there."""
    rules = Rules((world.home / "token").read_text())
    return {"cookie": f"{rules.cookie}={rules.session}"}


@pytest.fixture
def world(home: Path, tmp_path: Path, machine_file: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    alone(monkeypatch)
    return build(home, tmp_path, machine_file)


def build(home: Path, folder: Path, machine_file: Path) -> World:
    """A world in `folder`, which is no allowed one; LIMNER_HOME must be `home`."""
    home.mkdir()
    shutil.copy(machine_file, home / "machine.json")
    root, outside = folder / "root", folder / "outside"
    for one in (root / "pics", root / "links", outside):
        one.mkdir(parents=True)
    for picture in (root / "pics" / "a.png", outside / "secret.png"):
        Image.new("RGB", (64, 64), (200, 30, 30)).save(picture)
    (root / "pics" / "a.txt").write_text("a cat")
    (root / "pics" / "prompts.txt").write_text("a cat\n")
    (outside / "secret.txt").write_text(SECRET)
    shutil.copy(next(MODEL.glob("unet/*.safetensors")), root / "pics" / "a.safetensors")
    (root / "links" / "out").symlink_to(outside)
    (root / "links" / "secret.png").symlink_to(outside / "secret.png")
    run = runs.create(files.build({}, {"output.name": "cat"}))
    run.write_state(State("done", step=5, steps=5))
    app = make_app(Context(Settings(), tuple(p.resolve() for p in (root, home)), Words()))
    asking = TestClient(app, "http://127.0.0.1", headers={"Origin": "http://127.0.0.1"}, raise_server_exceptions=False)
    assert asking.get("/").status_code == 200  # gives the session's cookie
    return World(home, root, outside, app, asking, run)


@dataclass(frozen=True)
class Job:
    """What a tool that was started leaves for its route."""

    id: str


def _worked_here(only_look: bool, asked: Tools) -> Any:
    """What a tool's process does, in this one, where all that it opens is seen."""
    name, section = tool_jobs.read(tool_jobs.text_of(asked))  # as it is handed to the process
    assert section == the_section(asked)[1]
    module = using.module_of(section)
    try:
        report = module.look(section) if only_look else module.run(section, lambda *_: None)
    except UserError as error:
        if not only_look:
            assert error.findings
            return Job(name)
        return {"findings": [asdict(f) for f in error.findings]}
    return as_json(report) if only_look else Job(name)
