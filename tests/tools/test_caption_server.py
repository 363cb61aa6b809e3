"""Captions by a server: against real ones on loopback, good, busy, broken and hostile; and what all captioners share."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from limner import runs
from limner.config.files import build_as
from limner.config.tools import Tools
from limner.config.tools.captioning import CaptionByServer
from limner.data.undo import Journal
from limner.errors import StopRequested, UserError
from limner.tools import caption_server, vision_endpoint
from limner.tools.caption_loop import cleaned
from limner.tools.tool import Report
from limner.tools.vision_endpoint import parse

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "black": (0, 0, 0)}
Behaviour = Callable[["Asker", dict[str, Any], int], None]


class Asker(BaseHTTPRequestHandler):
    """One question to the server."""

    server: Server

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            number = len(self.server.asked)
            self.server.asked.append(json.loads(content))
            self.server.headers.append(dict(self.headers))
            self.server.paths.append(self.path)
        self.server.behave(self, self.server.asked[number], number)

    def say(self, content: Any, status: int = 200, **headers: str) -> None:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def caption(self, text: Any) -> None:
        self.say({"choices": [{"message": {"role": "assistant", "content": text}}]})

    def log_message(self, *words: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, behave: Behaviour) -> None:
        super().__init__(("127.0.0.1", 0), Asker)
        self.behave, self.lock = behave, threading.Lock()
        self.asked, self.headers, self.paths = list[dict[str, Any]](), list[dict[str, str]](), list[str]()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # who asks may go away


def picture_in(question: dict[str, Any]) -> Image.Image:
    kinds = {part["type"]: part for part in question["messages"][0]["content"]}
    head, _, data = kinds["image_url"]["image_url"]["url"].partition(",")
    assert head in ("data:image/jpeg;base64", "data:image/png;base64")
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


def colour_of(question: dict[str, Any]) -> str:
    """The colour of a picture's middle, found by looking at it."""
    picture = picture_in(question).convert("RGB")
    pixel = picture.getpixel((picture.width // 2, picture.height // 2))
    return min(COLOURS, key=lambda name: sum((a - b) ** 2 for a, b in zip(COLOURS[name], pixel, strict=True)))


def honest(asker: Asker, question: dict[str, Any], number: int) -> None:
    asker.caption(f"a {colour_of(question)} picture")


@pytest.fixture
def serve() -> Iterator[Callable[[Behaviour], Server]]:
    servers = list[Server]()

    def start(behave: Behaviour = honest) -> Server:
        servers.append(Server(behave))
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision_endpoint, "_FIRST_WAIT_SECONDS", 0.01)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "my pictures 猫"
    (root / "sub").mkdir(parents=True)
    for name, colour in {"1": "red", "2": "green", "sub/3": "blue"}.items():
        Image.new("RGB", (64, 48), COLOURS[colour]).save(root / f"{name}.png")
    return root


def section(folder: Path, url: str, **options: Any) -> CaptionByServer:
    raw = {"path": str(folder), "url": url, "model": "m", **options}
    found = build_as(Tools, {"caption_by_server": raw}, {}).caption_by_server
    assert found is not None
    return found


def quiet(done: int, total: int, words: str = "") -> None:
    pass


def run(folder: Path, url: str, **options: Any) -> Report:
    return caption_server.run(section(folder, url, **options), quiet)


def texts(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text("utf-8") for p in sorted(folder.rglob("*.txt"))}


def said(report: Report) -> str:
    return "\n".join([*report.lines, *map(str, report.remarks)])


def anything(path: Path) -> bool:
    return True


RIGHT = {"1.txt": "a red picture\n", "2.txt": "a green picture\n", "sub/3.txt": "a blue picture\n"}


# --- what all captioners share ----------------------------------------------------------------------------------------


def test_each_picture_gets_the_caption_that_was_said_of_it(folder: Path, serve: Any) -> None:
    server = serve()
    report = run(folder, server.url, parallel=3, prompt="What\nis it?")
    assert texts(folder) == RIGHT
    assert sorted(p.name for p in report.files) == ["1.txt", "2.txt", "3.txt"]
    assert report.lines[0] == "3 pictures got a caption." and not report.remarks
    question = server.asked[0]
    assert question["messages"][0]["content"][0] == {"type": "text", "text": "What\nis it?"}
    assert (question["model"], question["max_tokens"], question["temperature"]) == ("m", 300, 0.2)
    assert set(server.paths) == {"/v1/chat/completions"}


def test_looking_writes_and_sends_nothing(folder: Path, serve: Any) -> None:
    server = serve()
    (folder / "1.txt").write_text("mine")
    report = caption_server.look(section(folder, server.url))
    assert report.lines == ["2 pictures would get a caption.", "1 picture had a caption, which was kept."]
    assert sorted(p.name for p in report.files) == ["2.txt", "3.txt"]
    assert texts(folder) == {"1.txt": "mine"} and not server.asked and not (runs.home() / "undo").exists()


@pytest.mark.parametrize(
    ("existing", "after"),
    [
        ("keep", "zwx, old\r\nsecond line"),
        ("append", "zwx, old, [a red picture]\r\nsecond line"),
        ("prepend", "[a red picture], zwx, old\r\nsecond line"),
        ("replace", "[a red picture]\r\nsecond line"),
    ],
)
def test_what_becomes_of_a_caption_that_is_there(folder: Path, serve: Any, existing: str, after: str) -> None:
    (folder / "1.txt").write_bytes("\ufeffzwx, old\r\nsecond line".encode())
    (folder / "2.txt").write_text("\n")
    run(folder, serve().url, existing=existing, prefix="[", suffix="]", subfolders=False)
    assert (folder / "1.txt").read_bytes().decode() == "\ufeff" + after
    assert (folder / "2.txt").read_text().strip() == "[a green picture]"
    assert not (folder / "sub" / "3.txt").exists()


def test_what_is_appended_once_is_not_appended_again(folder: Path, serve: Any) -> None:
    (folder / "1.txt").write_text("old")
    run(folder, serve().url, existing="append")
    run(folder, serve().url, existing="append")
    assert (folder / "1.txt").read_text() == "old, a red picture"


def test_captions_under_other_endings_are_found_and_stay_where_they_are(folder: Path, serve: Any) -> None:
    (folder / "1.caption").write_text("old")
    report = run(folder, serve().url, existing="append", caption_extension=".cap")
    assert "data.caption_extensions" in said(report)
    assert (folder / "1.caption").read_text() == "old, a red picture"
    assert (folder / "2.cap").read_text() == "a green picture\n" and not texts(folder)


def test_the_pages_undo_takes_all_of_it_back_and_brings_it_again(folder: Path, serve: Any) -> None:
    fastapi, testclient = pytest.importorskip("fastapi"), pytest.importorskip("fastapi.testclient")
    from limner.settings import Settings
    from limner.web import dataset_api
    from limner.web.context import Context
    from limner.web.words import Words

    (folder / "1.txt").write_text("old")
    run(folder, serve().url, existing="replace")
    assert texts(folder)["1.txt"] == "a red picture"
    app = fastapi.FastAPI()
    app.include_router(dataset_api.router(Context(Settings(), (folder.parent.resolve(),), Words())))
    client, body = testclient.TestClient(app), {"view": {"data.path": str(folder)}}
    answer = client.post("/api/dataset/undo", json=body).json()
    assert answer["changed"] == 3 and answer["entry"] == {"kind": "caption_by_server", "detail": "m", "files": 3}
    assert texts(folder) == {"1.txt": "old"}
    client.post("/api/dataset/redo", json=body)
    assert texts(folder) == {**RIGHT, "1.txt": "a red picture"}


def stop_after(count: int) -> Callable[..., None]:
    def progress(done: int, total: int, words: str = "") -> None:
        if done >= count:
            raise StopRequested

    return progress


@pytest.mark.parametrize("existing", ["keep", "append", "replace"])
def test_a_stopped_run_keeps_what_is_done_and_the_next_goes_on(folder: Path, serve: Any, existing: str) -> None:
    """Neither is asked twice; and one undo takes both halves back."""
    before = {} if existing == "keep" else {f"{n}.txt": "old" for n in ("1", "2", "sub/3")}
    for name, text in before.items():
        (folder / name).write_text(text)
    server = serve()
    with pytest.raises(StopRequested):
        caption_server.run(section(folder, server.url, parallel=1, existing=existing), stop_after(2))
    half = texts(folder)
    assert sum("picture" in text for text in half.values()) == 2
    report = run(folder, server.url, parallel=2, existing=existing)  # how it is done may change
    assert len(server.asked) == 3 and report.lines[0] == "1 picture got a caption."
    whole = texts(folder)
    assert all(text.count("picture") == 1 for text in whole.values()) and len(whole) == 3
    assert half.items() <= whole.items() or existing != "keep"
    outcome = Journal(runs.home() / "undo").undo(folder, anything)
    assert outcome is not None and outcome.changed == 3 and texts(folder) == before


def test_a_finished_run_is_not_gone_on_with(folder: Path, serve: Any) -> None:
    server = serve(lambda asker, question, number: asker.caption(f"number {number}"))
    run(folder, server.url, parallel=1)
    run(folder, server.url, parallel=1, existing="replace")
    run(folder, server.url, parallel=1, existing="replace")
    assert texts(folder) == {"1.txt": "number 6\n", "2.txt": "number 7\n", "sub/3.txt": "number 8\n"}


def test_running_it_again_tries_only_what_failed(folder: Path, serve: Any) -> None:
    def behave(asker: Asker, question: dict[str, Any], number: int) -> None:
        if colour_of(question) == "red" and number < 3:
            asker.say({}, 400)
        else:
            asker.caption(f"number {number}")

    for name in ("1.txt", "2.txt", "sub/3.txt"):
        (folder / name).write_text("old")
    server = serve(behave)
    for asked in (3, 4, 7):  # all, the one that failed, and, that being finished, all again
        run(folder, server.url, parallel=1, existing="append", separator=" + ")
        assert len(server.asked) == asked
    assert (folder / "1.txt").read_text() == "old + number 3 + number 4"
    assert (folder / "2.txt").read_text() == "old + number 1 + number 5"


def test_what_somebody_writes_meanwhile_is_not_overwritten(folder: Path, serve: Any) -> None:
    def behave(asker: Asker, question: dict[str, Any], number: int) -> None:
        if colour_of(question) == "blue":  # the last of them: the others wait to be written
            (folder / "1.txt").write_text("by hand")
        honest(asker, question, number)

    report = run(folder, serve(behave).url, parallel=1)
    assert texts(folder) == {**RIGHT, "1.txt": "by hand"}
    assert "1.txt: was not written: it was changed by somebody else since" in said(report)
    assert report.lines[0] == "2 pictures got a caption."


def test_broken_pictures_are_named_and_the_rest_goes_on(folder: Path, serve: Any) -> None:
    (folder / "0.png").write_bytes(b"")
    whole = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(whole[:60])  # its header says a size, its pixels are gone
    (folder / "2.txt").write_bytes(b"\xff\xfe\x00")
    report = run(folder, serve().url)
    assert {k: v for k, v in RIGHT.items() if k == "sub/3.txt"} == {"sub/3.txt": (folder / "sub/3.txt").read_text()}
    for name in ("0.png", "1.png", "2.txt"):
        assert name in said(report)
    assert all(f.severity == "warning" for f in report.remarks) and not (folder / "1.txt").exists()


def test_pictures_that_share_a_caption_file_are_one(folder: Path, serve: Any) -> None:
    Image.new("RGB", (64, 48), COLOURS["black"]).save(folder / "1.jpg")
    server = serve()
    run(folder, server.url)
    assert len(server.asked) == 3 and (folder / "1.txt").read_text() in ("a red picture\n", "a black picture\n")


def test_a_caption_that_only_the_folders_name_gave_is_said_to_be_lost(folder: Path, serve: Any) -> None:
    (folder / "sub").rename(folder / "10_zwx dog")
    url = serve().url
    assert "'zwx dog'" in said(caption_server.look(section(folder, url)))
    assert not caption_server.look(section(folder, url, prefix="zwx dog, ")).remarks


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_out_of_the_folder_are_neither_sent_nor_written_through(folder: Path, tmp_path: Path, serve: Any) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.new("RGB", (64, 48), COLOURS["black"]).save(outside / "secret.png")
    (outside / "victim.txt").write_text("theirs")
    (folder / "link.png").symlink_to(outside / "secret.png")
    (folder / "all").symlink_to(outside, target_is_directory=True)
    (folder / "1.txt").symlink_to(outside / "victim.txt")
    (folder / "2.txt").symlink_to(outside / "new.txt")
    server = serve()
    report = run(folder, server.url, existing="replace")
    assert [colour_of(question) for question in server.asked] == ["blue"]
    assert sorted(p.name for p in outside.iterdir()) == ["secret.png", "victim.txt"]
    assert (outside / "victim.txt").read_text() == "theirs" and "link.png" in said(report) and "1.png" in said(report)


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ('  "A cat,\n\n on a\tmat."  ', "A cat, on a mat."),
        ("“a cat”", "a cat"),
        ('"a" and "b"', '"a" and "b"'),
        ("\x1b[31mred\x00\x07 \ud800cat\u2028dog", "[31mred cat dog"),
        ("'''", "'''"),
        ("猫 🐈", "猫 🐈"),
        (" \n ", ""),
    ],
)
def test_what_is_made_of_an_answer(text: str, caption: str) -> None:
    assert cleaned(text) == caption


