"""Kill the runner, or the web server, at random moments: the trainers they started or show know nothing of it."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import forked
from killing import SECONDS, SEED, Tally, Told, telling, tree_hash
from limner import jobs, queue, runner, runs
from limner.runs import Run
from trainer import new_run, result

_PATIENCE_SECONDS = 120


def wait(condition: Callable[[], object], what: str) -> None:
    until = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < until, f"waited in vain: {what}"
        time.sleep(0.02)


# --- the runner -------------------------------------------------------------------------------------------------------


def _serve(home: str, forks: str, said: Any) -> None:
    """Be the runner, and say where; what it starts is forked."""
    os.setsid()
    os.environ["LIMNER_HOME"] = home
    forked._address, subprocess.Popen = forks, forked.Popen  # type: ignore[misc]
    forked.to_log(str(runner.log_file()))
    said.send_bytes(b"in the queue")
    telling(said, "starting a trainer", jobs, "spawn")
    telling(said, "looking", runner.Runner, "tick")
    os._exit(runner.main())


def _start_runner() -> tuple[Any, Told]:
    address = forked._server()
    hears, says = forked.CONTEXT.Pipe(duplex=False)
    process = forked.CONTEXT.Process(target=_serve, args=(os.environ["LIMNER_HOME"], address, says))
    process.start()
    says.close()
    return process, Told(hears)


def kill_runners(chosen: Any, reference: dict[str, Any], least: int, together: int = 3, seed: int = SEED) -> Tally:
    """Have queues of runs trained by runners that are killed. Each is trained once, without a break, one at a time."""
    rng, tally, made, until = random.Random(f"{seed} runner"), Tally(), list[Run](), time.monotonic() + SECONDS
    queued = list[Run]()
    while True:
        if all(run.state().status == "done" for run in queued) and (tally.count >= least or time.monotonic() > until):
            break
        if all(run.state().status == "done" for run in queued):
            queued = [new_run(chosen) for _ in range(together)]
            made += queued
            for run in queued:
                queue.enqueue(run)
        process, told = _start_runner()
        place, part = rng.choice(["starting a trainer", "starting a trainer", "looking", "the queue"]), rng.random()
        print(f"seed {seed}: the runner at {place}, {part:.3f}", flush=True)
        if tally.count < least and time.monotonic() < until and told.entered(place, 1):
            time.sleep(part * {"starting a trainer": 0.02, "looking": 0.01, "the queue": 1.5}[place])
            with contextlib.suppress(ProcessLookupError):  # it may have left meanwhile
                os.kill(process.pid, signal.SIGKILL)
            told.rest()
            process.join()
            if process.exitcode == -signal.SIGKILL:
                tally.ended[told.where] += 1
        else:
            told.rest()  # it leaves when all is done
            process.join()
            assert process.exitcode == 0
        told.pipe.close()
        if rng.random() < 0.5:
            time.sleep(rng.random())
        assert not any(run.state().status in ("failed", "stopped") for run in queued), [run.state() for run in queued]
    tally.runs = len(made)
    spans = list[tuple[float, float]]()
    for run in made:
        told_of = [e for e, _ in run.events()]
        assert [e["event"] for e in told_of if e["event"] in ("start", "resume", "stop")] == ["start", "stop"], run.id
        spans.append((told_of[0]["time"], told_of[-1]["time"]))
        assert result(run) == reference, run.id
    spans.sort()
    assert all(end <= begin + 0.05 for (_, end), (begin, _) in itertools.pairwise(spans)), "two at once on one device"
    assert queue.waiting() == []
    return tally


# --- the web server ---------------------------------------------------------------------------------------------------


class Server:
    """`limner web`, forked."""

    def __init__(self, log: Path, allowed: Path) -> None:
        self.log = log
        with log.open("wb") as file, forked.forks():
            self.process = subprocess.Popen(
                [sys.executable, "-m", "limner.cli", "web", "--port", "0", "--headless", "--allowed-path", str(allowed)],
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=dict(os.environ),
            )  # fmt: skip

    def address(self) -> tuple[str, int]:
        """Waits until it says where it answers."""
        found = list[str]()

        def says() -> bool:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            found[:] = [line.split()[3] for line in lines if line.startswith("Limner is at http") and line.endswith("\n")]
            assert self.process.poll() is None, self.log.read_text()
            return bool(found)

        wait(says, "the server")
        parts = urlsplit(found[0])
        return parts.hostname or "", parts.port or 0

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Visitor:
    """Somebody with the page open who changes settings and captions without a pause."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._cookie = ""
        self._cookie = (self._ask("GET", "/")[1].get("set-cookie") or "").partition(";")[0]

    def get(self, path: str) -> Any:
        status, _, body = self._ask("GET", path)
        assert status == 200, (path, status, body)
        return json.loads(body)

    def post(self, path: str, content: Any) -> Any:
        status, _, body = self._ask("POST", path, json.dumps(content))
        assert status == 200, (path, status, body)
        return json.loads(body)

    def _ask(self, method: str, path: str, body: str = "") -> tuple[int, Any, bytes]:
        asking = http.client.HTTPConnection(*self._address, timeout=60)
        host = f"http://{self._address[0]}:{self._address[1]}"
        told = {"Cookie": self._cookie, "Origin": host, "Content-Type": "application/json"} if self._cookie else {}
        asking.request(method, path, body or None, told)
        answer = asking.getresponse()
        found = answer.status, dict((k.lower(), v) for k, v in answer.getheaders()), answer.read()
        asking.close()
        return found


