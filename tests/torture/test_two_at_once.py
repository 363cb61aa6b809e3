"""Fifty starts released by one barrier: through two servers, by the command, from the queue, with two runners started by hand.

Everything is real: servers, commands, runner, and trainers of the tiny model. One run at a time on the device, none is lost,
none is started twice; a runner that is killed in between costs nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

import forked
import tiny
from limner import queue, runner, runs
from limner.config import files
from limner.runs import Run
from trainer import config

pytestmark = pytest.mark.skipif(os.name == "nt", reason="processes are forked")
STARTS = int(os.environ.get("LIMNER_STARTS", "50"))


class Page:
    """A `limner web` of this home, and a session with it."""

    def __init__(self, log: Path) -> None:
        with log.open("wb") as file:
            words = [sys.executable, "-m", "limner.cli", "web", "--port", "0", "--headless"]
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        until = time.monotonic() + 60
        while "Limner is at " not in log.read_text() and time.monotonic() < until:
            time.sleep(0.05)
        self.url = log.read_text().partition("Limner is at ")[2].split()[0].rstrip("/")
        self.client = httpx.Client(headers={"Origin": self.url}, timeout=120)
        assert self.client.get(self.url).status_code == 200

    def post(self, path: str, body: Any) -> httpx.Response:
        return self.client.post(f"{self.url}/api/{path}", json=body)

    def end(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait()


@pytest.fixture
def pages(tmp_path: Path, home: Path, tiny_model: Path, known_machine: None, forks: None) -> Any:
    (home / "settings.toml").write_text(f"roots = {json.dumps([str(tmp_path), str(tiny_model)])}\n")
    both = [Page(tmp_path / f"page{number}.txt") for number in range(2)]
    yield both
    for page in both:
        page.end()


def at_once(doings: list[Callable[[], Any]]) -> list[Any]:
    """Do them all at the same moment, each in a thread of its own; what each returned or raised."""
    barrier, said = threading.Barrier(len(doings)), [None] * len(doings)

    def act(number: int, doing: Callable[[], Any]) -> None:
        barrier.wait()
        try:
            said[number] = doing()
        except Exception as error:
            said[number] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=act, args=pair) for pair in enumerate(doings)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def limner(*words: str, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        command = [sys.executable, "-m", "limner.cli", *words]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)


def the_runner(home: Path, others: set[int]) -> int | None:
    """The process that holds the runner's lock for longer than a look takes: a fork is known by what it has open."""
    before = _holding(home)
    time.sleep(0.1)
    found = (before & _holding(home)) - others
    return found.pop() if len(found) == 1 else None


def _holding(home: Path) -> set[int]:
    lock, found = str(home / "locks" / "runner.lock"), set[int]()
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            names = [f"/proc/{pid}/fd/{descriptor}" for descriptor in os.listdir(f"/proc/{pid}/fd")]
            if any(os.path.realpath(name) == lock for name in names):
                found.add(pid)
    return found


def spans(run: Run) -> tuple[float, float, list[str]]:
    """When a run's only trainer began and ended, and the kinds of its events."""
    events = [event for event, _ in run.events()]
    return events[0]["time"], events[-1]["time"], [event["event"] for event in events]


