"""One question about one picture to a server that speaks OpenAI's language (POST <base>/chat/completions), and its answer.

Redirects are not followed: they would carry the key and the picture elsewhere. What a server says is not trusted: it is read
up to a limit of size and time, and only the one field of it is used that holds the answer.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import ipaddress
import json
import re
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from limner.errors import printable, wrong

MAX_ANSWER_BYTES = 1 << 20
_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 60.0
_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
_HOPELESS = {
    401: "wants a key", 403: "refuses the key", 404: "has no such address or model", 405: "takes no questions at this address",
}  # fmt: skip
"""What will be so with every picture."""
_THOUGHTS = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_DAMAGE = (OSError, http.client.HTTPException, ValueError)


@dataclass(frozen=True)
class Endpoint:
    """Where the questions go."""

    host: str
    port: int
    is_secure: bool
    path: str

    @property
    def is_near(self) -> bool:
        """Whether it is this machine or in a private network, as far as its name tells."""
        with contextlib.suppress(ValueError):
            address = ipaddress.ip_address(self.host.partition("%")[0])
            return address.is_loopback or address.is_private or address.is_link_local
        name = self.host.rstrip(".").lower()
        return "." not in name or name.endswith((".localhost", ".local", ".lan", ".internal", ".home.arpa"))


@dataclass(frozen=True)
class Asked:
    """What is asked of the model, the same for every picture. `key` is sent, never shown."""

    model: str
    prompt: str
    max_tokens: int
    temperature: float
    key: str = ""


class NoAnswer(Exception):
    """This picture gets none; the text says why."""


class _TryAgain(Exception):
    """It may be answered a little later. `seconds`: how long the server asks to wait, 0 if it does not say."""

    def __init__(self, why: str, seconds: float = 0.0) -> None:
        super().__init__(why)
        self.seconds = seconds


def parse(url: str, field: str) -> Endpoint:
    """The endpoint behind a base URL. Raises UserError unless it is a plain http or https address."""
    remedy = "Write a base URL such as http://localhost:1234/v1 ."
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname, parts.port
        host = host.encode("idna").decode() if host and ":" not in host else host
    except ValueError:  # UnicodeError among them
        raise wrong(field, f"{printable(url, 80)!r} is not a URL.", remedy) from None
    if parts.scheme not in ("http", "https") or not host or not re.fullmatch(r"[\w.:%-]+", host, re.ASCII):
        raise wrong(field, f"{printable(url, 80)!r} is no http:// or https:// address.", remedy)
    if parts.username is not None or parts.password is not None:
        raise wrong(
            field, "holds a name or password.", "Put the key into an environment variable, and name it in key_variable."
        )
    if parts.query or parts.fragment or not re.fullmatch(r"[!-~]*", parts.path):
        raise wrong(field, f"{printable(url, 80)!r} holds more than an address.", remedy)
    path = parts.path.rstrip("/")
    path = path if path.endswith("/chat/completions") else f"{path}/chat/completions"
    is_secure = parts.scheme == "https"
    return Endpoint(host, port or (443 if is_secure else 80), is_secure, path)


def encoded(image: Image.Image, max_side: int, image_format: str) -> str:
    """An RGB picture as a data URL, made smaller to `max_side` px on its longest side if it is larger."""
    if max(image.size) > max_side:
        scale = max_side / max(image.size)
        image = image.resize([max(1, round(s * scale)) for s in image.size], Image.Resampling.LANCZOS)  # type: ignore[arg-type]
    file = io.BytesIO()
    image.save(file, image_format.upper(), **({"quality": 90} if image_format == "jpeg" else {}))
    return f"data:image/{image_format};base64,{base64.b64encode(file.getvalue()).decode()}"


class Conversation:
    """Asks an endpoint; several threads may do so at once. `end` makes all of them give up at once."""

    def __init__(self, endpoint: Endpoint, asked: Asked, retries: int, timeout_seconds: float) -> None:
        self._endpoint, self._asked, self._retries, self._timeout = endpoint, asked, retries, timeout_seconds
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._open = dict[http.client.HTTPConnection, float]()
        self._has_answered = False

    def ask(self, picture: str) -> str:
        """What the model says of a picture (a data URL). Raises NoAnswer, and UserError for what no picture would get past."""
        asked = self._asked
        content = [{"type": "text", "text": asked.prompt}, {"type": "image_url", "image_url": {"url": picture}}]
        body = {"model": asked.model, "messages": [{"role": "user", "content": content}]}
        body |= {"max_tokens": asked.max_tokens, "temperature": asked.temperature, "stream": False}
        sent, wait = json.dumps(body).encode(), _FIRST_WAIT_SECONDS
        for attempt in range(self._retries + 1):
            try:
                return _text_of(self._post(sent))
            except _TryAgain as error:
                if attempt == self._retries:
                    raise NoAnswer(f"the server {error}") from None
                if self._ended.wait(min(_LONGEST_WAIT_SECONDS, max(wait, error.seconds))):
                    break
                wait *= 2
        raise NoAnswer("it was stopped")

    def hurry(self) -> None:
        """Give up answers that take longer than they may: a server that sends a byte now and then never times out by itself."""
        now = time.monotonic()
        with self._lock:
            late = [c for c, deadline in self._open.items() if now > deadline]
        for connection in late:
            _cut(connection)

    def end(self) -> None:
        """Give up all that is under way."""
        self._ended.set()
        with self._lock:
            for connection in self._open:
                _cut(connection)

    def _post(self, body: bytes) -> bytes:
        where, deadline = self._endpoint, time.monotonic() + self._timeout
        if where.is_secure:
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(where.host, where.port, timeout=self._timeout, context=context)
        else:
            connection = http.client.HTTPConnection(where.host, where.port, timeout=self._timeout)
        with self._lock:
            if self._ended.is_set():
                raise NoAnswer("it was stopped")
            self._open[connection] = deadline
        try:
            headers = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close"}
            if self._asked.key:
                headers["Authorization"] = f"Bearer {self._asked.key}"
            connection.request("POST", where.path, body, headers)
            response = connection.getresponse()
            content = response.read(MAX_ANSWER_BYTES + 1)
            if time.monotonic() >= deadline or self._ended.is_set():
                raise TimeoutError  # a connection that was cut looks like an answer's end
            if response.length and len(content) <= MAX_ANSWER_BYTES:
                raise OSError("the answer is not whole")
        except ssl.SSLCertVerificationError as error:
            said = f"the server's certificate is not trusted ({printable(error.verify_message, 80)})."
            raise wrong("caption_by_server.url", said, "Mend its certificate, or use http in your own network.") from None
        except _DAMAGE as error:
            if self._ended.is_set():
                raise NoAnswer("it was stopped") from None
            if isinstance(error, ConnectionRefusedError | socket.gaierror) and not self._has_answered:
                said = f"{where.host}:{where.port} {_why(error)}."
                raise wrong("caption_by_server.url", said, "Start the server, or mend the address.") from None
            late = time.monotonic() >= deadline or isinstance(error, TimeoutError)
            raise _TryAgain(f"did not answer within {self._timeout:g} s" if late else _why(error)) from None
        finally:
            with self._lock:
                del self._open[connection]
            connection.close()
        self._has_answered = True
        _check(response, content)
        return content


def _check(response: http.client.HTTPResponse, content: bytes) -> None:
    """Raises what an answer that holds no caption means."""
    status = response.status
    if status in _AGAIN:
        raise _TryAgain(f"answers {status}{_message_in(content)}", _asked_wait(response))
    if status in _HOPELESS or 300 <= status < 400:
        said = f"the server {_HOPELESS.get(status, 'sends us elsewhere')} ({status}){_message_in(content)}."
        raise wrong("caption_by_server.url", said, "Look at caption_by_server.url, model and key_variable.")
    if status != 200:
        raise NoAnswer(f"the server answers {status}{_message_in(content)}")
    if len(content) > MAX_ANSWER_BYTES:
        raise NoAnswer("the server's answer is over 1 MiB")


def _text_of(content: bytes) -> str:
    """The caption in an answer. Raises NoAnswer if there is none of the right kind."""
    try:
        said: Any = json.loads(content)["choices"][0]["message"]["content"]
        if isinstance(said, list):
            said = " ".join(part["text"] for part in said if part["type"] == "text")
    except (ValueError, RecursionError, LookupError, TypeError):
        raise NoAnswer("the server's answer is not in OpenAI's form") from None
    if not isinstance(said, str):
        raise NoAnswer("the server's answer holds no text")
    text = _THOUGHTS.sub("", said).strip()
    if not text:
        raise NoAnswer("the server's answer is empty")
    return text


def _message_in(content: bytes) -> str:
    """What the server says is wrong, if it says so in OpenAI's form; nothing else of an answer is ever shown."""
    try:
        said = json.loads(content)["error"]
        said = said["message"] if isinstance(said, dict) else said
    except (ValueError, RecursionError, LookupError, TypeError):
        return ""
    return f": {printable(said, 160)}" if isinstance(said, str) and said else ""


def _asked_wait(response: http.client.HTTPResponse) -> float:
    text = response.headers.get("Retry-After", "").strip()
    return float(text) if re.fullmatch(r"[0-9]{1,6}", text, re.ASCII) else 0.0


def _why(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "cannot be reached: nothing answers at its address"
    if isinstance(error, socket.gaierror):
        return "cannot be reached: its name is not known"
    return f"broke off ({printable(error, 80) or type(error).__name__})"


def _cut(connection: http.client.HTTPConnection) -> None:
    """Make the thread that reads from a connection give up."""
    sock = connection.sock
    if sock is not None:
        with contextlib.suppress(OSError):
            # not SSLSocket's own, which takes the encryption away under the reading thread
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
