"""Every route of the whole application x every kind of request from elsewhere: nothing changes, and nothing is told.

test_gate.py shows that such requests reach nothing behind the gate; here the application itself stands there, with something
to tell and to lose, and the same requests from the page's own scripts show that it would.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile_world import SECRET, World, alone, cookie, requests, standing_in
from PIL import Image
from raw_requests import HOST, OWN, Answer, answer, run
from route_table import routes_of

from limner import disk, queue, runs
from limner.config import files
from limner.runs import State
from limner.settings import Settings
from limner.web import gate
from limner.web.app import bare_app
from limner.web.context import Context
from limner.web.words import Words

WORDS = "the-words-of-this-home"
PNG, JPEG = b"\x89PNG", b"\xff\xd8\xff"
JSON, FORM, TEXT = "application/json", "application/x-www-form-urlencoded", "text/plain"
UPLOAD = "multipart/form-data; boundary=x"
EVIL = "https://evil.example"
AS_JSON = {"content-type": JSON}

FORMS: dict[str, dict[str, str]] = {
    # what a page of another site, a rebound name, a frame, or a program without a session sends; with a cookie but for the last
    "JSON from another site": {"host": HOST, "origin": EVIL, "sec-fetch-site": "cross-site", "content-type": JSON},
    "text, which needs no preflight": {"host": HOST, "origin": EVIL, "content-type": TEXT},
    "a form of another site": {"host": HOST, "origin": EVIL, "sec-fetch-site": "cross-site", "content-type": FORM},
    "an upload without preflight": {"host": HOST, "sec-fetch-site": "cross-site", "content-type": UPLOAD},
    "no content type": {"host": HOST, "origin": EVIL},
    "a sandboxed frame": {"host": HOST, "origin": "null", "content-type": JSON},
    "another port of this machine": {"host": HOST, "origin": "http://127.0.0.1:8888", "sec-fetch-site": "same-site"} | AS_JSON,
    "the other name of this machine": {"host": HOST, "origin": "http://localhost:7860", "content-type": JSON},
    "a rebound name": {"host": "evil.example:80", "origin": "http://evil.example", "sec-fetch-site": "same-origin"} | AS_JSON,
    "a rebound name alone": {"host": "evil.example", "content-type": JSON},
    "a name that begins like ours": {"host": f"{HOST.partition(':')[0]}.evil.example", "content-type": JSON},
    "a name with a dot behind": {"host": "localhost.", "origin": "http://localhost.", "content-type": JSON},
    "a cloud's own address": {"host": "169.254.169.254", "content-type": JSON},
    "no host": {"origin": f"http://{HOST}", "content-type": JSON},
    "an image": {"host": HOST, "sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"},
    "a stream of events": {"host": HOST, "origin": EVIL, "accept": "text/event-stream", "sec-fetch-site": "cross-site"},
    "no session, no browser": {"host": HOST, "content-type": JSON},
}  # fmt: skip


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory, machine_file: Path) -> Iterator[World]:
    with standing_in(tmp_path_factory.mktemp("world"), machine_file) as world:
        _furnish(world)
        yield world


@pytest.fixture(autouse=True)
def home(standing: World, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIMNER_HOME", str(standing.home))
    alone(monkeypatch)
    return standing.home


def _furnish(world: World) -> None:
    """Something to tell on every route, and to lose on every one that changes: all of it says WORDS, or is a picture."""
    pics = world.root / "pics"
    (pics / "a.txt").write_text(WORDS)
    run = world.run.path
    disk.write_text(run / "config.toml", files.render(files.build({"output": {"name": WORDS}, "data": {"trigger": WORDS}}, {})))
    for name in ("log.txt", "checkpoints/cat.safetensors"):
        (run / name).write_text(WORDS)
    Image.new("RGB", (8, 8)).save(run / "samples" / "step-000001_0.png")
    waiting = runs.create(files.build({"data": {"path": str(pics)}, "model": {"base": "pocket"}}, {}))
    queue.enqueue(waiting)
    job = world.home / "tools" / "2026-01-01_000000_inspect"
    job.mkdir(parents=True)
    (job / "tool.toml").write_text("[inspect]\n")
    (job / "log.txt").write_text(WORDS)
    disk.write_json(job / "report.json", {"files": [str(pics / "a.txt")], "lines": [WORDS]})
    disk.write_json(job / "state.json", {"status": "done"})
    (world.home / "presets").mkdir()
    (world.home / "presets" / "mine.toml").write_text(f"# {WORDS}\n[train]\nsteps = 5\n")
    (world.home / "settings.toml").write_text(f'[defaults]\n"output.name" = "{WORDS}"\n')
    world.run.write_state(State("done", step=5, steps=5))


@pytest.fixture(scope="module")
def routes() -> list[tuple[str, str]]:
    """(method, path) of all that the application has."""
    app = bare_app(Context(Settings(), (), Words()))
    return sorted({(method, path) for methods, path, _ in routes_of(app) for method in methods})


def asked(world: World, table: list[tuple[str, str]]) -> list[tuple[str, str, str, bytes]]:
    """(method, address, query, body) of a good request for each route, by its methods, GET and POST."""
    pics, run = world.root / "pics", world.run.id
    good = requests(pics, run)
    parts = {
        "name": run,
        "file": "",
        "action": "duplicate",
        "job": "2026-01-01_000000_inspect",
        "number": "0",
        "path": "index.html",
    }
    out = []
    for method, route in table:
        one = good.get(route) if method == "POST" else None
        files_of = {"samples": "step-000001_0.png", "checkpoints": "cat.safetensors"}
        here = {
            **parts,
            "file": next((name for word, name in files_of.items() if word in route), "x"),
            **(one.where if one else {}),
        }
        address = route
        for name, value in here.items():
            address = address.replace(f"{{{name}}}", value).replace(f"{{{name}:path}}", value)
        query = "&".join(f"{k}={v}" for k, v in one.query.items()) if one else _query(route, pics, run)
        out.append((method, address, query, json.dumps(one.body if one else {}).encode()))
        out += [(other, address, query, out[-1][3]) for other in {"GET", "POST"} - {m for m, path in table if path == route}]
    return sorted(set(out))


def _query(route: str, pics: Path, run: str) -> str:
    return {
        "/api/thumbnail": f"path={pics}/a.png", "/api/folders": f"path={pics}", "/api/runs/{name}/compare": f"other={run}",
    }.get(route, f"path={pics}" if route.startswith("/api/dataset") else "")  # fmt: skip


def told(world: World, body: bytes) -> list[bytes]:
    """What of the home, the pictures or the secrets an answer tells."""
    rules = gate.Rules((world.home / "token").read_text())
    secrets = (WORDS, SECRET, world.run.id, str(world.home), str(world.root), rules.token, rules.session)
    return [word for word in (*(s.encode() for s in secrets), PNG, JPEG) if word in body]


async def _each(world: World, headers: dict[str, str], table: list[tuple[str, str, str, bytes]]) -> list[Answer]:
    return [
        await asyncio.wait_for(answer(world.app, method, path, headers, pieces=[body], query=query), 60)
        for method, path, query, body in table
    ]


@pytest.mark.parametrize("form", FORMS)
def test_a_request_from_elsewhere_changes_and_tells_nothing(standing: World, routes: list[tuple[str, str]], form: str) -> None:
    table = asked(standing, routes)
    assert len(table) > 150
    headers = FORMS[form] | ({} if form == "no session, no browser" else cookie(standing))
    before = standing.snapshot(standing.home, standing.root, standing.outside)
    got = standing.watched(lambda: run(_each(standing, headers, table)), form)
    assert standing.snapshot(standing.home, standing.root, standing.outside) == before
    for (method, path, _, _), (status, answered, body) in zip(table, got, strict=True):
        is_page = path == "/" and form == "no session, no browser" and method in ("GET", "HEAD")  # whoever opens it may have it
        assert status in ((200,) if is_page else (400, 401, 403, 404, 405, 421)), (method, path, status)
        assert not told(standing, body), (method, path)
        assert not {"access-control-allow-origin", "access-control-allow-credentials"} & set(answered)
        assert is_page or "set-cookie" not in answered, (method, path)


def test_reading_changes_nothing(standing: World, routes: list[tuple[str, str]]) -> None:
    """All GETs, from the page itself: caches may grow, nothing else. And they would have told: the test above can fail."""
    table = [one for one in asked(standing, routes) if one[0] in ("GET", "HEAD") and "heartbeat" not in one[1]]
    before = _lasting(standing)
    got = standing.watched(lambda: run(_each(standing, OWN | cookie(standing), table)), "reading")
    assert _lasting(standing) == before
    telling = {path for (_, path, _, _), (_, _, body) in zip(table, got, strict=True) if told(standing, body)}
    name = standing.run.id
    assert telling >= {
        "/api/runs", f"/api/runs/{name}", f"/api/runs/{name}/log", f"/api/runs/{name}/config.toml", "/api/dataset",
        "/api/folders",
        f"/api/runs/{name}/samples/step-000001_0.png", f"/api/runs/{name}/checkpoints/cat.safetensors", "/api/thumbnail",
        "/api/presets",
        "/api/settings", "/api/tools/2026-01-01_000000_inspect", "/api/tools/2026-01-01_000000_inspect/files/0",
    }  # fmt: skip


def _lasting(world: World) -> dict[str, tuple[bytes, int]]:
    """What is no cache: of the home's own folder not the time either, since the cache's folder is made in it."""
    kept = {str(world.home / name) for name in ("cache",)}
    seen = world.snapshot(world.home, world.root, world.outside)
    return {p: facts for p, facts in seen.items() if p != str(world.home) and not any(p.startswith(k) for k in kept)}


def test_the_page_itself_would_have_changed_much(standing: World, routes: list[tuple[str, str]]) -> None:
    """The same POSTs with the page's own headers: they change what they are for. Last, since they do."""
    table = [one for one in asked(standing, routes) if one[0] == "POST" and one[1].startswith("/api/")]
    changed, statuses = set[str](), dict[str, int]()
    for one in table:
        if one[1] in ("/api/tensorboard", "/api/check"):
            continue  # they start programs
        before = _lasting(standing)
        [(statuses[one[1]], _, _)] = run(_each(standing, OWN | cookie(standing) | {"content-type": JSON}, [one]))
        if _lasting(standing) != before:
            changed.add(one[1])
    assert changed >= {
        "/api/train",
        "/api/caption",
        "/api/upload",
        "/api/settings",
        "/api/presets/save",
        "/api/dataset/remove",
    }, statuses
    assert all(status < 500 for status in statuses.values()), statuses


def test_every_change_is_a_post(routes: list[tuple[str, str]]) -> None:
    """Of our own routes one alone has both methods: GET reads the settings, POST changes them."""
    ours: dict[str, set[str]] = {}
    for method, path in routes:
        if path.startswith("/api/") and method != "HEAD":
            ours.setdefault(path, set()).add(method)
    assert {path for path, methods in ours.items() if methods not in ({"GET"}, {"POST"})} == {"/api/settings"}