def test_fifty_starts_at_one_barrier(tiny_model: Path, tmp_path: Path, home: Path, pages: list[Page]) -> None:
    pictures = tiny.pictures(tmp_path / "pictures")
    asked = config(tiny_model, pictures, train={"steps": 2}, optimizer={"warmup_steps": 0})
    (tmp_path / "run.toml").write_text(files.render(asked))
    values = files.overrides_of(asked)
    each = STARTS // 3
    doings: list[Callable[[], Any]] = []
    for page in pages:
        doings += [lambda page=page: page.post("train", {"values": values})] * each
    commands: list[subprocess.Popen[bytes]] = []
    doings += [
        lambda n=n: commands.append(limner("train", str(tmp_path / "run.toml"), log=tmp_path / f"command{n}.txt"))
        for n in range(STARTS - 2 * each)
    ]
    by_hand = [sys.executable, "-m", "limner.runner"]
    doings += [lambda: subprocess.Popen(by_hand, stdin=subprocess.DEVNULL)] * 2
    began = time.monotonic()
    said = at_once(doings)
    answers = said[: 2 * each]
    assert {getattr(answer, "status_code", answer) for answer in answers} == {200}, [getattr(a, "text", a) for a in answers]
    killed = 0
    until = time.monotonic() + 450
    while time.monotonic() < until:
        made = runs.all_runs()
        done = [run for run in made if run.state().status == "done"]
        if len(made) == STARTS and len(done) == len(made):
            break
        others = {os.getpid(), *(p.process.pid for p in pages), *(c.pid for c in commands)}
        if killed < 3 and len(done) > (killed + 1) * STARTS // 5 and (pid := the_runner(home, others)) is not None:
            os.kill(pid, signal.SIGKILL)
            killed += 1
            at_once([runner.ensure_runner] * 2)
        time.sleep(0.2)
    made = runs.all_runs()
    assert len(made) == STARTS and {run.state().status for run in made} == {"done"}, [run.state() for run in made]
    assert {a.json()["run"] for a in answers} <= {run.id for run in made}
    assert [command.wait(60) for command in commands] == [0] * len(commands)
    assert killed == 3 and {process.wait(60) for process in said[-2:]} <= {0, -signal.SIGKILL}
    times = sorted(spans(run) for run in made)
    for kinds in (kinds for *_, kinds in times):
        assert kinds.count("start") == 1 and "resume" not in kinds, "none is started twice"
    for (_, ended, _), (begun, _, _) in itertools.pairwise(times):
        assert ended <= begun, "one at a time"
    for run in made:
        assert "is being trained by another process" not in run.tail(10_000)
    assert queue.waiting() == [] and not list(home.glob("*.damaged-*"))
    for page in pages:
        seen = page.client.get(f"{page.url}/api/runs").json()
        assert len(seen["runs"]) == len(made) and all(brief["status"] == "done" for brief in seen["runs"].values())
    print(f"{len(made)} starts and 2 runners at one barrier, {killed} runners killed: done in {time.monotonic() - began:.0f} s")


def test_settings_through_two_servers(home: Path, pages: list[Page]) -> None:
    """Two hundred changes through both: each is kept, the last word on one and the same setting counts."""
    folder = home.parent / "roots"
    folder.mkdir()
    mine = ({"theme": "dark"}, {"pictures": str(folder)})

    def change(page: Page, values: dict[str, str]) -> list[int]:
        said = []
        for number in range(100):
            said.append(page.post("settings", values if number % 2 else {**values, "language": "en"}).status_code)
        return said

    at_once([lambda p=p, v=v: change(p, v) for p, v in zip(pages, mine, strict=True)])
    for page in pages:
        kept = page.client.get(f"{page.url}/api/settings").json()
        assert (kept["theme"], kept["pictures"]) == ("dark", str(folder))
    pages[0].post("settings", {"theme": "light"})
    assert pages[1].client.get(f"{pages[1].url}/api/settings").json()["theme"] == "light"
    assert pages[0].client.cookies.keys() == pages[1].client.cookies.keys(), "one secret"
    assert not list(home.glob("*.damaged-*"))


def test_a_hundred_rounds_of_twenty_starts(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As tests/test_queue.py, again and again, each in a home of its own, for as long as five minutes."""
    from at_once import together
    from tiny_runner import lines

    rounds, until = 0, time.monotonic() + float(os.environ.get("LIMNER_SECONDS", "300"))
    while rounds < 100 and time.monotonic() < until:
        place = tmp_path / f"home{rounds}"
        monkeypatch.setenv("LIMNER_HOME", str(place))
        made = [name for names in together("starts", 20, 1) for name in names]
        waited = time.monotonic() + 120
        while any(runs.named(name).state().status != "done" for name in made) and time.monotonic() < waited:
            time.sleep(0.05)
        order = lines(place, "started.txt")
        assert sorted(order) == sorted(made) and len(set(made)) == 20
        assert lines(place, "busy.txt") == [sign + name for name in order for sign in "+-"]
        rounds += 1
    print(f"{rounds} rounds of 20 starts: one run at a time, none lost, none twice")
    assert forked.CAN_FORK and rounds > 0
