"""The gate: every route of the route table x every kind of bad request; nothing behind the gate sees one of them."""

from __future__ import annotations

import itertools
import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from raw_requests import HOST, OWN, ask, run
from route_table import routes_of

from limner.settings import Settings
from limner.web import gate, login, server
from limner.web.app import bare_app, make_app
from limner.web.context import Context
from limner.web.gate import Gate, Rules
from limner.web.words import Words

RULES = Rules("t" * 40, hosts=frozenset({"192.168.1.5"}), proxies=frozenset({"studio.example"}))
COOKIE = {"cookie": f"{RULES.cookie}={RULES.session}"}


class Behind:
    """What is behind the gate: counts what comes through, reads the whole body, answers 200."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.body = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen.append(f"{scope['method']} {scope['path']}")
        while True:
            message = await receive()
            self.body += len(message.get("body", b""))
            if not message.get("more_body"):
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"data"})


@pytest.fixture(scope="module")
def routes() -> list[tuple[str, str]]:
    """(method, path) of all that the application answers, Gradio's routes and static files among them."""
    app = bare_app(Context(Settings(), (), Words()))
    return sorted({(method, path) for methods, path, _ in routes_of(app) for method in methods})


def test_the_table_of_routes_is_complete(routes: list[tuple[str, str]]) -> None:
    paths = {path for _, path in routes}
    assert {
        "/",
        "/api/settings",
        "/studio/common.js",
        "/gradio_api/upload",
        "/gradio_api/proxy={url_path:path}",
        "/config",
    } <= paths
    assert len(routes) > 60


BAD: dict[str, dict[str, str]] = {
    "a rebound name": {**OWN, "host": "evil.example:7860", "origin": "http://evil.example:7860"},
    "a rebound name, no fetch metadata": {"host": "evil.example"},
    "no host": {k: v for k, v in OWN.items() if k != "host"},
    "a name that begins like ours": {**OWN, "host": "localhost.evil.example"},
    "a user before the host": {**OWN, "host": f"evil.example@{HOST}"},
    "a bad port": {**OWN, "host": "127.0.0.1:x"},
    "an address that is not ours": {**OWN, "host": "192.168.1.7:7860"},
    "another site's fetch": {**OWN, "origin": "https://evil.example", "sec-fetch-site": "cross-site"},
    "another site's origin alone": {"host": HOST, "origin": "https://evil.example"},
    "another port": {**OWN, "origin": "http://127.0.0.1:9000", "sec-fetch-site": "same-site"},
    "another port's origin alone": {"host": HOST, "origin": "http://127.0.0.1:9000"},
    "localhost is not 127.0.0.1": {"host": HOST, "origin": "http://localhost:7860"},
    "a sandboxed frame": {"host": HOST, "origin": "null"},
    "an origin that is no address": {"host": HOST, "origin": "http://[x"},
    "an image": {"host": HOST, "sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"},
    "a frame": {"host": HOST, "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
    "a same-site frame": {
        "host": HOST,
        "sec-fetch-site": "same-site",
        "sec-fetch-mode": "navigate",
        "sec-fetch-dest": "iframe",
    },
    "metadata nobody knows": {"host": HOST, "sec-fetch-site": "friendly"},
    # browsers send no metadata over plain http from another machine, and cookies know no ports
    "another port of our own address": {"host": "192.168.1.5:7860", "origin": "http://192.168.1.5:8000"},
}


@pytest.mark.parametrize("password", ["", "a long password"])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_reaches_no_route(routes: list[tuple[str, str]], name: str, password: str) -> None:
    behind, rules = Behind(), replace(RULES, password=password)
    cookie = f"{rules.cookie}={rules.session}"
    app = Gate(behind, rules)
    for (method, path), session in itertools.product(routes, (True, False)):
        for asked in {method, "GET", "POST"}:
            status, _, body = ask(app, asked, path, {**BAD[name], **({"cookie": cookie} if session else {})})
            assert status in (403, 404, 405, 421), (asked, path)
            assert b"data" not in body
    assert behind.seen == []


def test_no_session_reaches_only_the_page(routes: list[tuple[str, str]]) -> None:
    for password, cookie in itertools.product(
        ("", "a long password"), ("", f"{RULES.cookie}=guess", f"{RULES.cookie}={RULES.session}x", "limner=")
    ):
        behind = Behind()
        app = Gate(behind, Rules(RULES.token, password=password))
        for method, path in routes:
            status, answered, _ = ask(app, method, path, {**OWN, "cookie": cookie})
            if path == "/" and not password:
                assert status == 200 and "HttpOnly; SameSite=Strict" in answered["set-cookie"]
            elif path == "/":
                assert (status, answered["location"]) == (303, "/login")
            else:
                assert status in (401, 404, 405) or path in ("/login", "/login/"), path
                assert "set-cookie" not in answered
        assert set(behind.seen) == (set() if password else {"GET /", "HEAD /"})


def test_a_session_reaches_what_the_page_needs_and_nothing_else(routes: list[tuple[str, str]]) -> None:
    behind = Behind()
    for method, path in routes:
        ask(Gate(behind, RULES), method, path, {**OWN, **COOKIE})
    assert all(gate._methods(seen.split()[1]) for seen in behind.seen)
    reached = {seen.split()[1] for seen in behind.seen if "gradio_api" in seen}
    assert reached == {
        "/gradio_api/heartbeat/{session_hash}",
        "/gradio_api/app_id",
    }
    assert {"GET /", "POST /api/settings", "GET /studio/common.js"} <= set(behind.seen)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "CONNECT", "get"])
