"""Hostile values in every place of every request that changes something, through the gate, with a session.

Nothing outside the allowed folders is opened, listed or written, whatever a value says: an audit hook sees all that Python
opens, lists and starts. Which requests there are is read from the application's routes.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from PIL import Image
from route_table import routes_of
from starlette.testclient import TestClient

from limner import launch, runner, runs, tool_jobs
from limner.config import files
from limner.config.tools import Tools, the_section
from limner.errors import UserError
from limner.pocket import MODEL
from limner.runs import Run, State
from limner.settings import Settings
from limner.tools import using
from limner.tools.__main__ import as_json
from limner.web import gate, places
from limner.web.app import bare_app, make_app
from limner.web.context import Context
from limner.web.words import Words

pytestmark = pytest.mark.slow

HUGE = "<a number of 5000 digits>"
"""Stands for what the JSON of this process cannot write."""
SECRET = "the-words-of-another-folder"


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


PATHS = {
    "data.path", "output.path", "sample.prompt_file", "memory.cache_path", "path", "pictures", "models", "output",
    "inspect.file",
}  # fmt: skip
"""What is a path, or names a picture in a folder: not one hostile value is taken for it."""


def hostile(root: Path, outside: Path) -> list[Any]:
    """The list of what people try."""
    touched = outside.parent / "touched"
    return [
        str(outside), f"{outside}/secret.png", f"{root}/../outside", f"{root}/pics/../../outside/secret.png", "..",
        "../../outside/secret.png", f"{root}/links/out", f"{root}/links/out/secret.png", f"{root}/links/secret.png",
        f"{outside}/new.txt", "/", "/etc/passwd", "/proc/self/environ", "~root/x", "C:\\Windows\\x", "\\\\server\\share\\x",
        "//server/share/x", "file:///etc/passwd", "/../../x", '["/../../x"]', f'[".txt/../../{outside.name}/x"]',
        f'"; touch {touched} #', f"$(touch {touched})", f"`touch {touched}`", f"x; touch {touched}", f"| touch {touched}",
        f"--out={touched}", "x\0y", "\ud800", "x\x1b[2J", "NaN", "inf", "1" + "0" * 400, "-1", float("nan"), 10**400, HUGE,
        None, True, [], {}, ["/etc/passwd"], {"path": str(outside / "secret.png"), "meta": {"_type": "gradio.FileData"}},
        "[" * 3000, "x" * 10_000_000, "x" * 300_000,
    ]  # fmt: skip


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

    root: Path
    outside: Path
    asking: TestClient
    run: Run

    def snapshot(self) -> dict[str, tuple[bytes, int]]:
        places_seen = [self.outside, *self.outside.rglob("*")]
        return {str(p): (p.read_bytes() if p.is_file() else b"", p.stat().st_mtime_ns) for p in places_seen}

    def ask(self, route: str, asked: Asked) -> Any:
        """The answer; what Python did meanwhile is checked."""
        global _seen
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
        _seen = []
        try:
            answer = self.asking.post(f"{address}?{query}" if query else address, **content)
        finally:
            seen, _seen = _seen, None
        reached = [(e, a) for e, a in seen if e in _WATCHED and any(self._is_outside(x) for x in a)]
        assert not reached, (route, reached)
        assert not [s for s in seen if s[0] in _STARTS and s[1][1:2] != (_PLANNER,)], (route, seen)
        return answer

    def _is_outside(self, argument: Any) -> bool:
        if isinstance(argument, bytes):
            argument = os.fsdecode(argument)
        if not isinstance(argument, str | os.PathLike) or not str(argument):
            return False
        real = os.path.realpath(argument) if "\0" not in str(argument) else str(argument)
        secret = ("/etc/passwd", "/proc/self", "/root/x", str(self.outside), str(self.outside.parent / "touched"))
        return os.path.isabs(str(argument)) and real.startswith(secret)


@pytest.fixture
def world(home: Path, tmp_path: Path, machine_file: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(runner, "ensure_runner", lambda: None)
    monkeypatch.setattr(tool_jobs, "look", partial(_worked_here, True))
    monkeypatch.setattr(tool_jobs, "start", partial(_worked_here, False))
    home.mkdir()
    shutil.copy(machine_file, home / "machine.json")
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "pics", root / "links", outside):
        folder.mkdir(parents=True)
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
    context = Context(Settings(), tuple(p.resolve() for p in (root, home)), Words())
    asking = TestClient(
        make_app(context), "http://127.0.0.1", headers={"Origin": "http://127.0.0.1"}, raise_server_exceptions=False
    )
    assert asking.get("/").status_code == 200  # gives the session's cookie
    return World(root, outside, asking, run)


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


# --- one text after another -------------------------------------------------------------------------------------------


def slots(content: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the texts stand in a JSON value."""
    if isinstance(content, str):
        yield here
    for key, value in content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ():
        yield from slots(value, (*here, key))


