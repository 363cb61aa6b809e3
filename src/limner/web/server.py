"""`limner web`: the address, the password, the life of the server's process."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import getpass
import inspect
import ipaddress
import logging
import os
import socket
import sys
import webbrowser
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uvicorn

from limner import damage, runs, settings
from limner.errors import Finding, wrong
from limner.web import gate, patience, places, words
from limner.web.context import Context

PORT, PORTS = 7860, 21
GRACE_SECONDS = 1
LEAST_PASSWORD = 8
_M_ARENA_MAX = -8
"""Of malloc.h."""


@dataclass(frozen=True)
class Asked:
    """What was asked on the command line; None leaves it to the settings."""

    host: str = "127.0.0.1"
    port: int | None = None
    username: str = ""
    inbrowser: bool = False
    root_path: str = ""
    allowed_path: Sequence[Path] = ()
    language: str | None = None
    theme: str | None = None
    headless: bool = False
    share: bool = False


def serve(asked: Asked) -> int:
    """Answer until somebody ends it. Raises UserError for what cannot be."""
    if asked.share:
        print(_instead_of_sharing(asked.port or PORT))
        return 2
    root_path = _root_path(asked.root_path)
    damage.mend(runs.home())
    kept, findings = settings.read(runs.home(), aside=True)
    kept = replace(kept, theme=asked.theme or kept.theme, language=asked.language or kept.language)
    loopback = _is_loopback(asked.host)
    password = _password(needed=not loopback)
    with contextlib.suppress(OSError):  # said on the page, which is up all the same
        runs.home().mkdir(parents=True, exist_ok=True)
    with _listen(asked.host, asked.port) as listening:
        port = listening.getsockname()[1]
        rules = rules_for(asked, kept, password=password, root_path=root_path, loopback=loopback)
        context = context_for(asked, kept, findings, password=password, root_path=root_path, loopback=loopback)
        for finding in [*context.notices, *damage.findings(runs.home())]:
            print(finding, file=sys.stderr, flush=True)
        return _answer(context, rules, listening, _address(asked.host, port, root_path), asked.inbrowser and not asked.headless)


def rules_for(asked: Asked, kept: settings.Settings, *, password: str, root_path: str, loopback: bool) -> gate.Rules:
    """Whom the server answers. Only the names in the settings are a proxy's, whose port is not ours."""
    return gate.Rules(
        token=gate.token_of(runs.home()),
        hosts=frozenset({asked.host.lower(), *({socket.gethostname().lower()} if not loopback else ())}),
        proxies=frozenset(kept.hosts),
        any_address=_is_any(asked.host),
        password=password,
        username=asked.username,
        root_path=root_path,
    )


def context_for(
    asked: Asked, kept: settings.Settings, found: list[Finding], *, password: str, root_path: str, loopback: bool
) -> Context:
    """What the page is given, with what was `found` and whoever else can open it said in its notices."""
    proxied = bool(root_path or kept.hosts)
    open_to = [] if password else [_PROXIED] * proxied + [_CROWDED] * places.has_other_users()
    roots = places.default_roots(kept, runs.home(), asked.allowed_path, private=not (password or open_to))
    said = [*found, *open_to]
    return Context(kept, roots, _words(kept.language, said), tuple(said), loopback and not proxied)


_PROXIED = Finding(
    "limner web",
    "it answers for another server, and everybody who can reach that one can open this page and train here.",
    "Set LIMNER_PASSWORD, unless that server asks for a password itself.",
    "warning",
)
_CROWDED = Finding(
    "limner web",
    "other people have accounts on this machine, and each of them can open this page.",
    "Set LIMNER_PASSWORD to keep it to yourself.",
    "warning",
)


