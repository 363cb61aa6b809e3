"""The gate: looks at every request before anything else does, and answers the bad ones itself.

Gradio checks neither Host nor Origin and serves far more than this page needs; our own routes need not repeat any of this.

What comes                                            what stops it
- DNS rebinding: evil.example resolves to 127.0.0.1   Host is not on the list: 421. Addresses cannot be rebound, names can
- another site's page posts (form, fetch, upload)     Origin is not Host, or Sec-Fetch-Site is not same-origin: 403
- a page on another port of this host ("same-site":   the same check; cookies know no ports, so a cookie alone would let it in
  other people's servers, notebooks)
- another site reads: <img>, <script>, fetch, frames  Sec-Fetch-Site: 403; where a browser sends none (plain http from another
                                                      machine) the cookie is SameSite=Strict and no answer allows other origins
- a link on another site                              a navigation may show the page itself, nothing else; it is not framed,
                                                      its opener is cut off, and it does nothing by being opened
- a request that no browser sent (curl, scripts)      has neither Origin nor Sec-Fetch-Site: only with the cookie of a session
- another person on the network                       there is no listening there without a password (`web.server`)
- another account on this machine                     a password too: without one, whoever can open the page is let in
- changes by a link or a prefetch                     changes are POSTs, and a GET route that changes anything is a bug
- huge bodies, addresses, headers                     413, 414, 431, counted while they come
- heads and bodies that never end (slow loris)        cut off, 408: see `web.patience`
- scripts slipped into what is shown                  Content-Security-Policy: our own files and this document's nonce only

The session's cookie is made from `<home>/token` and the password: two servers on one home, or one started again, know the same
browsers; a changed password forgets them all. Without a password the page itself hands the cookie out when it is opened.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import json
import os
import re
import secrets
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from limner import disk
from limner.web import login, patience

BODY_BYTES = 4 << 20
UPLOAD_BYTES = 4 << 30
URL_BYTES = 8 << 10
HEADER_BYTES = 32 << 10

ROUTES: tuple[tuple[str, str, str], ...] = (
    # methods, path (a trailing * takes anything behind it), what the page needs it for
    ("GET", "/", "the page"),
    ("GET POST", "/login", "our own, only with a password"),
    ("GET POST", "/api/*", "our own routes"),
    ("GET", "/studio/*", "our own static files"),
    ("GET", "/assets/*", "Gradio's scripts and styles"),
    ("GET", "/static/*", "Gradio's fonts and pictures"),
    ("GET", "/theme.css", "Gradio's colours"),
    ("GET", "/favicon.ico", "the browser asks for it"),
    ("GET", "/gradio_api/heartbeat/*", "tells Gradio when a page is closed, so that it forgets its state"),
    ("GET", "/gradio_api/app_id", "whether the server was started again"),
)
"""All that is answered. Of Gradio's, left out: file= and file/ (our routes serve files by id), proxy= (fetches for others),
info, openapi.json and config (descriptions for machines), queue/, run/, call/, api/, cancel and upload (no Python of ours is
attached to an event of a component), component_server (methods named by the client), login, logout, user, token, stream, reset,
startup-events, deep_link, run-history, runs, custom_component, dev/reload, process_recording, vibe-*, monitoring, profiling,
pwa_icon, manifest.json, robots.txt."""

UPLOADS = "/api/upload"
_SLOW = "The rest of the request did not come in time."

_TOKEN = re.compile(r"[A-Za-z0-9_-]{32,256}", re.ASCII)
_TURN_SECONDS = 5.0

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",  # the page has its own: see `web.document`
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "private, no-cache",
}


_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]


@dataclass(frozen=True)
class Rules:
    """Whom this server answers."""

    token: str
    """The home's secret; see `token_of`."""
    hosts: frozenset[str] = frozenset()
    """This machine's own names besides the loopback ones, in lower case."""
    proxies: frozenset[str] = frozenset()
    """Names of reverse proxies before us, in lower case. Their origins are ours too, whatever the port: a proxy has its own."""
    any_address: bool = False
    """Whether Host may be any IP address, for a server that listens on all of them."""
    password: str = ""
    username: str = ""
    root_path: str = ""
    """The folder of a proxy's address under which we are, such as /limner. The proxy may strip it or not."""

    @property
    def cookie(self) -> str:
        """The cookie's name. Browsers keep one set of cookies for all ports of a host: each home has a name of its own."""
        return f"limner-{hashlib.sha256(self.token.encode()).hexdigest()[:8]}"

    @property
    def session(self) -> str:
        """The cookie's value."""
        said = f"{self.username}\0{self.password}".encode()
        return hmac.new(self.token.encode(), said, "sha256").hexdigest()

    def knows(self, host: str) -> bool:
        """Whether a Host header (or an origin's host and port) names this server."""
        name = _name(host)
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name in ("localhost", *self.hosts, *self.proxies)
        return address.is_loopback or self.any_address or name in self.hosts or name in self.proxies