def with_value(content: Any, slot: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(content)
    inner = changed
    for key in slot[:-1]:
        inner = inner[key]
    inner[slot[-1]] = value
    return changed


def poisoned(asked: Asked, value: Any) -> Iterator[tuple[str, Asked]]:
    """(what was replaced, the request) for each place of a request where a text can stand."""
    for part in ("body", "query", "where", "files"):
        content = getattr(asked, part)
        if part != "body":  # an address and a form know nothing but text, and the client makes no longer address
            if not isinstance(value, str):
                continue
            value = value[:9000]
        for slot in slots(content):
            changed = with_value(content, slot, value)
            name = next(key for key in reversed(slot) if isinstance(key, str))
            yield name, Asked(**{**asked.__dict__, part: changed})
        if part == "body" and isinstance(value, str) and isinstance(content, dict):  # and as a name
            inner = content.get("values") or content.get("view") or content
            if inner is not content and not value.startswith("x" * 100):
                name = "values" if "values" in content else "view"
                yield "a key", Asked(**{**asked.__dict__, part: {**content, name: {**inner, value: "1"}}})


def is_refused(route: str, answer: Any) -> bool:
    """Whether an answer says no: by its status, or by what is found where asking about wrong values is the very purpose."""
    if answer.status_code != 200:
        return True
    said = answer.json()
    return (route == "/api/check" and any(f["severity"] == "error" for f in said["findings"])) or (
        route == "/api/pictures/list" and said["total"] == 0
    )


def test_the_table_is_the_applications() -> None:
    app = bare_app(Context(Settings(), (), Words()))
    found = {path: route for methods, path, route in routes_of(app) if "POST" in methods and "POST" in gate._methods(path)}
    takes = {path for path, route in found.items() if any(route.dependant.body_params + route.dependant.query_params)}
    assert takes | {"/api/runs/{name}/{action}"} <= requests(Path("/x"), "x").keys() - {"/login"}
    assert found.keys() - requests(Path("/x"), "x").keys() == {"/api/tensorboard"}  # takes nothing


@pytest.mark.parametrize("route", sorted(requests(Path("/x"), "x").keys() - {"/login"}))
def test_hostile_values_reach_nothing(world: World, route: str, tmp_path: Path) -> None:
    before = world.snapshot()
    asked = requests(world.root / "pics", world.run.id)[route]
    if not route.startswith("/gradio_api"):
        good = world.ask(route, asked)
        assert good.status_code == 200 or route in ("/api/dataset/apply", "/api/presets/delete", "/api/tools/stop"), good.text
    tried = 0
    for value in hostile(world.root, world.outside):
        for name, request in poisoned(asked, value):
            answer, tried = world.ask(route, request), tried + 1
            told = (route, name, str(value)[:60], answer.status_code, answer.text[:300])
            assert answer.status_code < 500 or route.startswith("/gradio_api"), told  # Gradio knows no such event, and says 500
            assert SECRET not in answer.text and "root:" not in answer.text, told
            if name in PATHS and value is not None:
                assert is_refused(route, answer), told
            if answer.status_code == 422 and not route.startswith("/gradio_api"):
                findings = answer.json()["findings"]
                assert findings and all(f["field"] and f["message"] for f in findings), told
                assert len(answer.text) < 100_000, told
                if name in PATHS and isinstance(value, str) and "." in name:
                    assert any(f["field"].endswith(name) for f in findings), told
    print(route, tried)
    assert world.snapshot() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "outside", "root"]
    _nothing_strange(world)


def _nothing_strange(world: World) -> None:
    """What was accepted is harmless: names of files are plain, settings can be read, a trainer is given one path."""
    for path in [*runs.home().rglob("*"), *world.root.rglob("*")]:
        assert not any(unicodedata.category(c)[0] == "C" or c in '<>:"|?*$`' for c in path.name), path
    assert not list(runs.home().glob("*.damaged-*"))
    for run in runs.all_runs():
        assert run.path.parent == runs.home() / "runs"
        assert "touch" not in " ".join(launch.argv(run.config(), Path("RUN"), "cpu"))
        for path in (run.config().data.path, run.config().output.path):
            assert path is None or places.resolve(str(path), (world.root,))