def _have_threads_share_memory() -> None:
    """What one of glibc's threads frees another may have: else forty of them, each with memory of its own, grow for days."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_ARENA_MAX, 1)


@contextlib.contextmanager
def _without_stubs() -> Iterator[None]:
    """Gradio writes a file for editors beside each of its components whenever it is imported, half of what that takes; for a
    class that has no file it does not."""
    file_of = inspect.getfile

    def getfile(thing: Any) -> str:
        if isinstance(thing, type) and thing.__module__.startswith("gradio."):
            raise OSError("no stub for editors")
        return file_of(thing)

    inspect.getfile = getfile
    try:
        yield
    finally:
        inspect.getfile = file_of


def _answer(context: Context, rules: gate.Rules, listening: socket.socket, url: str, inbrowser: bool) -> int:
    _have_threads_share_memory()
    with _without_stubs():
        from limner.web import app  # imports gradio: seconds, which a mistake in the address need not wait for

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print(f"Limner is at {url}", flush=True)
            if inbrowser:
                webbrowser.open(url)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # open streams are cut off: no error
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app.make_app(context, rules),
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=bool(rules.root_path),
        ws="none",
        http=patience.Protocol,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    Server(config).run(sockets=[listening])
    return 0


def _words(language: str, findings: list[Finding]) -> words.Words:
    if language in words.LANGUAGES:
        return words.words_of(language)
    findings.append(
        Finding("language", f"{language!r} has no words yet.", f"There are: {', '.join(words.LANGUAGES)}.", "warning")
    )
    return words.words_of("en")


def _password(*, needed: bool) -> str:
    """The password, or "" for none. It is taken out of the environment: no trainer inherits it."""
    password = os.environ.pop("LIMNER_PASSWORD", "")
    if not needed:
        return password
    if not password and sys.stdin.isatty():
        password = getpass.getpass("A password for the page: ")
    if not password:
        raise wrong("host", "other machines could come in without a password.", "Set LIMNER_PASSWORD, or leave --host out.")
    if len(password) < LEAST_PASSWORD:
        raise wrong("LIMNER_PASSWORD", f"is shorter than {LEAST_PASSWORD} characters.", "Choose a longer one.")
    return password


def _root_path(text: str) -> str:
    path = text.rstrip("/")
    parts = path.split("/")[1:]
    if path and (
        not path.startswith("/") or not all(p and p.isascii() and p.replace("-", "").replace("_", "").isalnum() for p in parts)
    ):
        raise wrong("root-path", f"{text!r} is no folder of an address.", "Write it like /limner.")
    if parts and parts[0] in {pattern.split("/")[1] for _, pattern, _ in gate.ROUTES}:
        raise wrong("root-path", f"{text!r} is a name that Limner uses itself.", "Choose another, such as /limner.")
    return path


def _is_any(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    """Whether all addresses of a name are this machine's own."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        return all(ipaddress.ip_address(a[4][0]).is_loopback for a in found)
    except (OSError, ValueError):
        raise wrong(
            "host", f"{host!r} is no address of this machine.", "Leave it out, or give one such as 127.0.0.1."
        ) from None


def _listen(host: str, port: int | None) -> socket.socket:
    """A socket on `port` (0 is any free one), or without one on the first free port from PORT on."""
    if port is not None and not 0 <= port < 65536:
        raise wrong("port", f"{port} is no port.", "Give one from 1 to 65535, or 0 for any.")
    candidates = [port] if port is not None else list(range(PORT, PORT + PORTS))
    family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
    for candidate in candidates:
        try:
            listening = socket.create_server((host, candidate), family=family)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                continue
            raise wrong("host", f"cannot listen on {host!r}: {error.strerror}.", "Choose another address.") from None
        if port is None and candidate != PORT:
            print(f"Port {PORT} is taken.", flush=True)
        return listening
    if port is None:
        raise wrong("port", f"{PORT} to {PORT + PORTS - 1} are all taken.", "Give another with --port.")
    raise wrong("port", f"{port} is taken, or not yours to use.", "Give another, or leave --port out.")


def _address(host: str, port: int, root_path: str) -> str:
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}{root_path}/"


def _instead_of_sharing(port: int) -> str:
    return (
        "Limner is not shared through somebody else's server. From the other machine, this does the same safely:\n"
        f"    ssh -L {port}:127.0.0.1:{port} {getpass.getuser()}@{socket.gethostname()}\n"
        f"then open http://127.0.0.1:{port}/ there, while `limner web` runs here."
    )