def test_a_long_answer_is_cut_at_a_word() -> None:
    assert cleaned("one two three", 9) == "one two"
    assert cleaned("one two three", 7) == "one two"
    assert cleaned("x" * 50, 9) == "x" * 9
    assert len(cleaned("a " * 10_000_000)) <= 20_000


# --- hostile words ----------------------------------------------------------------------------------------------------

PAYLOADS = [
    '"; touch {}; #',
    "$(touch {})",
    "`touch {}`",
    ".txt; touch {};",
    ".txt|touch {}",
    ".txt & touch {} &",
    "4; touch {}",
]


@pytest.mark.parametrize("shape", PAYLOADS)
def test_the_payloads_of_kohyas_advisories_are_only_words(folder: Path, tmp_path: Path, serve: Any, shape: str) -> None:
    """CVE-2024-32022, 32025, 32026, 32027: shell words in a caption, model id, prompt, folder or count."""
    payload = shape.format(tmp_path / "fired")
    server = serve(lambda asker, question, number: asker.caption(payload))
    run(folder, server.url, model=payload, prompt=payload, prefix=payload)
    assert (folder / "1.txt").read_text() == cleaned(payload + cleaned(payload)) + "\n"
    assert server.asked[0]["model"] == payload
    with pytest.raises(UserError, match="path"):
        run(folder / payload, server.url)
    for option in ("url", "caption_extension", "key_variable", "image_format", "parallel"):
        with pytest.raises(UserError, match=option):
            run(folder, **{"url": server.url, option: payload})
    assert not (tmp_path / "fired").exists()