def test_changes_are_posts(routes: list[tuple[str, str]], method: str) -> None:
    behind = Behind()
    for _, path in routes:
        assert ask(Gate(behind, RULES), method, path, {**OWN, **COOKIE})[0] in (404, 405)
    assert behind.seen == []


@pytest.mark.parametrize(
    "headers",
    [
        {"host": HOST, **COOKIE},  # curl with the cookie
        {"host": "localhost", "origin": "http://localhost:80", **COOKIE},
        {"host": "[::1]:7860", "origin": "http://[::1]:7860", **COOKIE},
        {
            "host": "127.0.0.1:7860",
            "origin": "https://studio.example",
            "sec-fetch-site": "same-origin",
            **COOKIE,
        },  # through a proxy
        {"host": "Studio.Example", "origin": "http://studio.example", **COOKIE},
        {**OWN, "cookie": f"a=b; {COOKIE['cookie']}; c=d"},
    ],
)
def test_good_requests_pass(headers: dict[str, str]) -> None:
    behind = Behind()
    assert ask(Gate(behind, RULES), "POST", "/api/settings", headers, pieces=[b"12", b"3"])[0] == 200
    assert behind.body == 3


@pytest.mark.parametrize("host", ["192.168.1.5", "my-machine", "127.0.0.1", "studio.example"])
def test_only_a_proxys_origin_may_have_another_port(home: Path, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """As a browser asks over plain http from another machine: the cookie goes to all ports, and nothing says same-site."""
    monkeypatch.setattr(socket, "gethostname", lambda: "My-Machine")
    kept = Settings(hosts=("studio.example",))
    rules = server.rules_for(server.Asked("192.168.1.5"), kept, password="a long password", root_path="", loopback=False)
    headers = {"host": f"{host}:7860", "cookie": f"{rules.cookie}={rules.session}"}
    behind = Behind()
    own = {**headers, "origin": f"http://{host}:7860"}
    assert ask(Gate(behind, rules), "POST", "/api/train", own)[0] == 200
    other = {**headers, "origin": f"http://{host}:8000"}
    assert ask(Gate(behind, rules), "POST", "/api/train", other)[0] == (200 if host == "studio.example" else 403)


def test_an_odd_cookie_of_another_program_does_no_harm() -> None:
    mine = COOKIE["cookie"]
    for cookie in (f'theirs={{"a": 1}}; {mine}', f"{mine}; b[]=,@", f"=; ;{mine}", f"a b; {mine}; c", f'x="; {mine}; y'):
        assert ask(Gate(Behind(), RULES), "GET", "/api/settings", {**OWN, "cookie": cookie})[0] == 200, cookie
    for cookie in (f"x{mine}", f"a={mine}", f"{RULES.cookie}=", f"{mine}x", "é", f"{RULES.cookie}=é"):
        assert ask(Gate(Behind(), RULES), "GET", "/api/settings", {**OWN, "cookie": cookie})[0] == 401, cookie


def test_neither_origin_nor_metadata_needs_a_session() -> None:
    behind = Behind()
    for rules in (RULES, Rules(RULES.token, password="a long password")):
        for path in ("/api/settings", "/api/upload", "/login"):
            assert ask(Gate(behind, rules), "POST", path, {"host": HOST})[0] in (403, 404)
    assert behind.seen == []


def test_a_link_from_elsewhere_shows_the_page_and_only_that() -> None:
    link = {"host": HOST, "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    behind = Behind()
    assert ask(Gate(behind, RULES), "GET", "/", link)[0] == 200
    assert ask(Gate(behind, RULES), "GET", "/api/settings", {**link, **COOKIE})[0] == 403
    assert ask(Gate(behind, RULES), "POST", "/", {**link, **COOKIE})[0] == 405


def test_addresses_are_taken_only_where_all_are_listened_on() -> None:
    behind, headers = Behind(), {"host": "192.168.1.7:7860", **COOKIE}
    assert ask(Gate(behind, RULES), "GET", "/api/settings", headers)[0] == 421
    assert ask(Gate(behind, Rules(RULES.token, any_address=True)), "GET", "/api/settings", headers)[0] == 200
    evil = {"host": "evil.example", **COOKIE}
    assert ask(Gate(behind, Rules(RULES.token, any_address=True)), "GET", "/api/settings", evil)[0] == 421


@pytest.mark.parametrize("declared", [None, "10", "99999999999999999999", "-1", "x"])
def test_bodies_are_counted(monkeypatch: pytest.MonkeyPatch, declared: str | None) -> None:
    monkeypatch.setattr(gate, "BODY_BYTES", 1000)
    monkeypatch.setattr(gate, "UPLOAD_BYTES", 5000)
    headers = {**OWN, **COOKIE, **({"content-length": declared} if declared else {})}
    behind = Behind()
    status, answered, _ = ask(Gate(behind, RULES), "POST", "/api/settings", headers, pieces=[b"x" * 400] * 4)
    assert (status, answered["connection"]) == (413, "close")
    assert behind.body <= 800
    if declared in (None, "10"):
        behind = Behind()
        assert ask(Gate(behind, RULES), "POST", "/api/upload", headers, pieces=[b"x" * 400] * 4)[0] == 200
        assert behind.body == 1600


def test_the_real_application_answers_413_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "BODY_BYTES", 1000)
    app = make_app(Context(Settings(), (), Words()), RULES)
    headers = {**OWN, **COOKIE, "content-type": "application/json"}
    for path in ("/api/settings", "/api/train"):
        assert ask(app, "POST", path, headers, pieces=[b" " * 400] * 9)[0] == 413


def test_long_addresses_and_headers() -> None:
    behind = Behind()
    good = {**OWN, **COOKIE}
    assert ask(Gate(behind, RULES), "GET", "/api/folders", good, query="path=" + "x" * 9000)[0] == 414
    assert ask(Gate(behind, RULES), "GET", "/api/folders", {**good, "x": "y" * 40_000})[0] == 431
    assert ask(Gate(behind, RULES), "GET", "/api/folders", [*good.items(), ("host", "evil.example")])[0] == 431
    assert ask(Gate(behind, RULES), "GET", "/api/folders", [*good.items(), ("origin", "http://evil.example")])[0] == 431
    assert behind.seen == []


def test_websockets_are_refused() -> None:
    said: list[Any] = []

    async def send(message: Any) -> None:
        said.append(message)

    scope = {"type": "websocket", "path": "/gradio_api/queue/join", "headers": [(b"host", HOST.encode())]}
    run(Gate(Behind(), RULES)(scope, None, send))  # type: ignore[arg-type]
    assert said == [{"type": "websocket.close", "code": 1008}]


def test_every_answer_has_the_headers() -> None:
    app = Gate(Behind(), RULES)
    for path, headers in (("/api/folders", {**OWN, **COOKIE}), ("/api/folders", OWN), ("/nothing", OWN), ("/", {"host": "x"})):
        answered = ask(app, "GET", path, headers)[1]
        assert {name.lower() for name in gate.HEADERS} <= set(answered), path
        assert "access-control-allow-origin" not in answered


def test_the_cookie_follows_home_and_password(tmp_path: Path) -> None:
    first, again, other = gate.token_of(tmp_path / "a"), gate.token_of(tmp_path / "a"), gate.token_of(tmp_path / "b")
    assert first == again != other and len(first) >= 32
    assert (tmp_path / "a" / "token").stat().st_mode & 0o777 == 0o600
    (tmp_path / "a" / "token").write_text("short")
    assert len(gate.token_of(tmp_path / "a")) >= 32
    assert Rules(first).cookie != Rules(other).cookie
    assert (
        len({Rules(first).session, Rules(first, password="x").session, Rules(first, password="x", username="y").session}) == 3
    )


# --- the door ---

DOOR = Rules("t" * 40, password="a long password", username="ada")


def _post(app: Any, **form: str) -> tuple[int, dict[str, str], bytes]:
    from urllib.parse import urlencode

    return ask(app, "POST", "/login", OWN, pieces=[urlencode(form).encode()])


def test_the_right_password_opens() -> None:
    behind = Behind()
    app = Gate(behind, DOOR)
    status, _, page = ask(app, "GET", "/login", OWN)
    assert status == 200 and b'type="password"' in page
    for form in ({}, {"password": DOOR.password}, {"username": "ada"}, {"username": "ada", "password": "a long passwore"}):
        app = Gate(behind, DOOR)
        status, answered, _ = _post(app, **form)
        assert status == 401 and "set-cookie" not in answered
    status, answered, _ = _post(app, username="ada", password=DOOR.password)
    assert (status, answered["location"]) == (303, "/")
    cookie = answered["set-cookie"].partition(";")[0]
    assert ask(app, "GET", "/api/settings", {**OWN, "cookie": cookie})[0] == 200
    assert (
        ask(Gate(behind, Rules(DOOR.token, password="another one")), "GET", "/api/settings", {**OWN, "cookie": cookie})[0]
        == 401
    )


def test_hostile_forms_are_only_wrong() -> None:
    for body in (b"\xff\xfe", b"a=1&" * 50, b"password=" + b"x" * 10_000, b"", b"password[]=x", b"%00=%00"):
        assert ask(Gate(Behind(), DOOR), "POST", "/login", OWN, pieces=[body])[0] == 401


def test_wrong_tries_make_one_wait_longer_and_longer() -> None:
    now = [0.0]
    door = login.Login("", "right", clock=lambda: now[0])
    waits = []
    for _ in range(14):
        assert not door.is_right(b"password=wrong", "1.2.3.4")
        waits.append(door.seconds_to_wait("1.2.3.4"))
        now[0] += waits[-1]
    assert waits == [0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    assert door.seconds_to_wait("5.6.7.8") == 0
    now[0] += 3600
    assert not door.is_right(b"password=wrong", "1.2.3.4") and door.seconds_to_wait("1.2.3.4") == 0


def test_many_addresses_make_everybody_wait_and_take_no_memory() -> None:
    door = login.Login("", "right", clock=lambda: 0.0)
    for number in range(3000):
        door.is_right(b"password=wrong", f"10.0.{number >> 8}.{number & 255}")
    assert door.seconds_to_wait("8.8.8.8") == 300
    assert len(door._tries) <= login._ADDRESSES


def test_waiting_is_said() -> None:
    app = Gate(Behind(), DOOR)
    for _ in range(login.FREE_TRIES):
        assert _post(app, password="wrong")[0] == 401
    status, answered, page = _post(app, username="ada", password=DOOR.password)
    assert status == 429 and int(answered["retry-after"]) >= 1 and b"Wait" in page


def test_a_root_path_may_be_stripped_or_not() -> None:
    behind = Behind()
    rules = Rules(RULES.token, root_path="/x")
    for path in ("/x/api/settings", "/api/settings"):
        assert ask(Gate(behind, rules), "GET", path, {**OWN, "cookie": f"{rules.cookie}={rules.session}"})[0] == 200
    assert behind.seen == ["GET /x/api/settings"] * 2
    assert "Path=/x;" in ask(Gate(behind, rules), "GET", "/x/", OWN)[1]["set-cookie"]


def test_refusals_are_findings() -> None:
    said = json.loads(ask(Gate(Behind(), RULES), "GET", "/api/settings", OWN)[2])
    assert said["findings"][0]["message"] == "No session. Open the page first."