def token_of(home: Path) -> str:
    """The home's secret, made at the first start; readable by its owner alone. Where it cannot be kept, one for this start."""
    path = home / "token"
    if kept := _token_in(path):
        return kept
    new = secrets.token_urlsafe(32)
    with contextlib.suppress(OSError), disk.lock(disk.own_folder(home / "locks") / "token.lock", _TURN_SECONDS):
        if kept := _token_in(path):  # another server has just made it
            return kept
        if path.is_dir() or (os.path.lexists(path) and path.stat().st_size):
            disk.set_aside(path)
        with disk.replacing(path) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_text(new, encoding="ascii")
    return new


def _token_in(path: Path) -> str:
    """The secret in a file, which from then on its owner alone can read; "" if there is none."""
    try:
        with path.open("rb") as file:
            text = file.read(1000).decode("ascii").strip()
    except (OSError, ValueError):
        return ""
    if not _TOKEN.fullmatch(text):
        return ""
    with contextlib.suppress(OSError):
        path.chmod(0o600)
    return text


class _Cut(Exception):
    """The body is too long or comes too slowly; the answer is sent already."""


class Gate:
    """ASGI: `app` behind the rules."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self.app, self.rules = app, rules
        self.login = login.Login(rules.username, rules.password)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # the page needs no websockets: none is opened, from wherever
            return await send({"type": "websocket.close", "code": 1008})
        headers = _headers(scope)
        send = _with_headers(send)
        path = self._path(scope)
        refused = self._refuse(scope, headers, path)
        if refused is not None:
            return await _answer(send, *refused)
        if path == "/login":
            return await self._at_the_door(scope, receive, send)
        if not self._has_session(headers):
            if path != "/":
                return await _answer(send, 401, "No session. Open the page first.")
            if self.rules.password:
                return await _go(send, f"{self.rules.root_path}/login")
            send = self._giving_cookie(send)
        await self._within_limit(scope, receive, send, UPLOAD_BYTES if path == UPLOADS else BODY_BYTES)
        return None

    def _path(self, scope: Scope) -> str:
        """The path below the root path; puts both into the scope as Starlette wants them."""
        root, path = self.rules.root_path, scope["path"]
        if root:
            if path == root or path.startswith(f"{root}/"):
                path = path[len(root) :] or "/"
            scope["root_path"], scope["path"], scope["raw_path"] = root, root + path, (root + path).encode()
        return path

    def _refuse(self, scope: Scope, headers: dict[str, list[str]], path: str) -> tuple[int, str] | None:
        """(status, why) of a request that nobody else is to see."""
        size = sum(len(k) + len(v) for k, v in scope["headers"])
        if len(scope.get("raw_path") or b"") + len(scope.get("query_string", b"")) > URL_BYTES:
            return 414, "The address is too long."
        if size > HEADER_BYTES or any(len(headers.get(name, ())) > 1 for name in ("host", "origin", "sec-fetch-site")):
            return 431, "The headers are too long, or say one thing twice."
        host = headers.get("host", [""])[0]
        if not self.rules.knows(host):
            return 421, "This server has another name. If this one is right, add it to hosts in Limner's settings.toml."
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return 405, "Only GET and POST are used here."
        allowed = _methods(path)
        if not allowed or (path == "/login" and not self.rules.password):
            return 404, "There is nothing here."
        is_read = scope["method"] != "POST"
        if ("GET" if is_read else "POST") not in allowed:
            return 405, "Not by this method."
        return self._refuse_origin(is_read, host, headers, path)

    def _refuse_origin(self, is_read: bool, host: str, headers: dict[str, list[str]], path: str) -> tuple[int, str] | None:
        def said(name: str) -> str:
            return headers.get(name, [""])[0]

        origin, site = said("origin"), said("sec-fetch-site")
        if origin and not self._is_ours(origin, host):
            return 403, "Another site asked for this."
        if site and site not in (("same-origin", "none") if is_read else ("same-origin",)):
            opened = said("sec-fetch-mode") == "navigate" and said("sec-fetch-dest") == "document"
            if not (is_read and opened and path in ("/", "/login")):
                return 403, "Another site asked for this."
        if not is_read and not origin and not site and not self._has_session(headers):
            return 403, "Neither a browser of this page nor a session."
        return None

    def _is_ours(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin)
            usual = {"http": 80, "https": 443}.get(parts.scheme)
            own = urlsplit(f"//{host}")
            same = parts.hostname == own.hostname and (parts.port or usual) == (own.port or usual)
        except ValueError:
            return False
        return bool(usual and (same or parts.hostname in self.rules.proxies))

    def _has_session(self, headers: dict[str, list[str]]) -> bool:
        # By hand: SimpleCookie drops all if one is odd, and other programs on this host, whatever their port, put theirs here.
        cookies = (cookie.strip().partition("=") for line in headers.get("cookie", ()) for cookie in line.split(";"))
        own = (value for name, _, value in cookies if name == self.rules.cookie)
        return any(hmac.compare_digest(value.encode(), self.rules.session.encode()) for value in own)

    def _giving_cookie(self, send: Send) -> Send:
        where = self.rules.root_path or "/"
        cookie = f"{self.rules.cookie}={self.rules.session}; Path={where}; HttpOnly; SameSite=Strict; Max-Age=31536000"

        async def giving(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 400:
                message = {**message, "headers": [*message["headers"], (b"set-cookie", cookie.encode())]}
            await send(message)

        return giving

    async def _at_the_door(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            return await _answer(send, 200, self.login.page(), "text/html")
        try:
            body = await login.read(patience.in_time(receive))
        except patience.TooSlow:
            return await _answer(send, 408, _SLOW, more={"Connection": "close"})
        wait = self.login.seconds_to_wait(_client(scope))
        if wait > 0:
            page = self.login.page(f"Too many tries. Wait {wait:.0f} seconds.")
            return await _answer(send, 429, page, "text/html", {"Retry-After": f"{wait:.0f}"})
        if not self.login.is_right(body, _client(scope)):
            return await _answer(send, 401, self.login.page("That is not right."), "text/html")
        return await _go(self._giving_cookie(send), f"{self.rules.root_path}/")

    async def _within_limit(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        """Pass the request on; once its body is longer than `limit` bytes, or too slow, answer so, and nobody else does."""
        declared = _headers(scope).get("content-length", ["0"])[0]
        too_long = f"At most {limit >> 20} MiB are taken here."
        if not declared.isdecimal() or len(declared) > 18 or int(declared) > limit:
            return await _answer(send, 413, too_long, more={"Connection": "close"})
        coming, taken, is_answered, is_over = patience.in_time(receive), 0, False, False

        async def counting() -> Message:
            nonlocal taken
            try:
                message = await coming()
            except patience.TooSlow:
                await cut(408, _SLOW)
            taken += len(message.get("body", b""))
            if taken > limit:
                await cut(413, too_long)
            return message

        async def cut(status: int, text: str) -> NoReturn:
            nonlocal is_over
            if not (is_answered or is_over):
                await _answer(send, status, text, more={"Connection": "close"})
            is_over = True
            raise _Cut

        async def watched(message: Message) -> None:
            nonlocal is_answered
            if not is_over:
                is_answered = True
                await send(message)

        try:
            await self.app(scope, counting, watched)
        except _Cut:
            return None


def _methods(path: str) -> str:
    """The methods of the table's row for a path, or ""."""
    for methods, pattern, _ in ROUTES:
        if path == pattern or (pattern.endswith("*") and path.startswith(pattern[:-1])):
            return methods
    return ""