def _work(address: tuple[str, int], folder: Path, seen: list[str]) -> None:
    """Change what can be changed until the server is gone; `seen` is what was answered, last of all why it ended."""
    try:
        visitor, view = Visitor(address), {"data.path": str(folder)}
        for number in itertools.count():
            visitor.post("/api/settings", {"defaults": {"train.steps": str(1000 + number)}})
            words = ["old", "new"][number % 2] * 2000
            edit = {"view": view, "operation": {"kind": "set", "text": words}}
            found = visitor.post("/api/dataset/preview", edit)
            if found["total"]:  # else the last one was written, and not answered
                visitor.post("/api/dataset/apply", {"id": found["id"]})
            visitor.get("/api/runs")
            seen.append("a round")
    except (OSError, http.client.HTTPException) as error:
        seen.append(f"{type(error).__name__}: {error}")
    except BaseException as error:
        seen.append(f"failed: {error!r}")
        raise


@contextmanager
def trained(chosen: Any) -> Iterator[Run]:
    """A run that is being trained by the queue while this lasts."""
    run = new_run(chosen)
    with forked.forks():
        queue.enqueue(run)
        runner.ensure_runner()
        wait(lambda: run.state().step > 0, "the first step")
        try:
            yield run
        finally:
            jobs.stop(run, now=True)
            with runs.lock("runner", 60):
                pass  # it has left


def kill_servers(run: Run, others: Path, pictures: Path, log: Path, least: int, seed: int = SEED) -> tuple[Tally, float]:
    """Kill servers that show `run`, which is being trained, while somebody edits the captions in `others`. Returns the tally,
    and in how many seconds at most a new server told the truth about the run."""
    rng, tally, home, slowest = random.Random(f"{seed} web"), Tally(runs=1), runs.home(), 0.0
    texts = {word * 2000 for word in ("old", "new")} | {p.read_text() for p in others.glob("*.txt")}
    images = {p.name: p.read_bytes() for p in others.glob("*.png")}
    before, pid, step, until = tree_hash(pictures), run.state().pid, 0, time.monotonic() + SECONDS
    while tally.count < least and time.monotonic() < until:
        in_the_start, part = rng.random() < 0.3, rng.random()
        print(f"seed {seed}: the server {'starting' if in_the_start else 'at work'}, {part:.3f}", flush=True)
        since = time.monotonic()
        server = Server(log, others)
        if in_the_start:
            time.sleep(part)
        else:
            address = server.address()
            shown = Visitor(address).get("/api/runs")["runs"][run.id]
            slowest = max(slowest, time.monotonic() - since)
            assert shown["status"] == "running" and shown["step"] >= step, shown
            seen = list[str]()
            visitor = threading.Thread(target=_work, args=(address, others, seen))
            visitor.start()
            time.sleep(part)
        server.kill()
        tally.ended["the start" if in_the_start else "requests"] += 1
        if not in_the_start:
            visitor.join(_PATIENCE_SECONDS)
            assert not visitor.is_alive() and not seen[-1].startswith("failed"), seen
        if (home / "settings.toml").exists():
            assert set(tomllib.loads((home / "settings.toml").read_text())["defaults"]) == {"train.steps"}
        assert {p.read_text().removesuffix("\n") for p in others.glob("*.txt")} <= texts
        assert {p.name: p.read_bytes() for p in others.glob("*.png")} == images
        state = run.state()
        assert (state.status, state.pid) == ("running", pid) and state.step >= step, state
        step = state.step
        assert tree_hash(pictures) == before
    wait(lambda: run.state().step > step, "another step")
    return tally, slowest
