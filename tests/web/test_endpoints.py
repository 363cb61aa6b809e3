"""Every endpoint with misshapen bodies and without a session; bodies and heads that never end; ten thousand wrong passwords."""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from hostile_world import SECRET, World, alone, cookie, requests, standing_in
from raw_requests import Answer, answer, ask, run
from route_table import routes_of

from limner.settings import Settings
from limner.web import gate, login, patience
from limner.web.app import bare_app, make_app
from limner.web.context import Context
from limner.web.gate import Gate, Rules
from limner.web.words import Words

HOST = "127.0.0.1:7860"
OWN = {"host": HOST, "origin": f"http://{HOST}", "sec-fetch-site": "same-origin"}
JSON = {"content-type": "application/json"}
DEEP = 100_000
BODIES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"{",
    "no UTF-8": b'{"values": "\xff\xfe"}',
    "UTF-16": '{"values": {}}'.encode("utf-16"),
    "not an object": b'["values"]',
    "null": b"null",
    "a number": b"1e999",
    "a long number": b'{"values": ' + b"9" * 5000 + b"}",
    "NaN": b'{"values": NaN, "tool": Infinity, "path": -Infinity, "order": NaN, "name": NaN}',
    "deep lists": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"values":' * DEEP + b"1" + b"}" * DEEP,
    "deep inside": b'{"values": {"train.steps": ' + b"[" * DEEP + b"]" * DEEP + b"}}",
    "twenty thousand keys": json.dumps({"values": {f"x{i}": "1" for i in range(20_000)}}).encode(),
    "keys of classes": b'{"__class__": {"__init__": 1}, "__proto__": {"a": 1}, "": 1, "values": {"__class__": "x"}}',
    "a form": b"values=1&values=2",
    "parts": b'--x\r\nContent-Disposition: form-data; name="a"; filename="../../x"\r\n\r\nx\r\n--x--\r\n',
}


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory, machine_file: Path) -> Iterator[World]:
    with standing_in(tmp_path_factory.mktemp("world"), machine_file) as world:
        yield world


