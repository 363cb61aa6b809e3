"""The door of a server with a password: its page, the comparison, and the waiting after wrong tries."""

from __future__ import annotations

import hashlib
import hmac
import html
import time
from collections.abc import Callable
from urllib.parse import parse_qs

from starlette.types import Receive

POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
LIMIT_BYTES = 4096
FREE_TRIES, FREE_TRIES_OF_ALL = 3, 30
LONGEST_WAIT_SECONDS = 300.0
_ADDRESSES = 1000

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Limner</title>
<style>:root{{color-scheme:light dark;font-family:system-ui,sans-serif}}
body{{display:grid;place-content:center;min-height:100vh;margin:0}}form{{display:grid;gap:.8rem;width:min(20rem,90vw)}}
input,button{{font:inherit;padding:.5rem}}h1{{margin:0;font-size:1.4rem}}p{{margin:0}}</style></head>
<body><form method="post"><h1>Limner</h1>{said}
{name}<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required autofocus>
<button>Come in</button></form></body></html>
"""
_NAME = '<label for="username">Name</label><input id="username" name="username" autocomplete="username" required>'


class Login:
    """Whether somebody may come in. Wrong tries make their address wait, each twice as long as the one before; many wrong
    tries from everywhere make everybody wait, but not those of an address that waits the longest already: else a single one
    could keep all others out. Behind a proxy all come from one address.
    """

    def __init__(self, username: str, password: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._username, self._right, self._clock = username, _digest(username, password), clock
        self._tries: dict[str, tuple[int, float]] = {}
        """Address ("" is everybody) -> wrong tries, and when the next may be made."""

    def page(self, said: str = "") -> str:
        """The form; `said` tells why it is shown again."""
        note = f'<p role="alert">{html.escape(said)}</p>' if said else ""
        return _PAGE.format(said=note, name=_NAME if self._username else "")

    def seconds_to_wait(self, client: str) -> float:
        """Until this address may try again, in seconds; 0 if it may now."""
        now = self._clock()
        return max(0.0, *(self._tries.get(who, (0, 0.0))[1] - now for who in (client, "")))

    def is_right(self, body: bytes, client: str) -> bool:
        """Compare a posted form in constant time, and remember a wrong one."""
        try:
            form = parse_qs(body.decode("utf-8"), keep_blank_values=True, max_num_fields=4)
        except ValueError:
            form = {}
        name = form.get("username", [""])[0] if self._username else ""
        if hmac.compare_digest(_digest(name, form.get("password", [""])[0]), self._right):
            self._tries.pop(client, None)
            return True
        if self._note(client, FREE_TRIES) < LONGEST_WAIT_SECONDS:
            self._note("", FREE_TRIES_OF_ALL)
        return False

    def _note(self, who: str, free: int) -> float:
        """Count a wrong try; returns the seconds to wait."""
        tries, until = self._tries.pop(who, (0, 0.0))
        now = self._clock()
        tries = tries + 1 if now - until < 2 * LONGEST_WAIT_SECONDS else 1  # forgotten after a quiet time
        wait = 0.0 if tries < free else min(2.0 ** min(tries - free, 20), LONGEST_WAIT_SECONDS)
        self._tries[who] = tries, now + wait
        while len(self._tries) > _ADDRESSES:
            del self._tries[next(iter(self._tries))]
        return wait


def _digest(username: str, password: str) -> bytes:
    return hashlib.sha256(f"{username}\0{password}".encode("utf-8", "surrogatepass")).digest()


async def read(receive: Receive) -> bytes:
    """A posted form; b"" if it is longer than any password."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] != "http.request" or len(body) > LIMIT_BYTES:
            return b""
        if not message.get("more_body"):
            return body
