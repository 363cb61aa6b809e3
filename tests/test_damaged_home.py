"""Every kind of damage to Limner's home: the page's routes, the commands and the runner go on, what was damaged is renamed and
never lost, and people are told.

A home in use is copied for each kind, damaged, and then used as the server, `limner` and the runner use it, in this process.
Two kinds are shown to a real server as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from PIL import Image
from starlette.testclient import TestClient

from limner import cli, damage, disk, expect, jobs, machine, queue, runner, runs, settings
from limner.config import Config, files
from limner.data.undo import Journal, Write
from limner.runs import Run, State
from limner.web import gate, server
from limner.web.app import own_routes

GIB = 1 << 30
NOBODY = 65534
CPU = {"torch": "2.13.0", "torch_build": "cpu", "cores": 2, "memory_mib": 16_000, "gpu_without_torch": ""}
CPU |= {"devices": [{"kind": "cpu", "name": "x86", "memory_mib": 16_000, "bf16": True}]}
JOB = "2026-01-01_000000_inspect"


# --- a home in use ----------------------------------------------------------------------------------------------------


def fill(home: Path) -> None:
    """A home with a stopped run, a waiting one, one that is done, a use of a tool, and all that is kept beside them."""
    for name in ("stopped", "waits", "done"):
        run = runs.create(files.build({}, {"output.name": name, "launch.device": "cpu", "sample.prompts": '["a cat"]'}))
        (run.path).rename(run.path.with_name(name))
    stopped, waits, done = map(runs.named, ("stopped", "waits", "done"))
    train(stopped)
    stopped.write_state(State("stopped", step=20, steps=60, pid=77))
    done.write_state(State("done", step=60, steps=60, pid=78))
    waits.write_state(State())
    queue.enqueue(waits)
    job = Run(home / "tools" / JOB)
    job.path.mkdir(parents=True)
    disk.write_text(job.path / "tool.toml", '[inspect]\nfile = "/x.safetensors"\n')
    job.write_state(State("done", pid=79))
    disk.write_json(job.path / "report.json", {"files": [str(job.path / "x.png")], "lines": ["fine"], "remarks": []})
    job.log.write_text("inspect is done.\n")
    settings.write(home, settings.Settings(theme="dark", defaults={"optimizer.lr": "1e-4"}))
    disk.write_text(home / "presets" / "mine.toml", "# My own way\n[train]\nsteps = 5\n")
    gate.token_of(home)
    disk.write_json(home / "machine.json", {"key": machine.key(), "machine": CPU})
    (home / "captions").mkdir()
    change = Write(home / "captions" / "a.txt", None, "a cat")
    Journal(home / "undo").apply(home / "captions", "set", "1 picture", [change], lambda _: True)


def train(run: Run) -> None:
    """What a training of 20 steps leaves behind."""
    run.event("start", step=0)
    for step in range(1, 21):
        run.event("step", step=step, loss=1 / step, lr={"unet": 1e-4})
        run.event("memory", step=step, memory_mib=700)
    Image.new("RGB", (8, 8), "red").save(run.samples / "step-00000020_00.png")
    run.event("sample", step=20, path="step-00000020_00.png", prompt="a cat", seed=0)
    (run.checkpoints / "stopped-00000020.safetensors").write_bytes(b"weights")
    run.event("checkpoint", step=20, path=str(run.checkpoints / "stopped-00000020.safetensors"))

    def weights(folder: Path) -> None:
        (folder / "weights.safetensors").write_bytes(b"weights")

    for step in (10, 20):
        disk.write_folder(run.states / f"step-{step:08d}", weights)
    disk.write_json(run.path / "plan.json", {"lr": 1e-4, "family": "sd1", "device": "cpu"})
    disk.write_json(run.path / "command.json", {"argv": ["python", "-m", "limner.engine", "x"], "environment": {}})
    disk.write_json(run.path / "exit.json", {"code": 0, "time": 1.0, "pid": 77})
    run.log.write_text("step 20 of 60\n")


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- kinds of damage --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """`damage(home)` returns what it damaged. `told` is said on the page; `aside`: it is renamed, else it stays as it is
    (or, a cache, is made anew: None). `starts`: the waiting run can be started all the same."""

    damage: Callable[[Path], Path | list[Path] | None]
    told: str = ""
    aside: bool | None = True
    starts: bool = True
    around: Callable[[Path], contextlib.AbstractContextManager[None]] = lambda _: contextlib.nullcontext()


def cut(path: Path) -> Path:
    return put(path, path.read_bytes()[: path.stat().st_size // 2])


def to_folder(path: Path) -> Path:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    put(path / "inside.txt", "a folder in its place")
    return path


def to_file(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    return put(path, "a file in its place")


def sparse(path: Path, size: int = GIB) -> Path:
    with path.open("ab") as file:
        file.truncate(size)
    return path


def without(path: Path) -> None:
    path.unlink()


def newer_schema(home: Path) -> Path:
    path = home / "queue.sqlite"
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as table, table:
        table.execute("CREATE TABLE queue (position INTEGER PRIMARY KEY, run TEXT NOT NULL, device TEXT NOT NULL)")
        table.execute("INSERT INTO queue VALUES (1, 'waits', 'cpu')")
        table.execute("PRAGMA user_version = 9")
    return path


def wal_alone(home: Path) -> None:
    (home / "queue.sqlite").unlink()
    put(home / "queue.sqlite-wal", b"\x37\x7f\x06\x82" + b"garbage" * 999)


def of_another_run(home: Path) -> Path:
    """Copied from a run that is being trained just now."""
    run = runs.named("done")
    run.write_state(run.starting(os.getpid()))
    shutil.copy(run.path / "state.json", home / "runs" / "stopped" / "state.json")
    run.write_state(State("done", step=60, steps=60))
    return home / "runs" / "stopped" / "state.json"


def locks_as(change: Callable[[Path], object]) -> Callable[[Path], list[Path]]:
    def damage(home: Path) -> list[Path]:
        found = [home / "locks" / "queue.lock", home / "locks" / "runner.lock", home / "locks" / "settings.lock"]
        found += [home / "runs" / name / "lock" for name in ("stopped", "waits")]
        for path in found:
            path.parent.mkdir(exist_ok=True)
            change(path)
        return found

    return damage


def manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], Path]:
    def damage(home: Path) -> Path:
        path = home / "runs" / "stopped" / "states" / "step-00000020" / disk.MANIFEST
        content = json.loads(path.read_text())
        change(content["files"])
        return put(path, json.dumps(content))

    return damage


def states(change: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(home: Path) -> None:
        change(home / "runs" / "stopped" / "states")

    return damage


def stopped(name: str, change: Callable[[Path], Path | None]) -> Callable[[Path], Path | None]:
    return lambda home: change(home / "runs" / "stopped" / name)


def odd_events(home: Path) -> Path:
    """Lines of JSON whose members are of other kinds, missing or beyond all bounds."""
    path = home / "runs" / "stopped" / "events.jsonl"
    odd: list[Any] = [None, "x", [], {}, True, -1, 10**30, 1e300]
    members = ("event", "step", "time", "loss", "lr", "options", "message", "path", "memory_mib", "id")
    with path.open("a") as file:
        for kind in ("start", "step", "memory", "warning", "change", "validation", "checkpoint", "sample", "speed", "resume"):
            file.write(json.dumps({"event": kind}) + "\n")
            for member in members:
                for value in odd:
                    event = {"event": kind, "step": 21, "time": 1.0, "loss": 0.5, "memory_mib": 5, member: value}
                    file.write(json.dumps(event if kind != "resume" else {**event, "step": value}) + "\n")
        file.write('{"event": "step", "step": 22, "time": 1, "loss": NaN}\n{"event": "step", "step": 1e999}\n')
    return path


def dangling(home: Path) -> None:
    home.rename(home.with_name("elsewhere"))
    home.symlink_to(home.with_name("not there"))


def unknown(home: Path) -> None:
    put(home / "notes.txt", "mine")
    put(home / "old" / "deep" / "x", b"\x00")
    put(home / "runs" / "a file.txt", "no run")
    put(home / "presets" / "picture.png", b"\x89PNG")
    put(home / "locks" / "mine.lock", "x")
    (home / "runs" / "loop").symlink_to(home / "runs" / "loop")
    with contextlib.suppress(OSError, ValueError):  # a disk may take no such names
        for folder in ("runs", "presets", "tools"):
            name = os.fsdecode(b"\xff\xfe")
            put(home / folder / f"{name}.toml", "[train]\nsteps = 1\n")
            put(home / folder / name / "config.toml", "")
            put(home / folder / name / "tool.toml", "")


@contextlib.contextmanager
def unprivileged(home: Path) -> Iterator[None]:
    """As somebody who is no administrator, who may write everywhere."""
    if os.getuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """No file in a folder can be made, renamed or written."""
    modes = {path: path.stat().st_mode for path in (folder, *folder.rglob("*")) if not path.is_symlink()}
    for path, mode in modes.items():
        path.chmod(mode & ~0o222)
    try:
        with unprivileged(folder):
            yield
    finally:
        for path, mode in modes.items():
            with contextlib.suppress(FileNotFoundError):
                path.chmod(mode)


@contextlib.contextmanager
def full(home: Path) -> Iterator[None]:
    """No file can be made longer."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRONG_SETTINGS = (
    "theme = 3\nlanguage = []\npictures = 'here'\nmodels = 5\noutput = false\nroots = 'x'\nhosts = {}\n"
    "programs = 1\ndefaults = [1]\nunknown = nan\n"
)
IS_DAMAGED = "its state.json is damaged"
KINDS: dict[str, Kind] = {
    "queue: cut": Kind(lambda home: cut(home / "queue.sqlite"), "queue.sqlite"),
    "queue: text": Kind(lambda home: put(home / "queue.sqlite", "x" * 5000), "queue.sqlite"),
    "queue: a folder": Kind(lambda home: to_folder(home / "queue.sqlite"), "queue.sqlite"),
    "queue: a newer schema": Kind(newer_schema, "queue.sqlite"),
    "queue: empty": Kind(lambda home: put(home / "queue.sqlite", b""), aside=None),
    "queue: missing": Kind(lambda home: without(home / "queue.sqlite")),
    "queue: a log without it": Kind(wal_alone),
    "queue: its log a folder": Kind(lambda home: to_folder(home / "queue.sqlite-wal"), "queue.sqlite"),
    "settings: every value wrong": Kind(lambda home: put(home / "settings.toml", WRONG_SETTINGS), "is no setting", None),
    "settings: half": Kind(lambda home: put(home / "settings.toml", b"theme = "), "settings.toml"),
    "settings: a folder": Kind(lambda home: to_folder(home / "settings.toml"), "settings.toml"),
    "settings: cannot be read": Kind(
        lambda home: (home / "settings.toml").unlink() or (home / "settings.toml").symlink_to("settings.toml"), "cannot be read"
    ),
    "settings: 1 GiB": Kind(lambda home: sparse(home / "settings.toml"), "longer than 1 MiB"),
    "state: half": Kind(stopped("state.json", cut), IS_DAMAGED),
    "state: NaN": Kind(
        stopped("state.json", lambda p: put(p, '{"status": "running", "pid": 1, "process_started": NaN, "step": 1e999}')),
        IS_DAMAGED,
    ),
    "state: a list": Kind(stopped("state.json", lambda p: put(p, "[1, 2]")), IS_DAMAGED),
    "state: a folder": Kind(stopped("state.json", to_folder), IS_DAMAGED),
    "state: of another run": Kind(of_another_run, "its state.json is that of another run"),
    "state: 1 GiB": Kind(stopped("state.json", sparse), IS_DAMAGED),
    "locks: garbage": Kind(locks_as(lambda p: put(p, b"\x00 1 root\n" * 99)), aside=False),
    "locks: folders": Kind(locks_as(to_folder), "queue.lock"),
    "locks: a file": Kind(lambda home: to_file(home / "locks"), "locks"),
    "token: missing": Kind(lambda home: without(home / "token")),
    "token: empty": Kind(lambda home: put(home / "token", b""), aside=None),
    "token: all may read it": Kind(lambda home: (home / "token").chmod(0o644)),
    "token: a folder": Kind(lambda home: to_folder(home / "token"), "token"),
    "token: binary": Kind(lambda home: put(home / "token", b"\x00\xff" * 64), "token"),
    "token: 1 GiB": Kind(lambda home: sparse(home / "token"), "token"),
    "machine: half": Kind(lambda home: cut(home / "machine.json"), aside=None),
    "machine: of other kinds": Kind(
        lambda home: put(home / "machine.json", json.dumps({"key": machine.key(), "machine": CPU | {"devices": []}})),
        aside=None,
    ),
    "machine: a folder": Kind(lambda home: to_folder(home / "machine.json"), "machine.json"),
    "presets: binary, folders": Kind(
        lambda home: [put(home / "presets" / "bad.toml", b"\xff\x00"), to_folder(home / "presets" / "dir.toml")],
        "is not UTF-8 text", False,
    ),
    "presets: a file": Kind(lambda home: to_file(home / "presets"), "presets"),
    "cache: a file": Kind(lambda home: to_file(home / "cache"), "cache"),
    "tools: of other kinds": Kind(
        lambda home: [
            put(home / "tools" / JOB / "report.json", '{"files": {"a": NaN}, "lines": 3}'),
            put(home / "tools" / JOB / "tool.toml", b"\xff"),
            put(home / "tools" / JOB / "state.json", "[]"),
        ],
        IS_DAMAGED, False,
    ),
    "undo: of other kinds": Kind(
        lambda home: [
            put(home / "undo" / "00000001" / "entry.json", '{"folder": 5, "kind": [], "detail": {}, "files": "x"}'),
            put(home / "undo" / "00000001" / "files.json", "[3, null]"),
        ],
        aside=False,
    ),
    "run: no config": Kind(stopped("config.toml", lambda p: p.unlink()), "has no config.toml"),
    "run: config binary": Kind(stopped("config.toml", lambda p: put(p, b"\x00\xff" * 99)), aside=False),
    "run: config a folder": Kind(stopped("config.toml", to_folder), "has no config.toml", False),
    "run: events half a line": Kind(stopped("events.jsonl", lambda p: put(p, p.read_bytes()[:-9])), aside=False),
    "run: events binary": Kind(stopped("events.jsonl", lambda p: put(p, os.urandom(99_999))), aside=False),
    "run: events 256 MiB of one line": Kind(stopped("events.jsonl", lambda p: sparse(p, GIB // 4)), aside=False),
    "run: events of other kinds": Kind(odd_events, aside=False),
    "run: events a folder": Kind(stopped("events.jsonl", to_folder), "events.jsonl"),
    "run: plan, command and end": Kind(
        lambda home: [
            put(home / "runs" / "stopped" / "plan.json", '{"lr": "x", "family": 3, "seconds": NaN}'),
            put(home / "runs" / "stopped" / "command.json", b"\xff"),
            put(home / "runs" / "stopped" / "exit.json", "[]"),
        ],
        aside=None,
    ),
    "run: log a folder": Kind(stopped("log.txt", to_folder), "log.txt"),
    "run: log 1 GiB": Kind(stopped("log.txt", sparse), aside=False),
    "run: samples a file": Kind(stopped("samples", to_file), "samples"),
    "run: control a file": Kind(stopped("control", to_file), "control"),
    "run: states empty": Kind(states(lambda p: shutil.rmtree(p) or p.mkdir())),
    "run: states only half-written": Kind(states(lambda p: shutil.rmtree(p) or put(p / ".tmp-0123" / "weights", b"x"))),
    "run: two states of one step": Kind(states(lambda p: shutil.copytree(p / "step-00000020", p / "step-20"))),
    "run: manifest with a wrong hash": Kind(
        manifest(lambda f: f["weights.safetensors"].update(sha256="0" * 64)), aside=False
    ),
    "run: manifest of a missing file": Kind(manifest(lambda f: f.update(more={"bytes": 1, "sha256": "0"})), aside=False),
    "run: manifest without a file": Kind(manifest(lambda f: f.pop("weights.safetensors")), aside=False),
    "run: manifest leads outside": Kind(manifest(lambda f: f.update({"../../x": f["weights.safetensors"]})), aside=False),
    "run: read only": Kind(lambda home: None, around=lambda home: read_only(home / "runs" / "stopped")),
    "runs: a file": Kind(lambda home: to_file(home / "runs"), "runs", starts=False),
    "home: read only": Kind(lambda home: None, "cannot be written", starts=False, around=read_only),
    "home: full": Kind(lambda home: None, "cannot be used", starts=False, around=full),
    "home: a link to nothing": Kind(dangling, "is a link to", starts=False),
    "home: a file": Kind(lambda home: shutil.rmtree(home) or put(home, "no folder"), "is not a folder", False, starts=False),
    "home: unknown files": Kind(unknown),
}  # fmt: skip


# --- what goes on -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in use, to be copied."""
    home = tmp_path_factory.mktemp("whole") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMNER_HOME", str(home))
        home.mkdir()
        fill(home)
    return home


@pytest.fixture
def used(whole: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it, where somebody without privileges may go, and all that would start a process told instead."""
    folder = Path(tempfile.mkdtemp(prefix="limner-damaged-"))
    home = folder / "home"
    shutil.copytree(whole, home)
    if os.name != "nt" and os.getuid() == 0:
        folder.chmod(0o755)
        for path in (folder, home, *home.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    monkeypatch.setenv("LIMNER_HOME", str(home))
    monkeypatch.setattr(machine, "_ask", lambda: CPU)
    monkeypatch.setattr(runner, "ensure_runner", lambda *_: None)
    yield home
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def portal() -> Iterator[BlockingPortal]:
    """The loop in which all requests are answered; the application's own tasks (the queue's) are not begun."""
    with start_blocking_portal() as one:
        yield one


class Started:
    """A trainer that is gone already."""

    pid = 2**22 - 5

    def poll(self) -> int:
        return 1

    def wait(self) -> int:
        return 1


def opened(home: Path) -> TestClient:
    """What `limner web` does at its start, without the socket and Gradio's page."""
    damage.mend(home)
    asked, (kept, found) = server.Asked(), settings.read(home, aside=True)
    rules = server.rules_for(asked, kept, password="", root_path="", loopback=True)
    context = server.context_for(asked, kept, found, password="", root_path="", loopback=True)
    client = TestClient(
        gate.Gate(own_routes(context), rules), base_url="http://127.0.0.1", headers={"Origin": "http://127.0.0.1"}
    )
    client.cookies.set(rules.cookie, rules.session)
    return client


READ = [
    "notices", "settings", "presets", "tools", f"tools/{JOB}", f"tools/{JOB}/files/0", "folders", "models", "runs",
    *(f"runs/{name}{rest}" for name in ("stopped", "waits", "done") for rest in ("", "/curves", "/log", "/config.toml")),
    "runs/stopped/samples/step-00000020_00.png?w=128", "runs/stopped/checkpoints/stopped-00000020.safetensors",
    "runs/stopped/compare?other=done",
]  # fmt: skip
CHANGE: list[tuple[str, Any]] = [
    ("check", {"values": {}}), ("settings", {"theme": "light"}), ("queue", {"order": ["waits", "stopped"]}),
    ("presets/save", {"values": {"train.steps": "7"}, "name": "other"}), ("runs/stopped/duplicate", {}),
    ("runs/stopped/resume", {}), ("runs/done/delete", {}),
]  # fmt: skip


def ask(client: TestClient, paths: Sequence[str] = READ) -> str:
    """Read all that the page reads; nothing is a fault of the server's. Returns what it said."""
    said = []
    for path in paths:
        answer = client.get(f"/api/{path}", headers={"Range": "bytes=0-999"})  # only files are given in parts
        assert answer.status_code < 500, (path, answer.text)
        said.append("" if answer.headers["content-type"].startswith(("image", "application/octet")) else answer.text[:100_000])
    return "\n".join(said)


def commanded(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str]:
    """`limner WORDS...`, in this process."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["limner", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return int(ended.value.code or 0), out + err


def prints(path: Path) -> str:
    """What is in a file or a folder, in short."""
    if path.is_dir():
        return " ".join(f"{p.relative_to(path)}={prints(p)}" for p in sorted(path.rglob("*")) if p.is_file())
    with path.open("rb") as file:
        head = file.read(1 << 20)
        head = head[100:] if head.startswith(b"SQLite") else head  # whose header says that it was opened
    return f"{path.stat().st_size} {hashlib.sha256(head).hexdigest()}"


def kept(path: Path, before: str) -> Path | None:
    """Where that which was at a path is now: in its place, or beside it under the name of what is damaged."""
    places = [path, *path.parent.glob(f"{path.name}{disk.ASIDE}*")]
    places += path.parent.glob(f"{path.name.removesuffix('-wal')}{disk.ASIDE}*-wal")
    return next((p for p in places if os.path.lexists(p) and prints(p) == before), None)


@pytest.mark.long
@pytest.mark.skipif(os.name == "nt", reason="modes, links and limits of POSIX")
@pytest.mark.parametrize("name", KINDS)
def test_damage(
    name: str, used: Path, portal: BlockingPortal, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, kind = used, KINDS[name]
    damaged = kind.damage(home)
    damaged = damaged if isinstance(damaged, list) else [damaged] if damaged is not None else []
    before = {path: prints(path) for path in damaged}
    started: list[str] = []
    monkeypatch.setattr(jobs, "spawn", lambda words, log, extra=None: started.append(words[-1]) or Started())
    with kind.around(home):
        began = time.process_time()  # other tests' load is none of its own
        client = opened(home)
        client.portal = portal
        said = ask(client)
        assert time.process_time() - began < 5
        for path, body in CHANGE:
            answer = client.post(f"/api/{path}", json=body)
            assert answer.status_code < 500, (path, answer.text)
        said += ask(client, ["notices", "runs", "runs/stopped", "runs/stopped/curves"])
        expect.from_last_run(Config())
        said_there = commanded(capsys, monkeypatch, "runs", "list")[1]
        assert commanded(capsys, monkeypatch, "doctor")[0] == 0
        for words in (("runs", "show", "stopped"), ("runs", "queue"), ("config", "presets")):
            assert commanded(capsys, monkeypatch, *words)[0] in (0, 2)
        try:
            with runs.lock("runner", 0):
                runner.Runner(say=lambda _: None).tick()
        except Exception as error:
            assert isinstance(error, (OSError, runner.UserError)) and not kind.starts, error  # which `main` says in its log
        said += ask(client, ["notices"])
    assert kind.told in said, said[:3000]
    assert (str(home / "runs" / "waits") in started) == kind.starts
    for path, content in before.items():
        where = kept(path, content)
        assert kind.aside is None or (where is not None and (where != path) == kind.aside), (path, where)
        assert not kind.aside or path.name.removesuffix("-wal") in said + said_there
    mode = (home / "token").stat().st_mode & 0o777 if home.is_dir() and kind.around is not full else 0o600
    assert mode in (0o600, 0o400), "the token is its owner's alone"