@pytest.mark.parametrize("extension", ["/../../x.txt", "/../name", ".py", ".json", "", ".png", ".txt/", ".txt\n", "txt"])
def test_only_captions_endings_are_written(folder: Path, serve: Any, extension: str) -> None:
    """CVE-2024-32023 and 32024: a path, or another kind of file, as the caption's ending."""
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(UserError, match="caption_extension"):
        run(folder, serve().url, caption_extension=extension)
    assert sorted(folder.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "url",
    [
        "", "localhost:1234", "file:///etc/passwd", "ftp://a/", "http://", "http:///v1", "http://a:99999/", "http://a:b/",
        "http://key@host/v1", "http://u:p@host/v1", "http://host/v1?key=1", "http://host/#a", "http://ho st/", "http://[::1/",
        "http://host/a b", "http://a\\b/", "javascript:alert(1)", "http://a\r\nHost: b/", "http://" + "a" * 300 + ".com/",
    ],
)  # fmt: skip
def test_addresses_that_are_none(folder: Path, url: str) -> None:
    with pytest.raises(UserError, match=r"caption_by_server\.url"):
        caption_server.look(section(folder, url))


@pytest.mark.parametrize(
    ("url", "is_near"),
    [
        ("http://localhost:1234/v1", True), ("http://127.0.0.1/v1", True), ("http://[::1]:80/", True),
        ("http://10.1.2.3", True),
        ("http://192.168.0.9:8000", True), ("http://gpu-box:8000", True), ("http://gpu.lan", True), ("http://8.8.8.8", False),
        ("https://api.openai.com/v1", False), ("https://localhost.example.com", False),
        ("http://[2001:4860:4860::8888]", False),
    ],
)  # fmt: skip
def test_it_is_said_when_pictures_leave_this_machine(folder: Path, url: str, is_near: bool) -> None:
    assert parse(url, "url").is_near == is_near
    told = said(caption_server.look(section(folder, url)))
    assert ("leave this machine" in told) is not is_near
    assert ("not encrypted" in told) is (not is_near and url.startswith("http:"))


