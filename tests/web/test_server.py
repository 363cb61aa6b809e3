"""`limner web` as a real process: where it listens, whom it refuses, how it ends, what it never calls."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from playwright.sync_api import Browser, Page, expect

import forked
from limner import queue, runs
from limner.config import files

pytestmark = pytest.mark.slow
WEB = [sys.executable, "-m", "limner.cli", "web"]


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`limner web WORDS...`, forked, until it ends."""
    with forked.forks():
        return subprocess.run(
            [*WEB, *words], capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
            env={**os.environ, **environment},
        )  # fmt: skip


def get(url: str, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    parts = urlsplit(url)
    asking = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=60)
    asking.request("GET", path, headers=headers)
    answer = asking.getresponse()
    found = answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    asking.close()
    return found


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_no_listening_elsewhere_without_a_password(home: Path, host: str) -> None:
    done = run("--host", host, "--port", "0")
    assert done.returncode == 2 and "LIMNER_PASSWORD" in done.stderr and "Traceback" not in done.stderr
    done = run("--host", host, "--port", "0", LIMNER_PASSWORD="short")
    assert done.returncode == 2 and "8 characters" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "no.such.name.invalid"], "no address of this machine"),
        (["--port", "70000"], "is no port"),
        (["--root-path", "x"], "no folder of an address"),
        (["--root-path", "/studio"], "uses itself"),
        (["--root-path", "/../x"], "no folder of an address"),
        (["--root-path", '/"x'], "no folder of an address"),
    ],
)
def test_mistakes_are_said_in_words(home: Path, words: list[str], said: str) -> None:
    done = run(*words)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_sharing_is_an_ssh_line(home: Path) -> None:
    done = run("--share", "--port", "7000")
    assert done.returncode == 2 and "ssh -L 7000:127.0.0.1:7000 " in done.stdout