@pytest.fixture(autouse=True)
def home(standing: World, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIMNER_HOME", str(standing.home))
    alone(monkeypatch)
    return standing.home


@pytest.fixture(scope="module")
def table() -> list[tuple[str, str]]:
    """(method, path) of all that there is, Gradio's own endpoints among them."""
    app = bare_app(Context(Settings(), (), Words()))
    return sorted({(method, path) for methods, path, _ in routes_of(app) for method in methods})


def places(world: World, path: str) -> str:
    return path.replace("{name}", world.run.id).replace("{action}", "duplicate").replace("{api_name}", "predict")


ONLY_LOOK = ("/api/check", "/api/toml", "/api/command", "/api/pictures/list", "/api/runs/{name}/{action}")
"""With nothing in it a request of these is a good one; {action} is "duplicate"."""


def posts(table: list[tuple[str, str]]) -> list[str]:
    return [path for method, path in table if method == "POST" and path not in ("/api/tensorboard", "/login")]


# --- misshapen --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BODIES)
def test_misshapen_bodies(standing: World, table: list[tuple[str, str]], kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Each is refused in words, in time, and without a trace in the log; or it says nothing that the endpoint takes amiss."""
    before = standing.snapshot(standing.home, standing.root, standing.outside)
    sent = {"a form": "application/x-www-form-urlencoded", "parts": "multipart/form-data; boundary=x"}.get(
        kind, "application/json"
    )
    headers = OWN | cookie(standing) | {"content-type": sent}
    for path in posts(table):
        if path == "/api/runs/{name}/{action}" and kind == "nothing":
            continue
        began, query = time.monotonic(), "token=x&name=x.txt" if "upload" in path else ""

        def sent_here(path: str = path, query: str = query) -> Answer:
            return ask(standing.app, "POST", places(standing, path), headers, pieces=[BODIES[kind]], query=query)

        status, answered, body = standing.watched(sent_here, path)
        assert time.monotonic() - began < 5, path
        allowed = (404,) if not gate._methods(path) else (400, 413, 422, *([200] if path in ONLY_LOOK else []))
        assert status in allowed, (path, status, body[:300])
        assert len(body) < 100_000 and b"Traceback" not in body and SECRET.encode() not in body
        if status == 422:
            assert all(f["field"] and f["message"] for f in json.loads(body)["findings"]), path
        assert answered["x-content-type-options"] == "nosniff"
    assert standing.snapshot(standing.home, standing.root, standing.outside) == before
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


def test_of_a_key_that_comes_twice_the_last_is_checked_and_used(standing: World) -> None:
    pics = standing.root / "pics"
    values = json.dumps(requests(pics, "")["/api/train"].body["values"])
    headers, path = OWN | cookie(standing) | JSON, "/api/presets/save"
    hostile = f'{{"values": {values}, "name": "mine", "name": "../../x"}}'.encode()
    assert ask(standing.app, "POST", path, headers, pieces=[hostile])[0] == 422
    good = f'{{"values": {values}, "name": "../../x", "name": "mine"}}'.encode()
    assert ask(standing.app, "POST", path, headers, pieces=[good])[0] == 200
    assert [p.name for p in (standing.home / "presets").iterdir()] == ["mine.toml"]
    ask(standing.app, "POST", "/api/presets/delete", headers, pieces=[b'{"name": "mine"}'])


@pytest.mark.parametrize("session", [False, True])
def test_ten_megabytes(standing: World, table: list[tuple[str, str]], session: bool) -> None:
    """Without a session not a byte of a body is read; with one, no more than the limit, except where pictures are taken in."""
    headers = OWN | JSON | (cookie(standing) if session else {})

    async def each() -> dict[str, tuple[int, int]]:
        out = {}
        for method, path in table:
            if method == "POST" and path not in ("/login", "/api/upload"):
                read, send = _counted(10), []
                await standing.app(_scope(places(standing, path), headers), read, _into(send))
                out[path] = send[0]["status"], read.bytes
        return out

    got = run(each())
    for path, (status, read) in got.items():
        if not gate._methods(path):
            assert (status, read) == (404, 0), path
        elif not session:
            assert (status, read) == (401, 0), path
        elif path != "/api/tensorboard" and not path.endswith("{action}"):
            assert status == 413 and read <= gate.BODY_BYTES + (1 << 20), path
    assert len(got) > 30


class _counted:
    """`receive` of so many mebibytes."""

    def __init__(self, mebibytes: int) -> None:
        self.left, self.bytes = mebibytes, 0

    async def __call__(self) -> dict[str, Any]:
        self.left -= 1
        self.bytes += 1 << 20
        return {"type": "http.request", "body": b" " * (1 << 20), "more_body": self.left > 0}


def _into(said: list[Any]) -> Any:
    async def send(message: Any) -> None:
        said.append(message)

    return send


def _scope(path: str, headers: dict[str, str], method: str = "POST", client: str = "127.0.0.1") -> dict[str, Any]:
    return {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http", "path": path,
        "raw_path": path.encode(), "query_string": b"", "root_path": "", "client": (client, 5), "server": ("127.0.0.1", 7860),
        "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
    }  # fmt: skip


def test_no_endpoint_of_gradio_answers(standing: World, table: list[tuple[str, str]]) -> None:
    """All but the page's own needs: with a session too, whatever is sent."""
    theirs = [(m, p) for m, p in table if not p.startswith(("/api/", "/studio/", "/login")) and p != "/"]
    answered = set[str]()
    bodies = [b"", b'{"data": [1], "fn_index": 0, "session_hash": "x"}', b'{"data": {"path": "/etc/passwd"}}', b"[" * 5000]
    for method, path in theirs:
        for body in bodies if method == "POST" else bodies[:1]:
            if "heartbeat" in path:
                continue  # never ends; test_gate says who reaches it
            status, _, said = ask(standing.app, method, path, OWN | cookie(standing) | JSON, pieces=[body])
            assert SECRET.encode() not in said and b"root:" not in said
            if status not in (404, 405):
                answered.add(path)
    assert answered <= {"/gradio_api/app_id", "/theme.css", "/favicon.ico", "/static/{path:path}", "/assets/{path:path}"} | {
        p for _, p in theirs if p.startswith(("/static", "/assets"))
    }


# --- slow -------------------------------------------------------------------------------------------------------------


def test_a_body_that_stops_or_drips_is_cut(standing: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PAUSE_SECONDS", 0.2)
    headers = OWN | cookie(standing) | JSON

    async def sent(
        path: str, headers: dict[str, str], drops: float, piece: bytes = b" ", query: bytes = b""
    ) -> tuple[int, float]:
        async def receive() -> dict[str, Any]:
            await asyncio.sleep(drops)
            return {"type": "http.request", "body": piece, "more_body": True}

        said: list[Any] = []
        began = time.monotonic()
        await asyncio.wait_for(standing.app({**_scope(path, headers), "query_string": query}, receive, _into(said)), 20)
        assert len([m for m in said if m["type"] == "http.response.start"]) == 1
        assert (b"connection", b"close") in said[0]["headers"]
        return said[0]["status"], time.monotonic() - began

    upload = f"token={'0' * 16}&name=a.txt".encode()
    for path, query in (("/api/settings", b""), ("/api/train", b""), ("/api/upload", upload)):
        for drops in (60, 0.02):  # it stops; it drips at 50 bytes a second
            status, seconds = run(sent(path, headers, drops, query=query))
            assert status == 408 and seconds < 5, path
    assert not list(standing.home.rglob(".tmp-*"))
    door = Gate(standing.app, Rules("t" * 40, password="a long password"))

    async def at_the_door() -> int:
        said: list[Any] = []

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(0.02)
            return {"type": "http.request", "body": b"a", "more_body": True}

        await asyncio.wait_for(door(_scope("/login", OWN), receive, _into(said)), 20)
        return said[0]["status"]

    assert run(at_the_door()) == 408


def test_an_honest_body_may_take_its_time() -> None:
    """A clock instead of waiting: at 2 KiB/s a body may come for hours; at half a KiB/s it may not."""
    now = [0.0]

    async def pieces_taken(pace: int, most: int) -> int:
        now[0] = 0.0

        async def receive() -> dict[str, Any]:
            now[0] += 20
            await asyncio.sleep(0)
            return {"type": "http.request", "body": b" " * (20 * pace), "more_body": True}

        coming = patience.in_time(receive, lambda: now[0])
        for number in range(most):
            try:
                await coming()
            except patience.TooSlow:
                return number
        return most

    assert run(pieces_taken(2048, 1000)) == 1000
    assert run(pieces_taken(512, 1000)) == 3  # by then it should be 30 s of 60 at the slowest pace


@contextmanager
def served(app: Any) -> Iterator[int]:
    """A real uvicorn with our protocol, in a thread; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="critical", ws="none", http=patience.Protocol, timeout_keep_alive=2, lifespan="off")
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join(20)


def test_heads_that_never_end_are_cut_and_others_are_served(standing: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "HEAD_SECONDS", 0.5)
    with served(standing.app) as port:
        address = ("127.0.0.1", port)
        silent, begun = ([socket.create_connection(address, timeout=10) for _ in range(30)] for _ in range(2))
        for one in begun:
            one.sendall(b"GET /api/notices HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")  # the head goes on, and on
        refused = socket.create_connection(address, timeout=10)  # answered at once, but its body goes on
        refused.sendall(b"POST /api/settings HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 1000000\r\n\r\n")
        polling = http.client.HTTPConnection(*address, timeout=10)
        polling.connect()
        kept = polling.sock
        for _ in range(10):  # a page that asks again and again on one connection is never cut
            polling.request("GET", "/api/notices", headers=cookie(standing))
            answered = polling.getresponse()
            assert (answered.status, answered.read()) == (200, b"[]") and polling.sock is kept
            for one in (*begun[:5], refused):
                with suppress(OSError):
                    one.sendall(b"X")
            time.sleep(0.15)
        for one in (*silent, *begun, refused):
            said = b""
            with suppress(ConnectionResetError):
                while piece := one.recv(65536):  # nothing more comes, and it does not time out: it was closed
                    said += piece
            assert said == b"" or (one is refused and b" 421 " in said)
            one.close()
        polling.close()


# --- the door ---------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_ten_thousand_wrong_passwords(caplog: pytest.LogCaptureFixture) -> None:
    """From one address: slowed to a dozen a day's hour, memory flat; the right one opens from elsewhere at once, and from there
    after the wait. The password is in no answer and no line of a log."""
    now, password = [0.0], "the right password"
    door = Gate(None, Rules("t" * 40, password=password))  # type: ignore[arg-type]
    door.login = login.Login("", password, clock=lambda: now[0])
    caplog.set_level(logging.DEBUG)

    async def tried(word: str, client: str) -> tuple[int, dict[str, str], bytes]:
        return await answer(door, "POST", "/login", OWN, pieces=[f"password={word}".encode()], client=client)

    async def all_of_them() -> tuple[list[int], int]:
        statuses, before = [0] * 10_000, 0
        for number in range(10_000):
            now[0] += 0.36  # ten thousand in an hour
            await asyncio.sleep(0)  # the loop clears away what it has counted
            statuses[number], answered, page = await tried(f"wrong-{number}", "10.0.0.9")
            assert statuses[number] in (401, 429) and "set-cookie" not in answered and password.encode() not in page
            if number == 1000:
                gc.collect()
                before = len(gc.get_objects())
            if number == 9_000:
                assert (await tried(password.replace(" ", "+"), "10.0.0.7"))[0] == 303  # the owner, while it goes on
        gc.collect()
        return statuses, len(gc.get_objects()) - before

    statuses, grown = run(all_of_them())
    assert statuses.count(401) <= 25, statuses.count(401)  # that many were looked at; all others were told to wait
    assert grown < 100 and len(door.login._tries) == 2
    assert run(tried(password.replace(" ", "+"), "10.0.0.9"))[0] == 429
    now[0] += login.LONGEST_WAIT_SECONDS
    status, answered, _ = run(tried(password.replace(" ", "+"), "10.0.0.9"))
    assert status == 303 and answered["location"] == "/" and password not in str(answered)
    assert password not in caplog.text and "wrong" not in caplog.text
    print(f"10,000 wrong passwords in an hour: {statuses.count(401)} looked at, {grown} objects more than after the first 1000")


def test_one_machine_with_many_addresses_is_one_and_two_behind_one_socket_are_two() -> None:
    door = Gate(None, Rules("t" * 40, password="a long password"))  # type: ignore[arg-type]

    def tried(client: str) -> int:
        return run(answer(door, "POST", "/login", OWN, pieces=[b"password=wrong"], client=client))[0]

    assert [tried(f"2001:db8::{number:x}") for number in range(4)] == [401, 401, 401, 429]
    assert tried("2001:db8:0:1::1") == 401
    assert [tried("::ffff:10.0.0.1") for _ in range(4)] == [401, 401, 401, 429]
    assert tried("::ffff:10.0.0.2") == 401 and tried("10.0.0.1") == 429


def test_the_session_is_in_no_address_and_no_page(standing: World, caplog: pytest.LogCaptureFixture) -> None:
    """The cookie alone carries it; a token in an address opens nothing, and nothing that is served or logged names it."""
    caplog.set_level(logging.DEBUG)
    rules = Rules((standing.home / "token").read_text())
    for query in (
        f"token={rules.token}",
        f"token={rules.session}",
        f"{rules.cookie}={rules.session}",
        f"__sign={rules.session}",
    ):
        assert ask(standing.app, "GET", "/api/settings", OWN, query=query)[0] == 401
    for path in ("/", "/api/settings", "/api/folders", "/api/runs", "/studio/common.js", "/nothing"):
        _, answered, body = ask(standing.app, "GET", path, OWN | cookie(standing))
        assert rules.token not in f"{answered}{body!r}" and rules.session.encode() not in body
    _, answered, _ = ask(standing.app, "GET", "/", OWN)
    assert "HttpOnly; SameSite=Strict" in answered["set-cookie"] and rules.token not in answered["set-cookie"]
    assert rules.token not in caplog.text and rules.session not in caplog.text


def test_without_a_session_nothing_is_answered(standing: World, table: list[tuple[str, str]]) -> None:
    """On a server with a password, as it listens for other machines: every route, with good bodies."""
    app = make_app(
        Context(Settings(), (standing.root,), Words()), Rules("t" * 40, password="a long password", any_address=True)
    )
    good = requests(standing.root / "pics", standing.run.id)
    before = standing.snapshot(standing.home, standing.root)
    for method, path in table:
        body = json.dumps(good[path].body).encode() if path in good else b""
        headers = {**OWN, "host": "192.168.1.9:7860", "origin": "http://192.168.1.9:7860", **JSON}
        status, answered, said = ask(app, method, places(standing, path), headers, pieces=[body])
        expected = (303,) if path == "/" else (200, 401) if path == "/login" else (401, 404, 405)
        assert status in expected, (method, path, status)
        assert "set-cookie" not in answered and standing.run.id.encode() not in said and SECRET.encode() not in said
    assert standing.snapshot(standing.home, standing.root) == before