# --- how pictures are sent --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "sent"), [((3000, 1000), (512, 171)), ((100, 1200), (43, 512)), ((300, 200), (300, 200))])
@pytest.mark.parametrize("image_format", ["jpeg", "png"])
def test_pictures_are_made_smaller(tmp_path: Path, serve: Any, size: Any, sent: Any, image_format: str) -> None:
    Image.new("RGB", size, COLOURS["green"]).save(tmp_path / "a.png")
    server = serve()
    run(tmp_path, server.url, max_side_px=512, image_format=image_format)
    picture = picture_in(server.asked[0])
    assert picture.size == sent and picture.format == image_format.upper()
    assert (tmp_path / "a.txt").read_text() == "a green picture\n"


def test_the_key_comes_from_the_environment_and_is_never_written(
    folder: Path, serve: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = serve()
    run(folder, server.url)
    assert "Authorization" not in server.headers[-1]
    with pytest.raises(UserError, match="MY_API_KEY is not set"):
        caption_server.look(section(folder, server.url, key_variable="MY_API_KEY"))
    monkeypatch.setenv("MY_API_KEY", "sk-very-secret")
    run(folder, server.url, key_variable="MY_API_KEY", existing="replace")
    assert server.headers[-1]["Authorization"] == "Bearer sk-very-secret"
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"very-secret" not in path.read_bytes()
    monkeypatch.setenv("MY_API_KEY", "a\r\nX-Other: b")
    with pytest.raises(UserError, match="no usable key"):
        run(folder, server.url, key_variable="MY_API_KEY")


@pytest.mark.parametrize("name", ["PATH", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "my_api_key", "A=API_KEY", "X_API_KEY\n"])
def test_other_secrets_of_the_environment_cannot_be_sent(folder: Path, name: str) -> None:
    with pytest.raises(UserError, match="key_variable"):
        section(folder, "http://localhost", key_variable=name)


# --- servers that do not simply answer --------------------------------------------------------------------------------


def test_busy_and_failing_servers_are_asked_again(folder: Path, serve: Any) -> None:
    def behave(asker: Asker, question: dict[str, Any], number: int) -> None:
        if number == 0:
            asker.say({"error": {"message": "slow down"}}, 429, Retry_After="0")
        elif number == 1:
            asker.say(b"<html>", 503)
        elif number == 2:
            asker.connection.shutdown(socket.SHUT_RDWR)
        else:
            honest(asker, question, number)

    server = serve(behave)
    run(folder, server.url, parallel=1, retries=3)
    assert texts(folder) == RIGHT and len(server.asked) == 6


def test_waits_double_and_obey_the_server(folder: Path, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision_endpoint, "_FIRST_WAIT_SECONDS", 0.1)
    times = list[float]()

    def behave(asker: Asker, question: dict[str, Any], number: int) -> None:
        times.append(time.monotonic())
        asker.say({}, 500, **({"Retry_After": "1"} if number == 2 else {}))

    (folder / "2.png").unlink()
    report = run(folder, serve(behave).url, subfolders=False, retries=3)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert len(gaps) == 3 and 0.1 <= gaps[0] < 0.9 and 0.2 <= gaps[1] < 0.9 and 1.0 <= gaps[2] < 3
    assert "the server answers 500" in said(report) and not texts(folder)


@pytest.mark.parametrize("status", [301, 302, 307, 401, 403, 404, 405])
def test_what_holds_for_all_pictures_ends_it_at_once(folder: Path, serve: Any, status: int) -> None:
    other = serve()

    def behave(asker: Asker, question: dict[str, Any], number: int) -> None:
        asker.say({"error": {"message": "no \x1b[31m way"}}, status, Location=f"{other.url}/chat/completions")

    server = serve(behave)
    with pytest.raises(UserError, match=rf"{status}\).*no .*way") as caught:
        run(folder, server.url, parallel=1)
    assert len(server.asked) == 1 and not other.asked and "\x1b" not in str(caught.value) and not texts(folder)


def test_an_answer_that_one_picture_cannot_get_is_no_end(folder: Path, serve: Any) -> None:
    def behave(asker: Asker, question: dict[str, Any], number: int) -> None:
        if colour_of(question) == "red":
            asker.say({"error": {"message": "too rude"}}, 400)
        else:
            honest(asker, question, number)

    server = serve(behave)
    report = run(folder, server.url)
    assert texts(folder) == {k: v for k, v in RIGHT.items() if k != "1.txt"} and len(server.asked) == 3
    assert "1.png: got no caption: the server answers 400: too rude" in said(report)
    assert "1 picture could not be captioned" in said(report)


def choices(content: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"content": content}}]}).encode()


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"{", b"[]", b"null", b"7", b'"text"', b"{}", b'{"choices": []}', b'{"choices": {}}', b'{"choices": [7]}',
        b'{"choices": [{"message": null}]}', choices(None), choices(7), choices(True), choices({}), choices([7]),
        choices([{"type": "text", "text": 7}]), choices(""), choices(" \n\x00"), choices("<think>hm, a cat"), b"\xff\xfe\x00",
        b"[" * 200_000, b'{"choices": [{"message": {"content": "' + b"x" * 10_000_000 + b'"}}]}',
    ],
    ids=lambda raw: raw[:30].decode("latin-1"),
)  # fmt: skip
def test_answers_that_hold_no_caption(folder: Path, serve: Any, answer: bytes) -> None:
    server = serve(lambda asker, question, number: asker.say(answer))
    report = run(folder, server.url)
    assert not texts(folder) and said(report).count("got no caption") == 3 and len(server.asked) == 3