def _name(host: str) -> str:
    """The name in `name:port`, in lower case; "" if it is not written as one."""
    try:
        parts = urlsplit(f"//{host}")
        parts.port  # noqa: B018  raises ValueError for a bad one
    except ValueError:
        return ""
    is_plain = not (parts.path or parts.query or parts.fragment or "@" in host or "\\" in host)
    return (parts.hostname or "") if is_plain else ""


def _headers(scope: Scope) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        out.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return out


def _client(scope: Scope) -> str:
    """Who asks, as far as an address tells: of IPv6 the first half, since one machine has all addresses of the second."""
    host = scope["client"][0] if scope.get("client") else ""
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    return str(address.ipv4_mapped or ipaddress.ip_network((int(address), 64), strict=False))


def _with_headers(send: Send) -> Send:
    """Every answer gets HEADERS, unless whoever made it said something of its own."""

    async def adding(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            said = {name.lower() for name, _ in message.get("headers", ())}
            more = [(k, v) for k, v in _HEADERS if k not in said]
            message = {**message, "headers": [*message.get("headers", ()), *more]}
        await send(message)

    return adding


async def _answer(
    send: Send, status: int, text: str, kind: str = "application/json", more: dict[str, str] | None = None
) -> None:
    """A page, or a refusal as the page's scripts understand it."""
    own = dict(more or {})
    if kind == "application/json":
        finding = {"field": "server", "message": text, "remedy": "", "severity": "error"}
        text = json.dumps({"findings": [finding]})
    else:
        own["Content-Security-Policy"] = login.POLICY
        own["Referrer-Policy"] = "same-origin"  # under no-referrer a posted form's Origin is "null"
    await _send(send, status, {"Content-Type": f"{kind}; charset=utf-8", **own}, text.encode())


async def _go(send: Send, where: str) -> None:
    await _send(send, 303, {"Location": where}, b"")


async def _send(send: Send, status: int, headers: dict[str, str], body: bytes) -> None:
    headers = {**headers, "Content-Length": str(len(body))}
    lines: Iterable[tuple[bytes, bytes]] = [(k.lower().encode(), v.encode()) for k, v in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": list(lines)})
    await send({"type": "http.response.body", "body": body})