def test_a_taken_port(home: Path, limner_web: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run("--port", str(taken.getsockname()[1]))
    assert done.returncode == 2 and "is taken" in done.stderr
    first, second = limner_web(is_forked=True).url, limner_web(is_forked=True).url  # both on the first free port from 7860 on
    ports = [urlsplit(url).port or 0 for url in (first, second)]
    assert ports[0] != ports[1] and all(7860 <= port <= 7880 for port in ports)
    cookie = get(first, "/")[1]["set-cookie"].partition(";")[0]
    assert get(second, "/api/settings", Cookie=cookie)[0] == 200  # one home, one session


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_though_a_page_is_open(home: Path, limner_web: Callable[..., Any], how: signal.Signals) -> None:
    server = limner_web("--port", "0")
    cookie = get(server.url, "/")[1]["set-cookie"].partition(";")[0]
    parts = urlsplit(server.url)
    listening = http.client.HTTPConnection(parts.hostname or "", parts.port or 80)
    listening.request("GET", "/gradio_api/heartbeat/abc", headers={"Cookie": cookie})
    assert listening.getresponse().status == 200  # a stream that never ends by itself
    began = time.monotonic()
    server.process.send_signal(how)
    server.process.wait(30)
    assert time.monotonic() - began < 10  # 1.7 s where nothing else runs; the open stream would hold it for ever
    assert "Traceback" not in server.output


def environment_of_a_child(pid: int) -> dict[str, str]:
    """What the first process that `pid` starts has inherited."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for child in psutil.Process(pid).children():
            with contextlib.suppress(psutil.Error):  # between its fork and its own program, or gone already
                if "limner.runner" in child.cmdline():
                    return child.environ()
        time.sleep(0.02)
    raise AssertionError("no runner was started")


@pytest.mark.long
def test_a_password_is_asked_for(home: Path, limner_web: Callable[..., Any], browser: Browser) -> None:
    server = limner_web("--host", "0.0.0.0", "--port", "0", "--username", "ada", LIMNER_PASSWORD="a long password")
    assert get(server.url, "/")[1]["location"] == "/login"
    assert get(server.url, "/api/settings")[0] == 401
    page = browser.new_page()
    page.set_default_timeout(60_000)
    page.goto(server.url)
    page.fill("#username", "ada")
    page.fill("#password", "wrong")
    page.click("button")
    expect(page.get_by_role("alert")).to_have_text("That is not right.")
    page.fill("#username", "ada")
    page.fill("#password", "a long password")
    page.click("button")
    page.wait_for_selector("#tabs")
    said = page.evaluate("fetch('api/tensorboard', {method: 'POST'}).then(a => a.json())")
    assert "has no password" in said["findings"][0]["message"]
    page.close()
    run = runs.create(files.build({}, {"launch.device": "cpu"}))  # without pictures: it fails at once
    queue.enqueue(run)  # the server sees to it that a runner serves it
    seen = environment_of_a_child(server.process.pid)
    assert seen["LIMNER_HOME"] == str(home) and "LIMNER_PASSWORD" not in seen
    until = time.monotonic() + 120
    while run.state().status != "failed":
        assert time.monotonic() < until, run.state()
        time.sleep(0.1)


def test_settings_reach_the_page(home: Path, limner_web: Callable[..., Any], browser: Browser) -> None:
    home.mkdir()
    (home / "settings.toml").write_text('theme = "dark"\nlanguage = "xx"\n')
    server = limner_web("--port", "0", is_forked=True)
    page = browser.new_page()
    page.set_default_timeout(60_000)
    page.goto(server.url)
    page.wait_for_selector("body.dark #tabs")
    note = page.locator(".limner-note.warning", has_text="settings.toml: language")
    expect(note).to_be_visible()
    assert page.evaluate("document.documentElement.dataset.language") == "en"
    assert "settings.toml: language" in server.output
    page.close()


@pytest.mark.long
def test_weight_and_memory(home: Path, limner_web: Callable[..., Any], browser: Browser) -> None:
    server = limner_web("--port", "0")
    page = browser.new_context().new_page()
    page.goto(server.url)
    page.wait_for_selector("#tabs", timeout=60_000)
    assert len(page.content()) < 1_500_000
    _, headers, body = get(server.url, "/")
    assert len(body) < 1_500_000 and "nonce-" in headers["content-security-policy"]
    assert psutil.Process(server.process.pid).memory_info().rss < 250 << 20
    page.context.close()


def test_it_answers_within_five_seconds(home: Path, limner_web: Callable[..., Any]) -> None:
    """Measured in CPU time, which a loaded machine lengthens little: the server does nothing but compute until it answers."""
    seconds = []
    for _ in range(3):
        server = limner_web("--port", "0")
        assert get(server.url, "/")[0] == 200
        times = psutil.Process(server.process.pid).cpu_times()
        seconds.append(times.user + times.system)
        server.end()
    assert statistics.median(seconds) < 5


def test_no_tensor_library_and_nothing_called(home: Path) -> None:
    """Start the server with every socket watched: it looks nothing up and connects nowhere but to this machine."""
    code = """
import sys, threading, time, urllib.request
calls, stubs = [], []
def watch(name, given):
    if name == "open" and str(given[0]).endswith(".pyi"):
        stubs.append(given[0])
    if name in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        calls.append((name, str(given[1] if name in ("socket.connect", "socket.sendto") else given[0])))
sys.addaudithook(watch)
from limner.web import server
import uvicorn
class Once(uvicorn.Server):
    async def main_loop(self):
        import asyncio
        def ask():
            urllib.request.urlopen(URL[0]).read()
        await asyncio.to_thread(ask)
        await asyncio.sleep(3)
URL = []
real = server._address
server._address = lambda *a: URL.append(real(*a)) or URL[-1]
uvicorn.Server = Once
server.serve(server.Asked(port=0))
print("CALLS", [c for c in calls if "127.0.0.1" not in c[1]])
print("STUBS", stubs[:3])
print("HEAVY", [m for m in ("torch", "diffusers", "transformers", "accelerate") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert all(nothing in done.stdout for nothing in ("CALLS []", "HEAVY []", "STUBS []")), done.stdout + done.stderr


@contextmanager
def reverse_proxy(target: str, *, strips: bool, passes_host: bool) -> Iterator[str]:
    """A tiny proxy that shows `target` under /limner."""
    parts = urlsplit(target)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def _pass_on(self) -> None:
            if not self.path.startswith("/limner/"):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {
                k: v for k, v in self.headers.items() if k.lower() not in ("connection", *(() if passes_host else ("host",)))
            }
            asking = http.client.HTTPConnection(parts.hostname or "", parts.port or 80)
            asking.request(self.command, self.path.removeprefix("/limner") if strips else self.path, body, headers)
            answer = asking.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "server", "date"):
                    self.send_header(name, value)
            self.end_headers()
            while chunk := answer.read1(65536):
                self.wfile.write(chunk)
            asking.close()

        do_GET = do_POST = do_HEAD = _pass_on

        def log_message(self, *words: Any) -> None:
            del words

    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.daemon_threads = True
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    yield f"http://localhost:{proxy.server_address[1]}"
    proxy.shutdown()
    proxy.server_close()


@pytest.mark.parametrize(("strips", "passes_host"), [(True, True), (False, True), (True, False)])
def test_behind_a_reverse_proxy(
    home: Path, limner_web: Callable[..., Any], browser: Browser, strips: bool, passes_host: bool
) -> None:
    home.mkdir()
    (home / "settings.toml").write_text('hosts = ["localhost"]\n')
    server = limner_web("--port", "0", "--root-path", "/limner", is_forked=True)
    with reverse_proxy(re.sub("/limner$", "", server.url), strips=strips, passes_host=passes_host) as shown:
        page = browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("response", lambda r: errors.append(f"{r.status} {r.url}") if r.status >= 400 else None)
        page.set_default_timeout(60_000)
        page.goto(f"{shown}/limner/")
        page.wait_for_selector("#panel-new-run .panel > *")
        said = page.evaluate("import('./studio/common.js').then(c => c.post('api/settings', {theme: 'dark'}))")
        assert said["theme"] == "dark"
        assert page.evaluate("gradio_config.root") == f"{shown}/limner"
        assert errors == []
        page.close()


def test_another_origin_neither_reads_nor_posts(page: Page, server: str, home: Path, browser: Browser) -> None:
    """A page of another server on this machine, under both names of it, while our page is open in the same browser."""

    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<title>elsewhere</title>")

        def log_message(self, *words: Any) -> None:
            del words

    other = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    attack = """async (target) => {
      const told = [];
      const post = {method: "POST", credentials: "include", body: '{"theme": "dark"}'};
      const form = new FormData();
      form.append("files", new Blob(["x"]), "x.png");
      for (const [path, options] of [
        ["/", {}], ["/api/settings", {}], ["/api/settings", {mode: "no-cors"}],
        ["/studio/common.js", {}], ["/gradio_api/app_id", {}],
        ["/api/settings", post], ["/api/settings", {...post, headers: {"Content-Type": "application/json"}}],
        ["/api/settings", {...post, mode: "no-cors"}],
        ["/api/upload?token=x&name=x.png", {method: "POST", credentials: "include", body: form, mode: "no-cors"}],
      ]) {
        try {
          const answer = await fetch(target + path, {credentials: "include", ...options});
          told.push(answer.type === "opaque" ? "opaque" : await answer.text());
        } catch { told.push("refused"); }
      }
      for (const [tag, path] of [["img", "/favicon.ico"], ["script", "/studio/common.js"], ["iframe", "/"]]) {
        told.push(await new Promise((done) => {
          const element = document.createElement(tag);
          element.onload = () => {
            try {
              done(tag !== "iframe" ? "loaded" : element.contentDocument ? "read" : "refused");
            } catch { done("refused"); }
          };
          element.onerror = () => done("refused");
          element.src = target + path;
          document.body.append(element);
        }));
      }
      return told;
    }"""
    for name in ("127.0.0.1", "localhost"):
        elsewhere = page.context.new_page()
        elsewhere.goto(f"http://{name}:{other.server_address[1]}/")
        told = elsewhere.evaluate(attack, server)
        assert set(told) <= {"refused", "opaque"}, told
        elsewhere.close()
    other.shutdown()
    other.server_close()
    assert not (home / "settings.toml").exists() and not list(home.rglob("x.png"))
    mine = page.evaluate("fetch('api/settings').then(a => a.json())")
    assert mine["theme"] == "system"
    assert json.dumps(mine)