@pytest.mark.parametrize(
    ("content", "caption"),
    [
        ([{"type": "text", "text": "a"}, {"type": "other"}, {"type": "text", "text": "cat"}], "a cat"),
        ("<think>\nHm.\n</think>\n\nA cat.", "A cat."),
        ('"\u202ea\x00 cat\nline two"', "\u202ea cat line two"),
        ("x " * 5000, ("x " * 1000).strip()),
    ],
)
def test_answers_are_brought_into_a_captions_form(folder: Path, serve: Any, content: Any, caption: str) -> None:
    run(folder, serve(lambda asker, question, number: asker.caption(content)).url)
    assert (folder / "1.txt").read_text("utf-8") == caption + "\n"


@pytest.mark.parametrize("kind", ["says nothing", "drips its headers", "drips its answer", "goes on saying 100"])
def test_a_slow_server_is_given_up(folder: Path, serve: Any, kind: str) -> None:
    ended = threading.Event()

    def behave(asker: Asker, question: dict[str, Any], number: int) -> None:
        start, piece = {
            "says nothing": (b"", b""),
            "drips its headers": (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
            "drips its answer": (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x"),
            "goes on saying 100": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        }[kind]
        asker.wfile.write(start)
        while not ended.wait(0.05):
            asker.wfile.write(piece)

    began = time.monotonic()
    report = run(folder, serve(behave).url, timeout_seconds=0.4, retries=1, parallel=3)
    ended.set()
    assert time.monotonic() - began < 10 and said(report).count("did not answer within 0.4 s") == 3


def test_a_stop_does_not_wait_for_the_server(folder: Path, serve: Any) -> None:
    ended = threading.Event()

    def behave(asker: Asker, question: dict[str, Any], number: int) -> None:
        if number == 0:
            honest(asker, question, number)
        else:
            ended.wait(20)

    began = time.monotonic()

    def progress(done: int, total: int, words: str = "") -> None:
        if done == 1 and time.monotonic() - began > 0.5:
            raise StopRequested

    with pytest.raises(StopRequested):
        caption_server.run(section(folder, serve(behave).url, parallel=1), progress)
    assert time.monotonic() - began < 10
    assert texts(folder) == {"1.txt": RIGHT["1.txt"]}
    deadline = time.monotonic() + 3
    while any(t.name.startswith("ThreadPoolExecutor") for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(t.name.startswith("ThreadPoolExecutor") for t in threading.enumerate())
    ended.set()


def test_a_server_that_is_not_there_is_said_at_once(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(UserError, match="nothing answers"):
            run(folder, url)


def test_a_server_that_fails_all_the_time_is_given_up(tmp_path: Path, serve: Any) -> None:
    for number in range(14):
        Image.new("RGB", (16, 16), COLOURS["red"]).save(tmp_path / f"{number:02}.png")

    def behave(asker: Asker, question: dict[str, Any], number: int) -> None:
        asker.say({}, 500) if number > 1 else honest(asker, question, number)

    server = serve(behave)
    with pytest.raises(UserError, match="10 pictures in a row"):
        run(tmp_path, server.url, retries=0, parallel=1)
    assert len(server.asked) == 12 and sorted(texts(tmp_path)) == ["00.txt", "01.txt"]  # what was answered is kept


def test_requests_go_out_at_once(folder: Path, serve: Any) -> None:
    together = threading.Barrier(3)

    def behave(asker: Asker, question: dict[str, Any], number: int) -> None:
        together.wait(5)  # answers only when all three are there
        honest(asker, question, number)

    run(folder, serve(behave).url, parallel=3, retries=0)
    assert texts(folder) == RIGHT
